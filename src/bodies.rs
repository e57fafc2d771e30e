//! Reads request bodies back from the journal.

use std::sync::Arc;

use bytes::Bytes;
use ingest_aggregator::BodySource;
use ingest_otlp::Body;
use store_log::{BodyRecord, Reader, RealDisk};
use store_model::{Offset, PartitionId};

/// Bodies by partition and offset, decompressed.
#[derive(Clone)]
pub(crate) struct JournalBodies {
    pub(crate) readers: Vec<Reader<RealDisk>>,
    pub(crate) request_bytes_max: usize,
}

impl JournalBodies {
    fn read(
        &self,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Option<Bytes>, Box<dyn std::error::Error>> {
        let Some(reader) = self.readers.get(usize::from(partition.0)) else { return Ok(None) };
        let Some(payload) = reader.read(offset)? else { return Ok(None) };
        let record = BodyRecord::decode(payload)?;
        Ok(Some(ingest_otlp::decompress(record.encoding, &record.body, self.request_bytes_max)?))
    }
}

impl BodySource for JournalBodies {
    fn body(&mut self, partition: PartitionId, offset: Offset) -> Option<Arc<Body>> {
        match self.read(partition, offset) {
            Ok(body) => body.map(Body::unwalked),
            Err(error) => {
                tracing::error!(%partition, %offset, %error, "journal record cannot be read, its spans are expired");
                None
            }
        }
    }
}

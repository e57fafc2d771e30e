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
        Ok(Some(plain(&record)?))
    }
}

/// The body of a record, decompressed. What was acknowledged is read again whatever a request may measure by now: nothing but
/// the width of a range bounds it.
///
/// # Errors
/// When it cannot be decompressed.
pub(crate) fn plain(record: &BodyRecord) -> Result<Bytes, ingest_otlp::Error> {
    ingest_otlp::decompress(record.encoding, &record.body, u32::MAX as usize)
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

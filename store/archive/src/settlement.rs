//! The record of topic `decisions`: what one shard settled, and up to where it had read. Encodes and decodes; where it is
//! stored and when it is written is not decided here.
//!
//! ```text
//! version u8 = 1
//! shard varint, shards varint, at u64 LE
//! frontier: n varint, then n offsets varint          watermark: the same
//! tenants:  n varint, then n names (length varint, bytes); a tenant below is its place in this list, varint
//! counts:   n varint, then n of: tenant, arrived, kept, sampled_out, shed, expired, refused,
//!           kept_spans by reason (3), kept_traces by reason (3), dropped_traces; all varint
//! kept:     n varint, then n of: tenant, trace id 16 bytes, trace start and decision time (signed distance from `at`),
//!           reason code + 128 if complete u8, threshold (its 57 bits reversed, varint), spans
//! dropped:  n varint, then n of: 2 * tenant + 1 if shed varint, trace id 16 bytes
//! spans:    n varint, then n of: partition varint, offset and position (signed distance from the span before),
//!           length varint
//! ```
//! A signed distance is a zigzag varint. Thresholds end in zeros, so their reversed bits are small. The log beneath has
//! the checksum.

use hashbrown::HashMap;

use store_index::codec::{Cursor, count, put_bytes, put_delta, put_varint};
use store_model::{
    BodyRange, Counts, Offset, PartitionId, Reason, ShardId, SpanLocation, Tenant, Threshold, TraceId,
    UnixNanos,
};

use crate::error::Error;
use crate::format::{put_threshold, put_verdict, threshold, verdict};

/// The version this program writes.
const SETTLEMENT_VERSION: u8 = 1;

/// What a shard settled since its last record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which shard.
    pub shard: ShardId,
    /// Of how many, when this was written: the owner of a trace depends on it.
    pub shards: u16,
    /// When this was written.
    pub at: UnixNanos,
    /// Per partition of topic `spans`: the shard has taken everything below this into account.
    pub frontier: Vec<Offset>,
    /// Per partition of topic `spans`: everything below this is settled. A restart reads the journal from here.
    pub watermark: Vec<Offset>,
    /// Totals so far, per tenant.
    pub counts: Vec<(Tenant, TenantCounts)>,
    /// Traces, or late fragments of them, to keep.
    pub kept: Vec<KeptDecision>,
    /// Traces to let go.
    pub dropped: Vec<DroppedDecision>,
}

/// Totals of one tenant since the data directory was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TenantCounts {
    /// Where its spans went.
    pub counts: Counts,
    /// Spans kept, in the order of [`Reason::ALL`].
    pub kept_spans: [u64; 3],
    /// Traces kept, in the order of [`Reason::ALL`].
    pub kept_traces: [u64; 3],
    /// Traces decided against.
    pub dropped_traces: u64,
}

/// A trace to keep. A late fragment is a further one of the same trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDecision {
    /// Whose trace.
    pub tenant: Tenant,
    /// Which trace.
    pub trace_id: TraceId,
    /// Start of its earliest span.
    pub trace_start: UnixNanos,
    /// When it was decided.
    pub decided_at: UnixNanos,
    /// Why it is kept.
    pub reason: Reason,
    /// T for `ot=th`.
    pub threshold: Threshold,
    /// The root had arrived.
    pub complete: bool,
    /// Where its spans lie in the journal.
    pub spans: Vec<SpanLocation>,
}

/// A trace to let go. Late spans list it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedDecision {
    /// Whose trace.
    pub tenant: Tenant,
    /// Which trace.
    pub trace_id: TraceId,
    /// Given up under memory pressure, not by sampling.
    pub shed: bool,
}

impl TenantCounts {
    /// Adds every term.
    pub fn add(&mut self, other: Self) {
        let Self { counts, kept_spans, kept_traces, dropped_traces } = other;
        self.counts.add(counts);
        let pairs = self.kept_spans.iter_mut().chain(&mut self.kept_traces);
        pairs.zip(kept_spans.into_iter().chain(kept_traces)).for_each(|(sum, term)| *sum += term);
        self.dropped_traces += dropped_traces;
    }

    fn put(self, out: &mut Vec<u8>) {
        let Self { counts, kept_spans, kept_traces, dropped_traces } = self;
        let Counts { arrived, kept, sampled_out, shed, expired, refused } = counts;
        let spans = [arrived, kept, sampled_out, shed, expired, refused];
        let all = spans.into_iter().chain(kept_spans).chain(kept_traces).chain([dropped_traces]);
        all.for_each(|value| put_varint(out, value));
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, store_index::Error> {
        let mut next = || cursor.varint();
        let counts = Counts {
            arrived: next()?,
            kept: next()?,
            sampled_out: next()?,
            shed: next()?,
            expired: next()?,
            refused: next()?,
        };
        let kept_spans = [next()?, next()?, next()?];
        let kept_traces = [next()?, next()?, next()?];
        Ok(Self { counts, kept_spans, kept_traces, dropped_traces: next()? })
    }
}

impl Settlement {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { shard, shards, at, frontier, watermark, counts, kept, dropped } = self;
        let mut tenants = TenantNumbers::default();
        // A kept span takes about seven bytes, a kept trace 40 beside them.
        let kept_spans: usize = kept.iter().map(|decision| decision.spans.len()).sum();
        let mut body =
            Vec::with_capacity(64 * counts.len() + 48 * kept.len() + 8 * kept_spans + 18 * dropped.len());
        put_varint(&mut body, count(counts.len()));
        for (tenant, counts) in counts {
            put_varint(&mut body, tenants.number(tenant));
            counts.put(&mut body);
        }
        put_varint(&mut body, count(kept.len()));
        for decision in kept {
            put_varint(&mut body, tenants.number(&decision.tenant));
            decision.put(*at, &mut body);
        }
        put_varint(&mut body, count(dropped.len()));
        for decision in dropped {
            let DroppedDecision { tenant, trace_id, shed } = decision;
            put_varint(&mut body, 2 * tenants.number(tenant) + u64::from(*shed));
            body.extend(trace_id.0);
        }

        let mut out = Vec::with_capacity(body.len() + 256);
        out.push(SETTLEMENT_VERSION);
        put_varint(&mut out, u64::from(shard.0));
        put_varint(&mut out, u64::from(*shards));
        out.extend(at.0.to_le_bytes());
        for offsets in [frontier, watermark] {
            put_varint(&mut out, count(offsets.len()));
            offsets.iter().for_each(|offset| put_varint(&mut out, offset.0));
        }
        put_varint(&mut out, count(tenants.names.len()));
        tenants.names.iter().for_each(|tenant| put_bytes(&mut out, tenant.as_str().as_bytes()));
        out.extend(body);
        out
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::SettlementVersion`] for a record of a newer version, [`Error::Settlement`] for a damaged one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        match bytes.split_first() {
            Some((&SETTLEMENT_VERSION, rest)) => {
                Self::read(&mut Cursor::new(rest)).map_err(Error::Settlement)
            }
            Some((&version, _)) => Err(Error::SettlementVersion(version)),
            None => Err(Error::Settlement(store_index::Error::Truncated { position: 0 })),
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, store_index::Error> {
        let shard = ShardId(cursor.varint_u16()?);
        let shards = cursor.varint_u16()?;
        let at = UnixNanos(cursor.u64_le()?);
        let frontier = many(cursor, 1, |cursor| cursor.varint().map(Offset))?;
        let watermark = many(cursor, 1, |cursor| cursor.varint().map(Offset))?;
        let names = many(cursor, 2, read_tenant)?;
        let named = |number: u64| {
            let name = usize::try_from(number).ok().and_then(|number| names.get(number));
            name.cloned().ok_or(store_index::Error::Corrupt { what: "a tenant" })
        };
        let counts = many(cursor, 14, |cursor| Ok((named(cursor.varint()?)?, TenantCounts::read(cursor)?)))?;
        let kept = many(cursor, 22, |cursor| KeptDecision::read(named(cursor.varint()?)?, at, cursor))?;
        let dropped = many(cursor, 17, |cursor| {
            let number = cursor.varint()?;
            Ok(DroppedDecision {
                tenant: named(number / 2)?,
                trace_id: TraceId(cursor.array()?),
                shed: number % 2 == 1,
            })
        })?;
        if !cursor.is_empty() {
            return Err(store_index::Error::Corrupt { what: "the end" });
        }
        Ok(Self { shard, shards, at, frontier, watermark, counts, kept, dropped })
    }
}

impl KeptDecision {
    fn put(&self, at: UnixNanos, out: &mut Vec<u8>) {
        let Self { tenant: _, trace_id, trace_start, decided_at, reason, threshold, complete, spans } = self;
        out.extend(trace_id.0);
        put_delta(out, at.0, trace_start.0);
        put_delta(out, at.0, decided_at.0);
        put_verdict(out, *reason, *complete);
        put_threshold(out, *threshold);
        put_varint(out, count(spans.len()));
        let mut before = SpanLocation::default();
        for span in spans {
            let SpanLocation { partition, offset, range: BodyRange { position, length } } = *span;
            put_varint(out, u64::from(partition.0));
            put_delta(out, before.offset.0, offset.0);
            put_delta(out, u64::from(before.range.position), u64::from(position));
            put_varint(out, u64::from(length));
            before = *span;
        }
    }

    fn read(tenant: Tenant, at: UnixNanos, cursor: &mut Cursor<'_>) -> Result<Self, store_index::Error> {
        let trace_id = TraceId(cursor.array()?);
        let trace_start = UnixNanos(cursor.delta(at.0)?);
        let decided_at = UnixNanos(cursor.delta(at.0)?);
        let (reason, complete) = verdict(cursor)?;
        let threshold = threshold(cursor)?;
        let mut before = SpanLocation::default();
        let spans = many(cursor, 4, |cursor| {
            let partition = PartitionId(cursor.varint_u16()?);
            let offset = Offset(cursor.delta(before.offset.0)?);
            let position = cursor.delta(u64::from(before.range.position))?;
            let position =
                u32::try_from(position).ok().ok_or(store_index::Error::Corrupt { what: "a position" })?;
            let length = cursor.varint_u32()?;
            before = SpanLocation { partition, offset, range: BodyRange { position, length } };
            Ok(before)
        })?;
        Ok(Self { tenant, trace_id, trace_start, decided_at, reason, threshold, complete, spans })
    }
}

/// Gives numbers to the tenants of a record as they come.
#[derive(Default)]
struct TenantNumbers<'a> {
    numbers: HashMap<&'a Tenant, u64>,
    names: Vec<&'a Tenant>,
    last: Option<(&'a Tenant, u64)>,
}

impl<'a> TenantNumbers<'a> {
    fn number(&mut self, tenant: &'a Tenant) -> u64 {
        // Traces of one tenant come in a row.
        if let Some((last, number)) = self.last
            && last == tenant
        {
            return number;
        }
        let number = *self.numbers.entry(tenant).or_insert_with(|| {
            self.names.push(tenant);
            count(self.names.len() - 1)
        });
        self.last = Some((tenant, number));
        number
    }
}

pub(crate) fn read_tenant(cursor: &mut Cursor<'_>) -> Result<Tenant, store_index::Error> {
    let name = std::str::from_utf8(cursor.bytes()?).ok().and_then(|name| Tenant::new(name).ok());
    name.ok_or(store_index::Error::Corrupt { what: "a tenant" })
}

/// A count and as many things, each of at least `bytes_min` bytes.
fn many<'a, T>(
    cursor: &mut Cursor<'a>,
    bytes_min: usize,
    mut read: impl FnMut(&mut Cursor<'a>) -> Result<T, store_index::Error>,
) -> Result<Vec<T>, store_index::Error> {
    let count = cursor.count_of(bytes_min)?;
    (0..count).map(|_| read(cursor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn tenants() -> impl Strategy<Value = Tenant> {
        "[a-c]{1,2}".prop_map(|name| Tenant::new(&name).unwrap())
    }

    fn locations() -> impl Strategy<Value = SpanLocation> {
        (any::<u16>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(partition, offset, position, length)| SpanLocation {
                partition: PartitionId(partition),
                offset: Offset(offset),
                range: BodyRange { position, length },
            },
        )
    }

    fn counts() -> impl Strategy<Value = TenantCounts> {
        any::<[u64; 13]>().prop_map(|n| TenantCounts {
            counts: Counts {
                arrived: n[0],
                kept: n[1],
                sampled_out: n[2],
                shed: n[3],
                expired: n[4],
                refused: n[5],
            },
            kept_spans: [n[6], n[7], n[8]],
            kept_traces: [n[9], n[10], n[11]],
            dropped_traces: n[12],
        })
    }

    fn kept() -> impl Strategy<Value = KeptDecision> {
        let numbers = (any::<u64>(), any::<u64>(), 0..=1u64 << 56, 0..3usize, any::<bool>());
        (tenants(), any::<[u8; 16]>(), numbers, vec(locations(), 0..4)).prop_map(
            |(tenant, id, (trace_start, decided_at, bits, reason, complete), spans)| KeptDecision {
                tenant,
                trace_id: TraceId(id),
                trace_start: UnixNanos(trace_start),
                decided_at: UnixNanos(decided_at),
                reason: Reason::ALL[reason],
                threshold: Threshold::from_bits(bits),
                complete,
                spans,
            },
        )
    }

    fn dropped() -> impl Strategy<Value = DroppedDecision> {
        (tenants(), any::<[u8; 16]>(), any::<bool>()).prop_map(|(tenant, id, shed)| DroppedDecision {
            tenant,
            trace_id: TraceId(id),
            shed,
        })
    }

    prop_compose! {
        fn settlements()(
            (shard, shards, at) in any::<(u16, u16, u64)>(),
            frontier in vec(any::<u64>().prop_map(Offset), 0..4),
            watermark in vec(any::<u64>().prop_map(Offset), 0..4),
            counts in vec((tenants(), counts()), 0..3),
            kept in vec(kept(), 0..4),
            dropped in vec(dropped(), 0..4),
        ) -> Settlement {
            Settlement { shard: ShardId(shard), shards, at: UnixNanos(at), frontier, watermark, counts, kept, dropped }
        }
    }

    #[test]
    fn a_record_of_a_newer_version_is_named_as_such() {
        assert!(matches!(Settlement::decode(&[9, 1, 2]), Err(Error::SettlementVersion(9))));
        assert!(matches!(Settlement::decode(&[]), Err(Error::Settlement(_))));
    }

    #[test]
    fn a_count_that_nothing_follows_is_refused_before_it_allocates() {
        let mut bytes = vec![SETTLEMENT_VERSION, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        put_varint(&mut bytes, u64::MAX >> 8);
        assert!(matches!(Settlement::decode(&bytes), Err(Error::Settlement(_))));
    }

    #[test]
    fn usual_decisions_are_small() {
        let at = UnixNanos(1_800_000_000_000_000_000);
        let one =
            |n: u8| DroppedDecision { tenant: Tenant::default(), trace_id: TraceId([n; 16]), shed: false };
        let mut settlement = Settlement {
            shard: ShardId(0),
            shards: 1,
            at,
            frontier: vec![Offset(1)],
            watermark: vec![Offset(1)],
            counts: vec![],
            kept: vec![],
            dropped: vec![],
        };
        let empty = settlement.encode().len();
        settlement.dropped = (0..100).map(one).collect();
        assert!(settlement.encode().len() - empty < 100 * 18);
    }

    #[test]
    fn counts_add_up_term_by_term() {
        let mut sum = TenantCounts { kept_spans: [1, 2, 3], dropped_traces: 1, ..TenantCounts::default() };
        sum.add(TenantCounts { kept_spans: [10, 20, 30], kept_traces: [0, 0, 7], ..sum });
        assert_eq!((sum.kept_spans, sum.kept_traces, sum.dropped_traces), ([11, 22, 33], [0, 0, 7], 2));
    }

    proptest! {
        #[test]
        fn settlements_come_back_as_they_were_written(settlement in settlements()) {
            prop_assert_eq!(Settlement::decode(&settlement.encode()).unwrap(), settlement);
        }

        #[test]
        fn cut_or_altered_settlements_never_panic(
            settlement in settlements(), at: prop::sample::Index, byte: u8
        ) {
            let mut bytes = settlement.encode();
            let at = at.index(bytes.len());
            prop_assert!(Settlement::decode(&bytes[..at]).is_err(), "an incomplete record was accepted");
            bytes[at] = byte;
            let _decoded = Settlement::decode(&bytes);
        }

        #[test]
        fn any_bytes_never_panic(mut bytes: Vec<u8>) {
            let _decoded = Settlement::decode(&bytes);
            bytes.insert(0, SETTLEMENT_VERSION);
            let _decoded = Settlement::decode(&bytes);
        }
    }
}

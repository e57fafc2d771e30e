//! What a run sends, request by request, as a function of its options: templates, groups and the traits of traces.
//!
//! Requests come in groups that share traces: one request as a rule, several when traces are split, one more for late
//! spans. Reads no clock and touches no network; the generator and the verifier build the same plan from one ledger.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::random::{Random, mix};
use crate::shape::{self, Shape, SpanDraft, Traits};
use crate::template::{self, BodyTemplate, Filling, Moment, Placed};

/// Templates hold about this many spans: enough variety to be no gift to caches and compressors, few enough to build
/// in a moment.
const POOL_SPANS: usize = 32_768;

/// Requests of a group whose traces are split over requests.
const SPLIT_REQUESTS: u32 = 4;

/// Everything a run's bytes follow from, beside the moments of its groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanOptions {
    /// The kind of traffic.
    pub(crate) shape: Shape,
    /// Spans of a request.
    pub(crate) spans_per_request: u32,
    /// Spans of a trace.
    pub(crate) spans_per_trace: u32,
    /// How many services take part.
    pub(crate) services: u16,
    /// Share of traces with an error.
    pub(crate) errors: f64,
    /// Share of traces that are slow.
    pub(crate) slow: f64,
    /// Share of traces whose last span comes later.
    pub(crate) late: f64,
    /// Share of traces whose root never comes.
    pub(crate) no_root: f64,
    /// Spans of a trace are spread over requests, in any order.
    pub(crate) out_of_order: bool,
    /// Where every id comes from.
    pub(crate) seed: u64,
}

impl PlanOptions {
    fn check(&self) -> Result<(), Error> {
        let refuse = |what: &str| Err(Error::Options(what.to_owned()));
        if !(1..=100_000).contains(&self.spans_per_request) {
            return refuse("--spans-per-request must be 1 to 100000");
        }
        if !(1..=1_000_000).contains(&self.spans_per_trace) {
            return refuse("--spans-per-trace must be 1 to 1000000");
        }
        if !(1..=1_000).contains(&self.services) {
            return refuse("--services must be 1 to 1000");
        }
        let shares = [self.errors, self.slow, self.late, self.no_root];
        if !shares.iter().all(|share| (0.0..=1.0).contains(share)) {
            return refuse("fractions must lie between 0 and 1");
        }
        Ok(())
    }

    fn requests_per_group(&self) -> u32 {
        if self.spans_per_trace > self.spans_per_request {
            self.spans_per_trace.div_ceil(self.spans_per_request)
        } else if self.out_of_order {
            SPLIT_REQUESTS
        } else {
            1
        }
    }

    /// The spans of each trace of a group, before missing roots are taken out; the last trace takes what is left.
    fn trace_sizes(&self) -> Vec<u32> {
        let spans = if self.spans_per_trace > self.spans_per_request {
            self.spans_per_trace
        } else {
            self.spans_per_request * self.requests_per_group()
        };
        let whole = spans / self.spans_per_trace;
        let rest = spans % self.spans_per_trace;
        let mut sizes = vec![self.spans_per_trace; whole as usize];
        sizes.extend((rest > 0).then_some(rest));
        sizes
    }
}

/// A trace of a group's template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceTemplate {
    /// What is special about it.
    pub(crate) traits: Traits,
    /// How many spans it sends.
    pub(crate) span_count: u32,
}

/// Requests that share traces.
#[derive(Debug)]
pub(crate) struct GroupTemplate {
    /// Bodies in the order they are sent; when late spans exist, the last one holds them.
    pub(crate) bodies: Vec<BodyTemplate>,
    /// Its traces.
    pub(crate) traces: Vec<TraceTemplate>,
}

/// What a run sends.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it follows from.
    pub(crate) options: PlanOptions,
    /// Group number n uses template n modulo their count.
    pub(crate) groups: Vec<GroupTemplate>,
    /// The `Resource` messages by [`SpanSlot::resource`](template::SpanSlot).
    pub(crate) resources: Vec<Vec<u8>>,
    traces_per_group: u64,
}

impl Plan {
    /// Builds all templates.
    ///
    /// # Errors
    /// [`Error::Options`] when an option is out of range.
    pub(crate) fn new(options: PlanOptions) -> Result<Self, Error> {
        options.check()?;
        let sizes = options.trace_sizes();
        let spans: usize = sizes.iter().map(|&size| size as usize).sum();
        let group_count = (POOL_SPANS / spans).max(1);
        let resources = (0..options.services)
            .map(|index| template::encode_resource(&shape::resource(options.shape, index)))
            .collect();
        let mut random = Random::new(mix(options.seed));
        let traits = assign_traits(&options, group_count * sizes.len(), &mut random);
        let mut plan = Self { options, groups: Vec::new(), resources, traces_per_group: sizes.len() as u64 };
        for traits in traits.chunks_exact(sizes.len()) {
            let group = plan.build_group(&sizes, traits, &mut random);
            plan.groups.push(group);
        }
        Ok(plan)
    }

    fn build_group(&self, sizes: &[u32], traits: &[Traits], random: &mut Random) -> GroupTemplate {
        let options = &self.options;
        let drafts: Vec<Vec<SpanDraft>> = sizes
            .iter()
            .zip(traits)
            .map(|(&size, &traits)| shape::draft(options.shape, traits, size, options.services, random))
            .collect();
        let mut on_time = Vec::new();
        let mut late = Vec::new();
        let mut traces = Vec::new();
        for (trace, (draft, &traits)) in (0u32..).zip(drafts.iter().zip(traits)) {
            let first = u32::from(traits.rootless && draft.len() > 1);
            let spans: Vec<Placed<'_>> = (0u32..)
                .take(draft.len())
                .skip(first as usize)
                .map(|index| Placed { trace, index, draft })
                .collect();
            traces.push(TraceTemplate { traits, span_count: u32::try_from(spans.len()).unwrap_or(u32::MAX) });
            let in_time = spans.len() - usize::from(traits.late && spans.len() > 1);
            on_time.extend_from_slice(&spans[..in_time]);
            late.extend_from_slice(&spans[in_time..]);
        }
        if options.out_of_order {
            random.shuffle(&mut on_time);
        }
        let filling = match options.shape {
            Shape::S | Shape::L => Filling::User,
            Shape::Tracegen => Filling::Counting,
            Shape::Random => Filling::Random,
        };
        let scope = template::encode_scope();
        let body = |spans: &[Placed<'_>]| BodyTemplate::new(spans, &self.resources, &scope, filling);
        let mut bodies: Vec<BodyTemplate> =
            on_time.chunks(options.spans_per_request as usize).map(&body).collect();
        // Spans that were taken out can leave the last request empty, but every group has the same requests.
        bodies.resize_with(options.requests_per_group() as usize, || body(&[]));
        if self.has_late() {
            bodies.push(body(&late));
        }
        GroupTemplate { bodies, traces }
    }

    /// Whether groups end with a body of late spans.
    pub(crate) fn has_late(&self) -> bool {
        self.options.late > 0.0
    }

    /// Whether body `number` of a group is the one of late spans.
    pub(crate) fn is_late(&self, number: usize) -> bool {
        self.has_late() && number + 1 == self.bodies_per_group()
    }

    /// How many bodies a group has, the late one included.
    pub(crate) fn bodies_per_group(&self) -> usize {
        self.options.requests_per_group() as usize + usize::from(self.has_late())
    }

    /// How many traces a group has.
    pub(crate) fn traces_per_group(&self) -> u64 {
        self.traces_per_group
    }

    /// The template of group `number`.
    pub(crate) fn group(&self, number: u64) -> &GroupTemplate {
        &self.groups[self.template_index(number)]
    }

    /// Which template group `number` uses.
    pub(crate) fn template_index(&self, number: u64) -> usize {
        usize::try_from(number % self.groups.len() as u64).unwrap_or(0)
    }

    /// The id of trace `index` of group `number`.
    pub(crate) fn trace_id(&self, number: u64, index: u32) -> [u8; 16] {
        template::trace_id(self.options.seed, number * self.traces_per_group + u64::from(index))
    }

    fn moment(&self, number: u64, base_unix_nanos: u64) -> Moment {
        Moment {
            seed: self.options.seed,
            first_trace: number * self.traces_per_group,
            base_unix_nanos,
            spans_per_trace: self.options.spans_per_trace,
        }
    }

    /// Body `body` of group `number` at its moment, behind a gRPC prefix.
    pub(crate) fn body(&self, number: u64, body: usize, base_unix_nanos: u64) -> Vec<u8> {
        let template = &self.group(number).bodies[body];
        let mut bytes = template.bytes.clone();
        template.patch(&mut bytes, self.moment(number, base_unix_nanos));
        bytes
    }

    /// As [`Self::body`], in place: `slot` holds the last use of this body and gets the new one. Copies only while
    /// the last use is still being sent.
    pub(crate) fn refill(&self, number: u64, body: usize, base_unix_nanos: u64, slot: &mut Bytes) -> Bytes {
        let mut bytes = std::mem::take(slot).try_into_mut().unwrap_or_else(|busy| BytesMut::from(&busy[..]));
        self.group(number).bodies[body].patch(&mut bytes, self.moment(number, base_unix_nanos));
        *slot = bytes.freeze();
        slot.clone()
    }

    /// One set of bodies to refill, for one thread: by template, then by body.
    pub(crate) fn slots(&self) -> Vec<Vec<Bytes>> {
        let copy = |body: &BodyTemplate| Bytes::from(BytesMut::from(&body.bytes[..]));
        self.groups.iter().map(|group| group.bodies.iter().map(copy).collect()).collect()
    }
}

/// Gives each trait to its exact share of `count` traces (to one at least, when the share is above 0), independently.
fn assign_traits(options: &PlanOptions, count: usize, random: &mut Random) -> Vec<Traits> {
    let mut traits = vec![Traits::default(); count];
    let mut order: Vec<usize> = (0..count).collect();
    let mut give = |share: f64, set: fn(&mut Traits)| {
        random.shuffle(&mut order);
        for &trace in order.iter().take(share_of(count, share)) {
            set(&mut traits[trace]);
        }
    };
    give(options.errors, |traits| traits.error = true);
    give(options.slow, |traits| traits.slow = true);
    give(options.no_root, |traits| traits.rootless = true);
    give(options.late, |traits| traits.late = true);
    traits
}

fn share_of(count: usize, share: f64) -> usize {
    if share <= 0.0 {
        return 0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a pool has far fewer than 2^52 traces")]
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the count")]
    #[expect(clippy::cast_sign_loss, reason = "a share is not negative")]
    let exact = (count as f64 * share).round() as usize;
    exact.clamp(1, count)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::{Fields, Value, each_message};
    use prost::Message;
    use std::collections::{HashMap, HashSet};

    pub(crate) fn options(shape: Shape) -> PlanOptions {
        PlanOptions {
            shape,
            spans_per_request: 500,
            spans_per_trace: shape.spans_per_trace_default(),
            services: shape.services_default(),
            errors: 0.0,
            slow: 0.0,
            late: 0.0,
            no_root: 0.0,
            out_of_order: false,
            seed: 42,
        }
    }

    /// The span messages of a body behind its gRPC prefix.
    pub(crate) fn spans(body: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for resource_spans in each_message(&body[5..], 1) {
            for scope_spans in each_message(resource_spans.unwrap(), 2) {
                found.extend(each_message(scope_spans.unwrap(), 2).map(|span| span.unwrap().to_vec()));
            }
        }
        found
    }

    fn bytes_field(message: &[u8], number: u64) -> Vec<u8> {
        each_message(message, number).next().map(|found| found.unwrap().to_vec()).unwrap_or_default()
    }

    fn fixed64(message: &[u8], number: u64) -> u64 {
        let found = Fields::new(message).map(Result::unwrap).find(|field| field.number == number);
        match found.map(|field| field.value) {
            Some(Value::Fixed64(value)) => value,
            other => panic!("field {number} is {other:?}"),
        }
    }

    fn attributes(span: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        each_message(span, 9)
            .map(Result::unwrap)
            .map(|pair| (text(bytes_field(pair, 1)), text(bytes_field(&bytes_field(pair, 2), 1))))
            .collect()
    }

    #[test]
    fn shapes_weigh_what_they_promise() {
        for (shape, low, high) in [(Shape::S, 395, 425), (Shape::L, 775, 825)] {
            let plan = Plan::new(options(shape)).unwrap();
            let bytes: usize = plan.groups.iter().map(|group| group.bodies[0].bytes.len()).sum();
            let spans: usize = plan.groups.iter().map(|group| group.bodies[0].spans.len()).sum();
            let each = bytes / spans;
            assert!((low..=high).contains(&each), "{shape:?}: {each} bytes a span");
        }
    }

    #[test]
    fn a_patched_body_reads_as_the_trees_that_were_planned() {
        let plan = Plan::new(options(Shape::S)).unwrap();
        let base = 1_700_000_000_000_000_000;
        let found = spans(&plan.body(5, 0, base));
        assert_eq!(found.len(), 500);
        let mut by_trace: HashMap<Vec<u8>, Vec<&Vec<u8>>> = HashMap::new();
        for span in &found {
            by_trace.entry(bytes_field(span, 1)).or_default().push(span);
        }
        assert_eq!(by_trace.len(), 63);
        for index in 0..63 {
            let spans = &by_trace[&plan.trace_id(5, index).to_vec()];
            let ids: HashSet<Vec<u8>> = spans.iter().map(|span| bytes_field(span, 2)).collect();
            assert_eq!(ids.len(), spans.len());
            let roots = spans.iter().filter(|span| bytes_field(span, 4).is_empty()).count();
            assert_eq!(roots, 1);
            for span in spans {
                let parent = bytes_field(span, 4);
                assert!(parent.is_empty() || (parent != bytes_field(span, 2) && ids.contains(&parent)));
                assert!(fixed64(span, 7) < fixed64(span, 8) && fixed64(span, 8) <= base + 10);
            }
        }
    }

    #[test]
    fn bodies_are_what_a_library_would_write() {
        for shape in [Shape::S, Shape::L, Shape::Tracegen, Shape::Random] {
            let plan = Plan::new(PlanOptions { errors: 0.2, ..options(shape) }).unwrap();
            let body = plan.body(1, 0, 10_000_000_000).split_off(5);
            let decoded = ingest_otlp::messages::ExportTraceServiceRequest::decode(&body[..]).unwrap();
            assert!(decoded.encode_to_vec() == body, "{shape:?}");
        }
    }

    #[test]
    fn bodies_refilled_in_place_equal_bodies_made_anew() {
        for shape in [Shape::S, Shape::L, Shape::Tracegen, Shape::Random] {
            let plan = Plan::new(PlanOptions { errors: 0.2, ..options(shape) }).unwrap();
            let mut slot = Bytes::from(plan.groups[0].bodies[0].bytes.clone());
            let rounds = plan.groups.len() as u64;
            let first = plan.refill(0, 0, 10_000_000_000, &mut slot);
            assert_eq!(first[..], plan.body(0, 0, 10_000_000_000)[..]);
            // The first use is still held here, so the second must not write over it.
            let second = plan.refill(rounds, 0, 20_000_000_000, &mut slot);
            assert_eq!(first[..], plan.body(0, 0, 10_000_000_000)[..]);
            assert_eq!(second[..], plan.body(rounds, 0, 20_000_000_000)[..]);
            assert_ne!(first, second);
        }
    }

    #[test]
    fn counted_attributes_count_up_and_random_ones_are_distinct() {
        let plan = Plan::new(options(Shape::Tracegen)).unwrap();
        let all = spans(&plan.body(0, 0, 10_000_000_000));
        let second = attributes(&all[1]);
        let expected: Vec<(String, String)> =
            (11..22).map(|n| (format!("attr_{n:02}"), format!("val_{n:03}"))).collect();
        assert_eq!(second, expected);
        let later = attributes(&spans(&plan.body(3, 0, 10_000_000_000))[4]);
        let number = (3 * 50 * 10 + 4) * 11;
        assert_eq!(later[0], (format!("attr_{:02}", number % 97), format!("val_{:03}", number % 1_000)));

        let plan = Plan::new(options(Shape::Random)).unwrap();
        let mut values = HashSet::new();
        for span in spans(&plan.body(7, 0, 10_000_000_000)) {
            let attributes = attributes(&span);
            let keys: HashSet<&String> = attributes.iter().map(|(key, _)| key).collect();
            assert_eq!(keys.len(), 11);
            values.extend(attributes.iter().map(|(_, value)| value.clone()));
        }
        assert!(values.len() > 950, "{}", values.len());
    }

    #[test]
    fn traits_have_their_exact_shares() {
        let plan =
            Plan::new(PlanOptions { errors: 0.01, slow: 0.02, no_root: 0.5, ..options(Shape::S) }).unwrap();
        let traces: Vec<&TraceTemplate> = plan.groups.iter().flat_map(|group| &group.traces).collect();
        let count = |has: fn(&Traits) -> bool| traces.iter().filter(|trace| has(&trace.traits)).count();
        assert_eq!(count(|traits| traits.error), share_of(traces.len(), 0.01));
        assert_eq!(count(|traits| traits.slow), share_of(traces.len(), 0.02));
        assert_eq!(count(|traits| traits.rootless), share_of(traces.len(), 0.5));
        assert!(traces.iter().any(|trace| trace.span_count == 7));
    }

    #[test]
    fn late_spans_leave_their_request_and_come_last() {
        let plan = Plan::new(PlanOptions { late: 0.5, ..options(Shape::S) }).unwrap();
        assert_eq!(plan.bodies_per_group(), 2);
        let group = &plan.groups[0];
        let late = group.traces.iter().filter(|trace| trace.traits.late).count();
        assert!(late > 10);
        assert_eq!(group.bodies[1].spans.len(), late);
        assert_eq!(group.bodies[0].spans.len(), 500 - late);
    }

    #[test]
    fn split_traces_are_spread_over_requests_and_huge_ones_cut() {
        let plan = Plan::new(PlanOptions { out_of_order: true, ..options(Shape::S) }).unwrap();
        let group = &plan.groups[0];
        assert_eq!(group.bodies.len(), 4);
        let requests_of_first: HashSet<usize> =
            (0..4).filter(|&body| group.bodies[body].spans.iter().any(|slot| slot.trace == 0)).collect();
        assert!(requests_of_first.len() > 1);

        let plan = Plan::new(PlanOptions { spans_per_trace: 1_250, ..options(Shape::S) }).unwrap();
        let counts: Vec<u32> = plan.groups[0].bodies.iter().map(BodyTemplate::span_count).collect();
        assert_eq!(counts, [500, 500, 250]);
        assert_eq!(plan.traces_per_group(), 1);
    }
}

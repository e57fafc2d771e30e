//! Judges a trace that came back against what was sent: nothing missing, nothing twice, nothing changed but the
//! sampling tracestate. Sans I/O.

use std::collections::HashMap;

use serde::Serialize;

use crate::error::Error;
use crate::ledger::Delivery;
use crate::plan::Plan;
use crate::wire::{Field, Fields, Value, each_message};

/// `Span.trace_state`, which the appliance may write.
const TRACE_STATE: u64 = 3;

/// What should be true of one trace by its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Claim {
    /// Spans that were acknowledged.
    pub(crate) spans_acknowledged: u32,
    /// A span with an error was acknowledged: it must be kept.
    pub(crate) error: bool,
    /// That span came late, when the rest of its trace may have been let go already.
    pub(crate) late_error: bool,
    /// Its root was acknowledged and took seconds: it should be kept.
    pub(crate) slow: bool,
    /// It is none of these by what was sent, and all of it was acknowledged.
    pub(crate) plain: bool,
}

/// The claims of all traces of a delivery, by index.
pub(crate) fn claims(plan: &Plan, delivery: &Delivery) -> Vec<Claim> {
    let group = plan.group(delivery.group);
    let mut claims = vec![Claim::default(); group.traces.len()];
    for (number, body) in group.bodies.iter().enumerate() {
        if !delivery.acknowledged[number] {
            continue;
        }
        for slot in &body.spans {
            let claim = &mut claims[slot.trace as usize];
            claim.spans_acknowledged += 1;
            claim.error |= slot.is_error();
            claim.late_error |= slot.is_error() && plan.is_late(number);
            claim.slow |= slot.is_root() && group.traces[slot.trace as usize].traits.slow;
        }
    }
    for (claim, trace) in claims.iter_mut().zip(&group.traces) {
        let special = trace.traits.error || trace.traits.slow;
        claim.plain = !special && claim.spans_acknowledged == trace.span_count;
    }
    claims
}

/// A span as it was sent.
#[derive(Debug)]
pub(crate) struct SentSpan<'a> {
    bytes: Vec<u8>,
    resource: &'a [u8],
    /// It must be there; otherwise it may be there or not.
    required: bool,
}

/// The bodies of a delivery as they were sent, made again once for all of its traces.
pub(crate) struct SentBodies<'a> {
    plan: &'a Plan,
    delivery: &'a Delivery,
    /// By number; nothing for those that were not sent.
    bodies: Vec<Option<Vec<u8>>>,
}

impl<'a> SentBodies<'a> {
    /// Makes them.
    pub(crate) fn new(plan: &'a Plan, delivery: &'a Delivery) -> Self {
        let body = |number: usize| plan.body(delivery.group, number, delivery.base_unix_nanos);
        let bodies = (0..).zip(&delivery.sent).map(|(number, sent)| sent.then(|| body(number))).collect();
        Self { plan, delivery, bodies }
    }

    /// The spans of trace `index`, by span id. Required is what was acknowledged; but when the error of a trace comes
    /// late, as its claim says, the decision may have let the others go, so then only what came late is.
    pub(crate) fn spans(&self, index: u32, claim: Claim) -> HashMap<[u8; 8], SentSpan<'a>> {
        let Self { plan, delivery, bodies } = self;
        let templates = &plan.group(delivery.group).bodies;
        let mut spans = HashMap::new();
        for (number, (template, body)) in templates.iter().zip(bodies).enumerate() {
            let Some(body) = body else { continue };
            for slot in template.spans.iter().filter(|slot| slot.trace == index) {
                let sent = SentSpan {
                    bytes: slot.of(body).to_vec(),
                    resource: &plan.resources[usize::from(slot.resource)],
                    required: delivery.acknowledged[number] && (plan.is_late(number) || !claim.late_error),
                };
                spans.insert(slot.span_id(body), sent);
            }
        }
        spans
    }
}

/// What is wrong with one trace, or with all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Findings {
    /// Acknowledged spans that are not there.
    pub(crate) spans_missing: u64,
    /// Spans that are there more than once.
    pub(crate) spans_doubled: u64,
    /// Spans whose bytes, resource or scope are not those that were sent.
    pub(crate) spans_altered: u64,
    /// Spans that were never sent.
    pub(crate) spans_extra: u64,
}

impl Findings {
    /// Adds those of another trace.
    pub(crate) fn add(&mut self, other: Self) {
        let Self { spans_missing, spans_doubled, spans_altered, spans_extra } = other;
        self.spans_missing += spans_missing;
        self.spans_doubled += spans_doubled;
        self.spans_altered += spans_altered;
        self.spans_extra += spans_extra;
    }

    /// Whether all is well.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Compares an answer's `TracesData` with what was sent. `whole` says that everything required must be there.
///
/// # Errors
/// [`Error::Malformed`] when the answer is no `TracesData`.
pub(crate) fn compare(
    sent: &HashMap<[u8; 8], SentSpan<'_>>,
    scope: &[u8],
    answer: &[u8],
    whole: bool,
) -> Result<Findings, Error> {
    let mut findings = Findings::default();
    let mut seen: HashMap<[u8; 8], u64> = HashMap::new();
    for resource_spans in each_message(answer, 1) {
        let resource_spans = resource_spans?;
        let resource = first(resource_spans, 1)?;
        for scope_spans in each_message(resource_spans, 2) {
            let scope_spans = scope_spans?;
            let same_scope = first(scope_spans, 1)? == scope;
            for span in each_message(scope_spans, 2) {
                let (id, bytes) = without_trace_state(span?)?;
                let times = seen.entry(id).or_default();
                *times += 1;
                match sent.get(&id) {
                    None => findings.spans_extra += 1,
                    Some(_) if *times > 1 => findings.spans_doubled += 1,
                    Some(sent) if !same_scope || sent.resource != resource || sent.bytes != bytes => {
                        findings.spans_altered += 1;
                    }
                    Some(_) => {}
                }
            }
        }
    }
    if whole {
        let missing = sent.iter().filter(|(id, span)| span.required && !seen.contains_key(*id));
        findings.spans_missing = missing.count() as u64;
    }
    Ok(findings)
}

fn first(message: &[u8], number: u64) -> Result<&[u8], Error> {
    each_message(message, number).next().unwrap_or(Ok(&[]))
}

fn without_trace_state(span: &[u8]) -> Result<([u8; 8], Vec<u8>), Error> {
    let mut id = [0; 8];
    let mut rest = Vec::with_capacity(span.len());
    for field in Fields::new(span) {
        let Field { number, value, raw } = field?;
        if let (2, Value::Bytes(bytes)) = (number, value) {
            id = bytes.try_into().map_err(|_length| Error::Malformed { what: "span id" })?;
        }
        if number != TRACE_STATE {
            rest.extend_from_slice(raw);
        }
    }
    Ok((id, rest))
}

/// A share and the interval it says something about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Share {
    pub(crate) count: u64,
    pub(crate) of: u64,
    pub(crate) share: f64,
    /// Wilson's interval at 99.9 %.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Share {
    /// `count` of `of`.
    pub(crate) fn new(count: u64, of: u64) -> Self {
        /// 99.9 % of a normal distribution lie within so many deviations.
        const Z: f64 = 3.2905;
        #[expect(clippy::cast_precision_loss, reason = "counts of traces are far below 2^52")]
        let (k, n) = (count as f64, of.max(1) as f64);
        let share = k / n;
        let middle = share + Z * Z / (2.0 * n);
        let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        Self {
            count,
            of,
            share,
            low: ((middle - spread) / scale).max(0.0),
            high: ((middle + spread) / scale).min(1.0),
        }
    }

    /// Whether `expected` may be the true share.
    pub(crate) fn allows(self, expected: f64) -> bool {
        (self.low..=self.high).contains(&expected)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::PlanOptions;
    use crate::plan::tests::options;
    use crate::shape::Shape;
    use crate::template::encode_scope;
    use crate::wire::{put_bytes, put_header};

    const BASE: u64 = 1_700_000_000_000_000_000;

    /// The spans of one trace of a delivery.
    pub(crate) fn sent_spans<'a>(
        plan: &'a Plan,
        delivery: &'a Delivery,
        index: u32,
    ) -> HashMap<[u8; 8], SentSpan<'a>> {
        SentBodies::new(plan, delivery).spans(index, claims(plan, delivery)[index as usize])
    }

    fn delivery(plan: &Plan, acknowledged: bool) -> Delivery {
        let bodies = plan.bodies_per_group();
        Delivery {
            group: 3,
            base_unix_nanos: BASE,
            sent: vec![true; bodies],
            acknowledged: vec![acknowledged; bodies],
        }
    }

    /// A span for an answer: its resource and its bytes.
    pub(crate) type Told = (Vec<u8>, Vec<u8>);

    pub(crate) fn told(sent: &HashMap<[u8; 8], SentSpan<'_>>) -> Vec<Told> {
        sent.values().map(|span| (span.resource.to_vec(), span.bytes.clone())).collect()
    }

    /// A `TracesData` of these spans.
    pub(crate) fn answer(spans: &[Told]) -> Vec<u8> {
        let mut out = Vec::new();
        for (resource, span) in spans {
            let mut scope_spans = Vec::new();
            put_bytes(&mut scope_spans, 1, &encode_scope());
            put_bytes(&mut scope_spans, 2, span);
            let mut resource_spans = Vec::new();
            put_bytes(&mut resource_spans, 1, resource);
            put_bytes(&mut resource_spans, 2, &scope_spans);
            put_bytes(&mut out, 1, &resource_spans);
        }
        out
    }

    fn check(change: fn(&mut Vec<Told>), expected: Findings) {
        let plan = Plan::new(options(Shape::S)).unwrap();
        let delivery = delivery(&plan, true);
        let sent = sent_spans(&plan, &delivery, 7);
        assert_eq!(sent.len(), 8);
        let mut spans = told(&sent);
        change(&mut spans);
        assert_eq!(compare(&sent, &encode_scope(), &answer(&spans), true).unwrap(), expected);
    }

    #[test]
    fn a_trace_as_it_was_sent_passes_with_or_without_tracestate() {
        check(|_| {}, Findings::default());
        check(
            |spans| {
                for (_, span) in spans {
                    let tail = span.split_off(28);
                    put_header(span, 3, 11);
                    span.extend_from_slice(b"ot=th:fd70a");
                    span.extend(tail);
                }
            },
            Findings::default(),
        );
    }

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        let none = Findings::default();
        check(|spans| drop(spans.pop()), Findings { spans_missing: 1, ..none });
        check(|spans| spans.push(spans[0].clone()), Findings { spans_doubled: 1, ..none });
        check(|spans| spans[0].1[60] ^= 1, Findings { spans_altered: 1, ..none });
        check(|spans| spans[0].0.truncate(10), Findings { spans_altered: 1, ..none });
        check(|spans| spans[0].1[20] ^= 1, Findings { spans_missing: 1, spans_extra: 1, ..none });
    }

    #[test]
    fn spans_without_acknowledgement_may_be_missing_but_not_changed() {
        let plan = Plan::new(options(Shape::S)).unwrap();
        let delivery = delivery(&plan, false);
        let sent = sent_spans(&plan, &delivery, 7);
        let scope = encode_scope();
        assert!(compare(&sent, &scope, &[], true).unwrap().is_none());
        let mut spans = told(&sent);
        spans[0].1[60] ^= 1;
        assert_eq!(compare(&sent, &scope, &answer(&spans), true).unwrap().spans_altered, 1);
    }

    #[test]
    fn claims_follow_what_was_acknowledged() {
        let plan = Plan::new(PlanOptions { errors: 0.3, slow: 0.3, late: 0.3, ..options(Shape::S) }).unwrap();
        let all = claims(&plan, &delivery(&plan, true));
        let traits: Vec<_> = plan.group(3).traces.iter().map(|trace| trace.traits).collect();
        for (claim, traits) in all.iter().zip(&traits) {
            assert_eq!((claim.error, claim.slow), (traits.error, traits.slow));
            assert_eq!(claim.plain, !traits.error && !traits.slow);
        }
        assert!(all.iter().any(|claim| claim.error) && all.iter().any(|claim| claim.slow));
        let none = claims(&plan, &delivery(&plan, false));
        assert!(none.iter().all(|claim| *claim == Claim::default()));
    }

    #[test]
    fn an_error_that_comes_late_saves_itself_but_not_what_was_let_go() {
        let plan = Plan::new(PlanOptions { errors: 0.5, late: 1.0, ..options(Shape::S) }).unwrap();
        let delivery = Delivery { group: 0, ..delivery(&plan, true) };
        let claims = claims(&plan, &delivery);
        let find =
            |late: bool| claims.iter().position(|claim| claim.error && claim.late_error == late).unwrap();
        for (late, missing) in [(true, 1), (false, 8)] {
            let sent = sent_spans(&plan, &delivery, u32::try_from(find(late)).unwrap());
            let findings = compare(&sent, &encode_scope(), &[], true).unwrap();
            assert_eq!((sent.len(), findings.spans_missing), (8, missing));
        }
    }

    #[test]
    fn the_interval_of_a_share_holds_its_truth() {
        let share = Share::new(1_000, 100_000);
        assert!(share.allows(0.01) && !share.allows(0.012) && !share.allows(0.008));
        assert!((share.low - 0.00902).abs() < 0.0001 && (share.high - 0.01109).abs() < 0.0001);
        assert!(Share::new(0, 0).allows(0.5));
    }
}

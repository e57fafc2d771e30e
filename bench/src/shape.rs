//! What one trace looks like before it becomes bytes: a tree of drafted spans.
//!
//! Knows nothing of requests, ids or encodings.

use std::time::Duration;

use crate::catalog::{self, Attribute, Role};
use crate::random::Random;

/// The kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    /// About 410 bytes and 8 attributes a span: HTTP, RPC and database calls of a shop.
    S,
    /// About 800 bytes and 15 attributes a span: the same shop, more talkative.
    L,
    /// As Jaeger's generator: a root and its children of 123 µs, 11 attributes each whose key and value numbers count
    /// up modulo 97 and 1,000.
    Tracegen,
    /// 11 distinct keys of 97 and values of 1,000 drawn at random for every span.
    Random,
}

impl Shape {
    /// As the command line has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::S => "s",
            Self::L => "l",
            Self::Tracegen => "tracegen",
            Self::Random => "random",
        }
    }

    /// How many services take part when nothing else is said.
    pub(crate) fn services_default(self) -> u16 {
        match self {
            Self::S | Self::L => 12,
            Self::Tracegen => 1,
            Self::Random => 10,
        }
    }

    /// How many spans a trace has when nothing else is said.
    pub(crate) fn spans_per_trace_default(self) -> u32 {
        match self {
            Self::S | Self::L => 8,
            Self::Tracegen | Self::Random => 10,
        }
    }
}

/// How many keys Jaeger's generator numbers.
pub(crate) const KEYS: u64 = 97;
/// How many values it numbers.
pub(crate) const VALUES: u64 = 1_000;
/// How many attributes it gives a span.
pub(crate) const NUMBERED_ATTRIBUTES: usize = 11;

/// What is special about a trace. Several may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Traits {
    /// One span has status ERROR.
    pub(crate) error: bool,
    /// The root takes seconds.
    pub(crate) slow: bool,
    /// The root never comes.
    pub(crate) rootless: bool,
    /// The last span comes seconds later.
    pub(crate) late: bool,
}

/// A span before it has bytes. Times count from the start of its trace.
pub(crate) struct SpanDraft {
    pub(crate) service: u16,
    pub(crate) name: String,
    pub(crate) kind: u64,
    pub(crate) parent: Option<u32>,
    pub(crate) start: Duration,
    pub(crate) duration: Duration,
    pub(crate) error: bool,
    pub(crate) attributes: Vec<Attribute>,
}

/// One trace of `span_count` spans (1 at least) over `services` services. Span 0 is the root.
pub(crate) fn draft(
    shape: Shape,
    traits: Traits,
    span_count: u32,
    services: u16,
    random: &mut Random,
) -> Vec<SpanDraft> {
    let mut spans = match shape {
        Shape::S => shop(false, span_count, services, random),
        Shape::L => shop(true, span_count, services, random),
        Shape::Tracegen => generated(false, span_count, services, random),
        Shape::Random => generated(true, span_count, services, random),
    };
    if traits.slow {
        let wanted = Duration::from_millis(2_000 + random.below(3_000) as u64);
        let factor = wanted.as_secs_f64() / spans[0].duration.as_secs_f64();
        for span in &mut spans {
            span.start = span.start.mul_f64(factor);
            span.duration = span.duration.mul_f64(factor);
        }
    }
    if traits.error {
        // Never the root alone: a trace without its root must be an error trace all the same.
        let first = usize::from(spans.len() > 1);
        let at = first + random.below(spans.len() - first);
        spans[at].error = true;
    }
    spans
}

/// 5 to 50 ms, most near 16 ms: the logarithm is a sum of three draws, so its distribution is a bell.
fn root_duration(random: &mut Random) -> Duration {
    let bell = (random.unit() + random.unit() + random.unit()) / 3.0;
    Duration::from_secs_f64(0.005 * 10f64.powf(bell))
}

/// A call tree as a shop has it: servers call clients and databases, clients lead to the next service's server.
fn shop(talkative: bool, span_count: u32, services: u16, random: &mut Random) -> Vec<SpanDraft> {
    let entries = usize::from(services.min(3));
    let mut roles: Vec<Role> = Vec::new();
    let mut spans: Vec<SpanDraft> = Vec::new();
    for index in 0..span_count {
        let parent = index.checked_sub(1).map(|before| before / 2);
        let (role, service, start, duration) = match parent.map(|parent| parent as usize) {
            None => {
                let service = u16::try_from(random.below(entries)).unwrap_or(0);
                (Role::HttpServer, service, Duration::ZERO, root_duration(random))
            }
            Some(above) => {
                let duration = spans[above].duration.mul_f64(0.2 + 0.7 * random.unit());
                let slack = spans[above].duration - duration;
                let start = spans[above].start + slack.mul_f64(random.unit());
                let (role, service) = child(roles[above], spans[above].service, services, random);
                (role, service, start, duration)
            }
        };
        let said = catalog::say(role, &catalog::service_name(usize::from(service)), talkative, random);
        roles.push(role);
        spans.push(SpanDraft {
            service,
            name: said.name,
            kind: role.kind(),
            parent,
            start,
            duration,
            error: false,
            attributes: said.attributes,
        });
    }
    spans
}

fn child(parent: Role, service: u16, services: u16, random: &mut Random) -> (Role, u16) {
    match parent {
        Role::HttpClient => (Role::HttpServer, (service + 1) % services),
        Role::RpcClient => (Role::RpcServer, (service + 1) % services),
        _ => {
            let choices =
                [Role::HttpClient, Role::RpcClient, Role::RpcClient, Role::Database, Role::Internal];
            (choices[random.below(choices.len())], service)
        }
    }
}

/// A root with children in a row, as Jaeger's generator makes them. With `random_tags` every span, the root included,
/// carries the numbered attributes and belongs to the next service.
fn generated(random_tags: bool, span_count: u32, services: u16, random: &mut Random) -> Vec<SpanDraft> {
    const CHILD: Duration = Duration::from_micros(123);
    let children = span_count.saturating_sub(1);
    let first = u16::try_from(random.below(usize::from(services))).unwrap_or(0);
    let service = |index: u32| {
        let step = if random_tags { u16::try_from(index % u32::from(services)).unwrap_or(0) } else { 0 };
        (first + step) % services
    };
    let numbered = || vec![Attribute::numbered(); NUMBERED_ATTRIBUTES];
    let root = SpanDraft {
        service: service(0),
        name: "lets-go".to_owned(),
        kind: Role::HttpServer.kind(),
        parent: None,
        start: Duration::ZERO,
        duration: CHILD * children.max(1),
        error: false,
        attributes: if random_tags {
            numbered()
        } else {
            vec![
                Attribute::text("peer.service", "tracegen-server"),
                Attribute::text("peer.host.ipv4", "1.1.1.1"),
            ]
        },
    };
    let children = (1..=children).map(|index| SpanDraft {
        service: service(index),
        name: format!("child-span-{:02}", index - 1),
        kind: Role::HttpClient.kind(),
        parent: Some(0),
        start: CHILD * (index - 1),
        duration: CHILD,
        error: false,
        attributes: numbered(),
    });
    std::iter::once(root).chain(children).collect()
}

/// What the resource of service `index` says.
pub(crate) fn resource(shape: Shape, index: u16) -> Vec<Attribute> {
    let number = usize::from(index);
    match shape {
        Shape::S | Shape::L => catalog::resource(&catalog::service_name(number), number),
        Shape::Tracegen | Shape::Random => {
            let name = format!("tracegen-{number:02}");
            vec![
                Attribute::text("service.name", name),
                Attribute::text("telemetry.sdk.language", "go"),
                Attribute::text("telemetry.sdk.name", "opentelemetry"),
                Attribute::text("telemetry.sdk.version", "1.41.0"),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(shape: Shape, traits: Traits) -> Vec<SpanDraft> {
        draft(shape, traits, 8, shape.services_default(), &mut Random::new(3))
    }

    #[test]
    fn children_lie_within_their_parents() {
        for shape in [Shape::S, Shape::L, Shape::Tracegen, Shape::Random] {
            for traits in [Traits::default(), Traits { slow: true, ..Traits::default() }] {
                let spans = drafts(shape, traits);
                for span in &spans {
                    let Some(parent) = span.parent.map(|parent| &spans[parent as usize]) else { continue };
                    assert!(span.start >= parent.start, "{shape:?}");
                    // Scaling rounds to the nanosecond.
                    let tolerance = Duration::from_nanos(10);
                    assert!(span.start + span.duration <= parent.start + parent.duration + tolerance);
                }
            }
        }
    }

    #[test]
    fn slow_roots_take_seconds_and_plain_ones_milliseconds() {
        for shape in [Shape::S, Shape::Tracegen] {
            let plain = drafts(shape, Traits::default())[0].duration;
            let slow = drafts(shape, Traits { slow: true, ..Traits::default() })[0].duration;
            assert!(plain <= Duration::from_millis(50), "{plain:?}");
            assert!((2.0..5.01).contains(&slow.as_secs_f64()), "{slow:?}");
        }
    }

    #[test]
    fn an_error_trace_has_one_error_and_not_on_its_root() {
        let spans = drafts(Shape::S, Traits { error: true, ..Traits::default() });
        assert_eq!(spans.iter().filter(|span| span.error).count(), 1);
        assert!(!spans[0].error);
        assert!(drafts(Shape::S, Traits::default()).iter().all(|span| !span.error));
    }

    #[test]
    fn shapes_have_the_attributes_they_promise() {
        for (shape, count) in [(Shape::S, 8), (Shape::L, 15), (Shape::Random, 11)] {
            assert!(drafts(shape, Traits::default()).iter().all(|span| span.attributes.len() == count));
        }
        assert!(drafts(Shape::Tracegen, Traits::default())[1..].iter().all(|s| s.attributes.len() == 11));
    }
}

//! The seam: what a driver hands to the journal, what it hears back, and what every driver can do. Owns no behaviour
//! but the way an answer goes back.

use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ingest_otlp::Containers;
use store_model::{Encoding, SpanRuns, Symbols, Tenant, UnixNanos};
use tokio::sync::oneshot;

use crate::inbox::{Inbox, Ticket};
use crate::lane::{Berth, Lane};
use crate::metrics::Protocol;

/// One accepted request, on its way to the journal.
#[derive(Clone, Debug)]
pub struct Received {
    /// Whose spans.
    pub tenant: Tenant,
    /// When its last byte had arrived.
    pub arrived_at: UnixNanos,
    /// How [`Self::stored`] is compressed.
    pub encoding: Encoding,
    /// The body as received, if it was compressed.
    pub compressed: Option<Bytes>,
    /// The body decompressed: what the ranges of `spans` point into. What is not OTLP's protobuf on the wire (JSON, Zipkin,
    /// Jaeger) is it here, and counts as not compressed.
    pub body: Bytes,
    /// What stands around the spans of `body`.
    pub containers: Containers,
    /// The spans that are taken; never empty.
    pub spans: SpanRuns,
    /// How many spans of the body are not taken, since their ids are not ids. They count as arrived and refused.
    pub refused: u32,
}

impl Received {
    /// What the journal keeps: the body as received.
    #[must_use]
    pub fn stored(&self) -> &Bytes {
        self.compressed.as_ref().unwrap_or(&self.body)
    }
}

/// What became of a request. Everything but `Stored` tells the sender to try again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Safe at the configured acknowledgement level.
    Stored,
    /// No room just now: UNAVAILABLE or 503.
    Overloaded {
        /// When to come back.
        retry_after: Duration,
    },
    /// This tenant sends more than it may: RESOURCE_EXHAUSTED or 429.
    RateLimited {
        /// When to come back.
        retry_after: Duration,
    },
    /// Draining, or the journal refuses writes: UNAVAILABLE or 503.
    Unavailable {
        /// When to come back.
        retry_after: Duration,
        /// Told to the sender: one lower-case clause.
        reason: String,
    },
}

impl Outcome {
    /// What a sender hears whose request nobody answered.
    pub(crate) fn lost() -> Self {
        Self::Unavailable { retry_after: Duration::from_secs(1), reason: "the journal gave no answer".into() }
    }
}

/// The way back to the sender of one request. Dropping it unsent tells them [`Outcome::Unavailable`].
pub struct Done(Way);

enum Way {
    /// A task waits for it.
    Awaited(oneshot::Sender<Outcome>),
    /// A receiving thread looks into its inbox.
    Inbox(Arc<Inbox>, Ticket),
    /// It has been sent.
    Gone,
}

impl Done {
    /// One that a task awaits.
    #[must_use]
    pub fn awaited() -> (Self, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Way::Awaited(sender)), receiver)
    }

    /// One that a receiving thread finds in its inbox.
    pub(crate) fn to_inbox(inbox: Arc<Inbox>, ticket: Ticket) -> Self {
        Self(Way::Inbox(inbox, ticket))
    }

    /// Whose answer it is, where that is the thread it is redeemed on; itself where it is somebody else's to send.
    pub(crate) fn redeem(mut self) -> Result<Ticket, Self> {
        match mem::replace(&mut self.0, Way::Gone) {
            Way::Inbox(_, ticket) => Ok(ticket),
            way => Err(Self(way)),
        }
    }

    /// Answers. Whether the sender still listens is nobody's business here: what is stored stays stored.
    pub fn send(mut self, outcome: Outcome) {
        if let Some(inbox) = self.hand_over(outcome) {
            inbox.wake_if_parked();
        }
    }

    /// Answers many at once, with one wake for each run of requests of one receiving thread.
    pub fn send_all(all: impl IntoIterator<Item = Self>, outcome: &Outcome) {
        let mut filled: Option<Arc<Inbox>> = None;
        for mut done in all {
            let Some(inbox) = done.hand_over(outcome.clone()) else { continue };
            if let Some(before) = filled.replace(Arc::clone(&inbox))
                && !Arc::ptr_eq(&before, &inbox)
            {
                before.wake_if_parked();
            }
        }
        if let Some(inbox) = filled {
            inbox.wake_if_parked();
        }
    }

    /// Leaves the outcome where it is looked for; whoever looks there may have to be woken.
    fn hand_over(&mut self, outcome: Outcome) -> Option<Arc<Inbox>> {
        match mem::replace(&mut self.0, Way::Gone) {
            Way::Awaited(sender) => {
                // Fails when the task is gone, and its sender with it.
                let _unheard = sender.send(outcome);
                None
            }
            Way::Inbox(inbox, ticket) => {
                inbox.put(ticket, outcome);
                Some(inbox)
            }
            Way::Gone => None,
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(inbox) = self.hand_over(Outcome::lost()) {
            inbox.wake_if_parked();
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done").finish_non_exhaustive()
    }
}

/// Where requests go: the seam between any driver and the journal. Called on the receiving threads, so nothing in it
/// may block.
pub trait Intake: Send + Sync + 'static {
    /// What takes the requests of one receiving thread; asked for once, on that thread.
    fn lane(self: Arc<Self>, berth: Berth) -> Box<dyn Lane>;

    /// Counts spans that arrived and were refused without being submitted: none of their request could be taken, or memory
    /// ran out once they were known.
    fn refuse(&self, tenant: &Tenant, spans: u64);

    /// Whether requests are taken at all. Asked before a body is read, so that an overloaded or draining appliance
    /// refuses cheaply.
    ///
    /// # Errors
    /// What the sender shall hear instead.
    fn ready(&self) -> Result<(), Outcome>;

    /// The time, for `arrived_at`.
    fn now(&self) -> UnixNanos;

    /// Where the names in summaries are interned.
    fn symbols(&self) -> &Symbols;
}

/// The addresses a driver listens on, port 0 resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// OTLP/gRPC.
    pub grpc: Option<SocketAddr>,
    /// OTLP/HTTP.
    pub http: Option<SocketAddr>,
    /// Zipkin.
    pub zipkin: Option<SocketAddr>,
    /// Jaeger over gRPC.
    pub jaeger_grpc: Option<SocketAddr>,
    /// Jaeger over HTTP.
    pub jaeger_http: Option<SocketAddr>,
}

impl Endpoints {
    pub(crate) fn of_mut(&mut self, protocol: Protocol) -> &mut Option<SocketAddr> {
        match protocol {
            Protocol::Grpc => &mut self.grpc,
            Protocol::Http => &mut self.http,
            Protocol::Zipkin => &mut self.zipkin,
            Protocol::JaegerGrpc => &mut self.jaeger_grpc,
            Protocol::JaegerHttp => &mut self.jaeger_http,
        }
    }
}

/// A running receiver. Dropping it stops it at once, without grace.
pub trait Driver: Send {
    /// Its name in logs and in `doctor`.
    fn name(&self) -> &'static str;

    /// Where it listens.
    fn endpoints(&self) -> Endpoints;

    /// Whether all of its threads are at work. One that is not has panicked, and what it did nobody does any more.
    fn is_whole(&self) -> bool;

    /// Stops accepting, asks connections to go (GOAWAY, `connection: close`), lets requests in flight finish for
    /// `grace` at most, and joins its threads.
    fn stop(self: Box<Self>, grace: Duration);
}

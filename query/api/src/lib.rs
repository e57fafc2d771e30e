//! The wire forms of questions and answers: gRPC `sluicebox.v1.TraceQuery` with health and reflection.
//!
//! Read in this order: `proto/sluicebox/v1/trace_query.proto` (the contract), [`raw`] (spans as opaque bytes), `convert`
//! (messages to engine values, and every refusal), `gate` (how many questions run at once), `service` (the calls),
//! `server` (the listener). Knows nothing of where traces lie.

mod convert;
mod error;
mod gate;
pub mod raw;
mod server;
mod service;

pub use error::Error;
pub use server::{RESPONSE_BYTES_MAX, client, serve, serve_on};
pub use service::{INCOMPLETE_KEY, Service, StatusSource};

/// Generated from `proto/sluicebox/v1/trace_query.proto`: messages, server and client.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated; the proto has the comments"
)]
pub mod proto {
    tonic::include_proto!("sluicebox.v1");

    /// The descriptors of this package and its imports, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

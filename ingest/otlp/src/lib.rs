//! OTLP bytes to borrowed views: the walk, extraction of kept spans, transcoding, decompression.
//!
//! Read in this order: [`walk`](mod@walk) (the hot path: one summary per span), [`view`] (attributes, on demand),
//! [`containers`], [`extract`](mod@extract) and [`builder`] (kept spans out of bodies and together again),
//! [`compression`], [`json`],
//! [`messages`] (prost types for whoever has time). All of it is functions of bytes: no sockets, no clocks, no threads.

pub mod builder;
pub mod compression;
pub mod containers;
pub mod error;
pub mod extract;
mod gunzip;
pub mod json;
pub mod messages;
mod schema;
pub mod view;
pub mod walk;
mod wire;

pub use builder::{TraceBuilder, identity, merge};
pub use compression::{decompress, decompress_into};
pub use containers::{Body, Containers};
pub use error::Error;
pub use extract::{Container, extract};
pub use json::{json_to_protobuf, protobuf_to_json};
pub use view::{
    ResourceView, ValueView, each_attribute, each_container_attribute, each_resource_attribute,
    read_attribute, span_attributes, visit_spans,
};
pub use walk::{Walked, WalkedSpan, read_span, summarise, walk};

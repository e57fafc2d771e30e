//! `walk`: what looking at a span costs, without network and without disk, beside decoding it with prost.

use std::hint::black_box;
use std::time::Duration;

use ingest_otlp::messages::ExportTraceServiceRequest;
use prost::Message;
use serde::Serialize;
use store_model::Symbols;

use crate::clock;
use crate::error::Error;
use crate::plan::{Plan, PlanOptions};
use crate::report::median;
use crate::shape::Shape;
use crate::template::GRPC_PREFIX;

/// Options of `walk`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Passes over all bodies
    #[arg(long, default_value_t = 15)]
    pub(crate) rounds: u32,
    /// Spans of a body
    #[arg(long, default_value_t = 500)]
    pub(crate) spans_per_request: u32,
}

/// One shape.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    shape: Shape,
    spans: u64,
    pub(crate) bytes_per_span: f64,
    /// Ids, times, names, kind and status of every span.
    pub(crate) walk: Cost,
    /// The same with names interned, as the receiver does it.
    pub(crate) summarise: Cost,
    /// Decode into messages and drop them.
    pub(crate) prost_decode: Cost,
}

/// Nanoseconds a span, over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) median_ns: f64,
    min_ns: f64,
    max_ns: f64,
}

/// Walks shapes S and L.
///
/// # Errors
/// [`Error::Stage`] when a body of ours is refused.
pub(crate) fn run(args: &Args) -> Result<Vec<Report>, Error> {
    [Shape::S, Shape::L].into_iter().map(|shape| measure(args, shape)).collect()
}

fn measure(args: &Args, shape: Shape) -> Result<Report, Error> {
    let plan = Plan::new(PlanOptions {
        shape,
        spans_per_request: args.spans_per_request,
        spans_per_trace: shape.spans_per_trace_default(),
        services: shape.services_default(),
        errors: 0.01,
        slow: 0.01,
        late: 0.0,
        no_root: 0.0,
        out_of_order: false,
        seed: 1,
    })?;
    let bodies: Vec<Vec<u8>> = (0..plan.groups.len() as u64)
        .map(|group| plan.body(group, 0, clock::unix_nanos()).split_off(GRPC_PREFIX))
        .collect();
    let spans: u64 = plan.groups.iter().map(|group| u64::from(group.bodies[0].span_count())).sum();
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    let mut symbols = Symbols::new(1 << 16).cache();
    let cost = |pass: &mut dyn FnMut(&[u8]) -> Result<(), String>| cost(args.rounds, spans, &bodies, pass);
    Ok(Report {
        shape,
        spans,
        bytes_per_span: bytes as f64 / spans as f64,
        walk: cost(&mut |body| {
            let walked = ingest_otlp::walk(body, &mut |span| {
                let _seen = black_box(span);
            });
            walked.map(drop).map_err(|error| error.to_string())
        })?,
        summarise: cost(&mut |body| {
            let mut containers = ingest_otlp::Containers::default();
            let walked = ingest_otlp::summarise(body, &mut symbols, &mut containers, &mut |summary| {
                let _seen = black_box(summary);
            });
            walked.map(drop).map_err(|error| error.to_string())
        })?,
        prost_decode: cost(&mut |body| {
            let decoded = ExportTraceServiceRequest::decode(body);
            decoded.map(|request| drop(black_box(request))).map_err(|error| error.to_string())
        })?,
    })
}

fn cost(
    rounds: u32,
    spans: u64,
    bodies: &[Vec<u8>],
    pass: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<Cost, Error> {
    let failed = |cause| Error::Stage { stage: "walk", cause };
    let mut costs = Vec::new();
    for _ in 0..rounds.max(1) {
        let (done, took) = clock::timed(|| bodies.iter().try_for_each(|body| pass(body)));
        done.map_err(failed)?;
        costs.push(ns_per_span(took, spans));
    }
    let median_ns = median(&mut costs);
    Ok(Cost { median_ns, min_ns: costs[0], max_ns: costs[costs.len() - 1] })
}

fn ns_per_span(took: Duration, spans: u64) -> f64 {
    took.as_secs_f64() * 1e9 / spans.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_walked_and_decoded() {
        let reports = run(&Args { rounds: 1, spans_per_request: 500 }).unwrap();
        assert_eq!(reports.len(), 2);
        for report in reports {
            assert!(report.walk.median_ns > 0.0 && report.summarise.median_ns > 0.0);
            assert!(report.prost_decode.median_ns > 0.0 && report.bytes_per_span > 300.0);
        }
    }
}

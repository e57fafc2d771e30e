//! The verifier against an appliance that answers from a table, so that every lie it may tell can be told.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use clap::Parser;
use query_api::proto::trace_query_server::{TraceQuery, TraceQueryServer};
use query_api::proto::{
    GetStatusRequest, GetTraceRequest, GetTraceResponse, ListOperationsRequest, ListOperationsResponse,
    ListServicesRequest, ListServicesResponse, ListTagKeysRequest, ListTagKeysResponse, ListTagValuesRequest,
    ListTagValuesResponse, SearchTracesResponse, SpanCounts, TraceSummary,
};
use query_api::raw::RawTraces;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;
use crate::check::tests::{answer, sent_spans, told};
use crate::ledger::{Delivery, Header, Notes};
use crate::plan::PlanOptions;
use crate::plan::tests::options;
use crate::shape::Shape;

/// What the appliance has, and how it lists it.
#[derive(Clone, Default)]
struct Table {
    traces: BTreeMap<[u8; 16], (Vec<u8>, Decision)>,
    listed: Vec<[u8; 16]>,
    /// Whatever time was asked for.
    lists_always: bool,
    counts: SpanCounts,
}

#[tonic::async_trait]
impl TraceQuery for Table {
    async fn get_trace(
        &self,
        request: Request<GetTraceRequest>,
    ) -> Result<Response<GetTraceResponse>, Status> {
        let id: [u8; 16] = request.get_ref().trace_id[..].try_into().unwrap();
        let Some((otlp, _)) = self.traces.get(&id) else { return Err(Status::not_found("no such trace")) };
        let trace = Some(RawTraces(otlp.clone().into()));
        Ok(Response::new(GetTraceResponse { trace, summary: Some(TraceSummary::default()) }))
    }

    type SearchTracesStream = tokio_stream::Iter<std::vec::IntoIter<Result<SearchTracesResponse, Status>>>;

    /// Two pages: the cursor of the second is its place in the list.
    async fn search_traces(
        &self,
        request: Request<SearchTracesRequest>,
    ) -> Result<Response<Self::SearchTracesStream>, Status> {
        let SearchTracesRequest { start_unix_nano, end_unix_nano, cursor, .. } = request.get_ref();
        // All traces start at one moment, so one slice of time has them all.
        let has_any = self.lists_always || (*start_unix_nano..*end_unix_nano).contains(&BASE);
        let half = self.listed.len() / 2;
        let first = cursor.is_empty();
        let part = if first { &self.listed[..half] } else { &self.listed[half..] };
        let part = if has_any { part } else { &[] };
        let summary = |id: &[u8; 16]| TraceSummary {
            trace_id: id.to_vec(),
            decision: self.traces[id].1.into(),
            ..TraceSummary::default()
        };
        let next_cursor = if first && has_any { vec![1] } else { Default::default() };
        let page = SearchTracesResponse {
            traces: part.iter().map(summary).collect(),
            next_cursor,
            ..Default::default()
        };
        Ok(Response::new(tokio_stream::iter(vec![Ok(page)])))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(GetStatusResponse { counts: Some(self.counts), ..Default::default() }))
    }

    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_tag_keys(
        &self,
        _: Request<ListTagKeysRequest>,
    ) -> Result<Response<ListTagKeysResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_tag_values(
        &self,
        _: Request<ListTagValuesRequest>,
    ) -> Result<Response<ListTagValuesResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

const GROUPS: u64 = 20;
const BASE: u64 = 1_700_000_000_000_000_000;

/// Writes a ledger of a run that was acknowledged whole, and the table of an appliance that kept the error traces, the
/// slow ones and every tenth of the others.
fn honest(path: &Path) -> Table {
    let plan = Plan::new(PlanOptions { errors: 0.05, slow: 0.05, ..options(Shape::S) }).unwrap();
    let mut notes = Notes::default();
    let mut table = Table::default();
    for group in 0..GROUPS {
        let delivery = Delivery {
            group,
            // The last group comes later, so that there is time to be cut into slices.
            base_unix_nanos: if group + 1 < GROUPS { BASE } else { BASE + 1_000_000_000 },
            sent: vec![true],
            acknowledged: vec![true],
        };
        notes.push(&delivery);
        for (trace, claim) in (0u32..).zip(check::claims(&plan, &delivery)) {
            table.counts.arrived += u64::from(claim.spans_acknowledged);
            let decision = match claim {
                Claim { error: true, .. } => Decision::KeptError,
                Claim { slow: true, .. } => Decision::KeptSlow,
                _ if trace % 10 == 0 => Decision::KeptHead,
                _ => {
                    table.counts.sampled_out += u64::from(claim.spans_acknowledged);
                    continue;
                }
            };
            table.counts.kept += u64::from(claim.spans_acknowledged);
            let id = plan.trace_id(group, trace);
            let spans = told(&sent_spans(&plan, &delivery, trace));
            table.traces.insert(id, (answer(&spans), decision));
            table.listed.push(id);
        }
    }
    let header = Header { plan: plan.options, tenant: "default".to_owned() };
    notes.write(&header, path).unwrap();
    table
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

/// Runs the verifier against an honest table after `change`.
fn verify_after(change: impl FnOnce(&mut Table)) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("run.ledger");
    let mut table = honest(&ledger);
    change(&mut table);
    let (tell, address) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let serving = tonic::transport::Server::builder()
                .add_service(TraceQueryServer::new(table))
                .serve_with_incoming(TcpIncoming::from(listener));
            tokio::select! {
                result = serving => result.unwrap(),
                _ = stopped => {}
            }
        });
    });
    let command = format!(
        "verify --ledger {} --query {} --identity --expect-slow --expect-head 0.1 --wait 10ms",
        ledger.display(),
        address.recv().unwrap()
    );
    let report = run(&Command::parse_from(command.split_ascii_whitespace()).args).unwrap();
    drop(stop);
    server.join().unwrap();
    serde_json::to_value(report).unwrap()
}

fn kept_as(table: &Table, wanted: Decision) -> [u8; 16] {
    *table.traces.iter().find(|(_, (_, decision))| *decision == wanted).unwrap().0
}

#[test]
fn an_honest_appliance_passes() {
    let report = verify_after(|_| {});
    assert_eq!(report["passed"], true, "{report:#}");
    assert_eq!(report["traces_acknowledged"], GROUPS * 63);
    assert_eq!(report["traces_compared"], report["kept"]["traces"]);
    assert!(report["error_traces"].as_u64().unwrap() > 30);
}

#[test]
fn a_missing_error_trace_fails() {
    let report = verify_after(|table| {
        let id = kept_as(table, Decision::KeptError);
        table.traces.remove(&id);
        table.listed.retain(|listed| *listed != id);
    });
    assert_eq!((&report["passed"], &report["traces_missing"]), (&false.into(), &1.into()), "{report:#}");
}

#[test]
fn a_doubled_span_of_a_plain_trace_fails() {
    let report = verify_after(|table| {
        let id = kept_as(table, Decision::KeptHead);
        let otlp = &mut table.traces.get_mut(&id).unwrap().0;
        otlp.extend_from_within(..);
    });
    assert_eq!(report["passed"], false, "{report:#}");
    assert!(report["spans_doubled"].as_u64().unwrap() > 0);
}

#[test]
fn a_kept_trace_must_be_listed_and_once() {
    let report = verify_after(|table| {
        let (first, second) = (kept_as(table, Decision::KeptError), kept_as(table, Decision::KeptSlow));
        table.listed.retain(|listed| *listed != first);
        table.listed.push(second);
    });
    assert_eq!(report["passed"], false, "{report:#}");
    assert_eq!((&report["kept"]["not_listed"], &report["kept"]["listed_twice"]), (&1.into(), &1.into()));
}

#[test]
fn counts_that_do_not_add_up_and_shares_out_of_range_fail() {
    let report = verify_after(|table| table.counts.kept -= 1);
    assert_eq!((&report["passed"], &report["counts"]["identity_holds"]), (&false.into(), &false.into()));
    let report = verify_after(|table| {
        table.traces.retain(|_, (_, decision)| *decision != Decision::KeptHead);
        let Table { traces, listed, .. } = table;
        listed.retain(|id| traces.contains_key(id));
    });
    assert_eq!(report["passed"], false, "{report:#}");
    assert_eq!(report["head_kept"]["count"], 0);
}

#[test]
fn a_trace_that_is_listed_at_two_times_fails() {
    let report = verify_after(|table| table.lists_always = true);
    assert_eq!(report["passed"], false, "{report:#}");
    assert!(report["kept"]["listed_twice"].as_u64() >= report["kept"]["traces"].as_u64().map(|all| all / 2));
}

#[test]
fn slices_of_time_adjoin_and_hold_every_start() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("run.ledger");
    honest(&ledger);
    let sent = Sent::read(&[ledger]).unwrap();
    assert!(sent.traces_come_whole());
    for count in [1, 2, 7] {
        let slices = sent.time_slices(count);
        assert_eq!(slices.len() as u64, count);
        assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(slices[0].start < BASE - 10_000_000_000);
        assert!(slices.last().unwrap().end > BASE + 11_000_000_000);
    }
}

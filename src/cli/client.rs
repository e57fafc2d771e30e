//! The verbs that ask a running appliance.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use query_api::proto::{self, Decision, GetTraceResponse, SearchTracesRequest, Tag, TraceSummary};
use serde_json::{Value, json};
use store_model::TraceId;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::table::{self, Table};
use super::{ClientArgs, Failure, KindArg, SearchArgs, StatusArg, TraceArgs, tree};
use crate::clock;
use crate::config::Span;

/// An appliance that does not answer within this long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Client = proto::trace_query_client::TraceQueryClient<Channel>;

/// Runs one exchange with the appliance.
fn ask<T>(args: &ClientArgs, exchange: impl AsyncFnOnce(Client) -> Result<T, Status>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::not_possible(error.to_string()))?;
    runtime.block_on(async {
        let endpoint = endpoint(args)?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| {
            let (asked, why) = (&args.endpoint, deepest(&error));
            Failure::not_possible(format!(
                "no appliance answers at {asked} ({why}); is `sluicebox serve` running there?"
            ))
        })?;
        exchange(query_api::client(channel)).await.map_err(|status| match status.code() {
            Code::NotFound => Failure::not_possible(status.message()),
            Code::InvalidArgument => Failure::wrong_use(status.message()),
            _ if status.source().is_some() => {
                let (asked, why) = (&args.endpoint, deepest(&status));
                Failure::not_possible(format!("{asked} broke off ({why}); {}", hint(args)))
            }
            code => Failure::not_possible(format!("{}: {}", code, status.message())),
        })
    })
}

/// What the two ends of a connection that breaks off at once disagree about most often.
fn hint(args: &ClientArgs) -> &'static str {
    let is_secure = args.endpoint.starts_with("https://") || args.ca_file.is_some();
    match (is_secure, args.cert_file.is_some()) {
        (false, _) => "if its port has TLS, say --endpoint https://...",
        (true, false) => "if it asks for a certificate, give --cert-file and --key-file",
        (true, true) => "does it know who signed your certificate?",
    }
}

/// What an error is about in the end.
fn deepest(mut error: &dyn Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Whom to ask, and how: with TLS if the address says so, or if it says nothing and a file for TLS is given.
fn endpoint(args: &ClientArgs) -> Result<Endpoint, Failure> {
    let ClientArgs { endpoint, ca_file, cert_file, key_file, tenant: _, json: _ } = args;
    let has_files = ca_file.is_some() || cert_file.is_some();
    let scheme = if has_files { "https" } else { "http" };
    let url = if endpoint.contains("://") { endpoint.clone() } else { format!("{scheme}://{endpoint}") };
    let is_secure = url.starts_with("https://");
    let plain = Endpoint::from_shared(url).map_err(|error| {
        let why = deepest(&error);
        Failure::wrong_use(format!("--endpoint {endpoint}: {why}, expected host:port or https://host:port"))
    })?;
    if !is_secure {
        // Whoever names an authority means to check it: to go on without would deceive them.
        let refusal =
            || Failure::wrong_use(format!("--endpoint {endpoint}: the files for TLS need https://"));
        return if has_files { Err(refusal()) } else { Ok(plain) };
    }
    let read = |path: &PathBuf| {
        let failed = |error| Failure::wrong_use(format!("cannot read {}: {error}", path.display()));
        std::fs::read(path).map_err(failed)
    };
    let mut tls = match ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (cert_file, key_file) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    plain.tls_config(tls).map_err(|error| Failure::wrong_use(format!("TLS: {}", deepest(&error))))
}

fn request<T>(args: &ClientArgs, message: T) -> Result<Request<T>, Failure> {
    let mut request = Request::new(message);
    let tenant = AsciiMetadataValue::try_from(args.tenant.as_str())
        .map_err(|_invalid| Failure::wrong_use("--tenant: expected letters, digits and !-_.*'()"))?;
    request.metadata_mut().insert("x-scope-orgid", tenant);
    Ok(request)
}

pub(super) fn trace(args: &TraceArgs) -> Result<(), Failure> {
    let id: TraceId = args.id.parse().map_err(|error| Failure::wrong_use(format!("trace id: {error}")))?;
    let question = request(&args.client, proto::GetTraceRequest { trace_id: id.0.to_vec() })?;
    let answer =
        ask(&args.client, async move |mut client| Ok(client.get_trace(question).await?.into_inner()))?;
    let GetTraceResponse { trace, summary } = answer;
    let (otlp, summary) = (trace.unwrap_or_default().0, summary.unwrap_or_default());
    if args.client.json {
        let spans =
            ingest_otlp::protobuf_to_json(&otlp).map_err(|error| Failure::not_possible(error.to_string()))?;
        println!("{}", json!({ "summary": summary_json(&summary), "trace": spans }));
        return Ok(());
    }
    let text = tree::render(&otlp, &summary).map_err(Failure::not_possible)?;
    print!("{text}");
    Ok(())
}

pub(super) fn search(args: &SearchArgs) -> Result<(), Failure> {
    let question = request(&args.client, search_request(args)?)?;
    let pages = ask(&args.client, async move |mut client| {
        let mut stream = client.search_traces(question).await?.into_inner();
        let mut pages = Vec::new();
        while let Some(page) = stream.message().await? {
            pages.push(page);
        }
        Ok(pages)
    })?;
    let traces: Vec<TraceSummary> = pages.iter().flat_map(|page| page.traces.iter().cloned()).collect();
    let cursor = pages.iter().map(|page| &page.next_cursor).rfind(|cursor| !cursor.is_empty());
    let cursor = cursor.map(|cursor| table::hex(cursor));
    let incomplete = pages.iter().map(|page| page.incomplete.as_str()).rfind(|text| !text.is_empty());
    if args.client.json {
        let traces: Vec<Value> = traces.iter().map(summary_json).collect();
        println!("{}", json!({ "traces": traces, "next_cursor": cursor, "incomplete": incomplete }));
        return Ok(());
    }
    if traces.is_empty() {
        println!("no trace matches");
    } else {
        print!("{}", summary_table(&traces));
    }
    if let Some(cursor) = cursor {
        println!("more: add --cursor {cursor}");
    }
    if let Some(incomplete) = incomplete {
        println!("incomplete: {incomplete}");
    }
    Ok(())
}

fn search_request(args: &SearchArgs) -> Result<SearchTracesRequest, Failure> {
    let tag = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok(Tag { key: key.to_owned(), value: value.to_owned() }),
        None => Err(Failure::wrong_use(format!("--tag {text}: expected KEY=VALUE"))),
    };
    let status = args.status.map_or(proto::SpanStatus::Any, |status| match status {
        StatusArg::Unset => proto::SpanStatus::Unset,
        StatusArg::Ok => proto::SpanStatus::Ok,
        StatusArg::Error => proto::SpanStatus::Error,
    });
    let kind = args.kind.map_or(proto::SpanKind::Any, |kind| match kind {
        KindArg::Unspecified => proto::SpanKind::Unspecified,
        KindArg::Internal => proto::SpanKind::Internal,
        KindArg::Server => proto::SpanKind::Server,
        KindArg::Client => proto::SpanKind::Client,
        KindArg::Producer => proto::SpanKind::Producer,
        KindArg::Consumer => proto::SpanKind::Consumer,
    });
    let since = nanos("--since", args.since.as_deref())?;
    Ok(SearchTracesRequest {
        service: args.service.clone().unwrap_or_default(),
        operation: args.operation.clone().unwrap_or_default(),
        tags: args.tags.iter().map(tag).collect::<Result<_, _>>()?,
        status: status.into(),
        kind: kind.into(),
        min_duration_nano: nanos("--min-duration", args.min_duration.as_deref())?,
        max_duration_nano: nanos("--max-duration", args.max_duration.as_deref())?,
        start_unix_nano: if since == 0 { 0 } else { clock::unix().0.saturating_sub(since) },
        end_unix_nano: 0,
        limit: args.limit,
        cursor: args.cursor.as_deref().map_or(Ok(Vec::new()), |text| {
            table::unhex(text)
                .ok_or_else(|| Failure::wrong_use("--cursor: expected the text an earlier page printed"))
        })?,
    })
}

fn nanos(flag: &str, text: Option<&str>) -> Result<u64, Failure> {
    let Some(text) = text else { return Ok(0) };
    let span = Span::parse(text).ok_or_else(|| {
        Failure::wrong_use(format!("{flag} {text}: expected a span of time such as 200ms or 15m"))
    })?;
    Ok(u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX))
}

pub(super) fn status(args: &ClientArgs) -> Result<(), Failure> {
    let question = request(args, proto::GetStatusRequest {})?;
    let status = ask(args, async move |mut client| Ok(client.get_status(question).await?.into_inner()))?;
    if args.json {
        println!("{}", status_json(&status));
    } else {
        print!("{}", status_text(&args.tenant, &status));
    }
    Ok(())
}

fn status_json(status: &proto::GetStatusResponse) -> Value {
    let counts = status.counts.unwrap_or_default();
    json!({
        "version": status.version, "uptime_ns": status.uptime_nano, "accepting": status.accepting, "notices": status.notices,
        "spans": {
            "arrived": counts.arrived, "kept": counts.kept, "sampled_out": counts.sampled_out, "shed": counts.shed,
            "expired": counts.expired, "refused": counts.refused, "undecided": counts.undecided,
        },
        "kept_spans_by_reason": status.kept_spans_by_reason, "kept_traces_by_reason": status.kept_traces_by_reason,
        "dropped_traces": status.dropped_traces, "live_traces": status.live_traces, "live_spans": status.live_spans,
        "memory_used_bytes": status.memory_used_bytes, "memory_limit_bytes": status.memory_limit_bytes,
        "journal_bytes": status.journal_bytes, "archive_bytes": status.archive_bytes,
        "archive_segments": status.archive_segments, "quarantined_segments": status.quarantined_segments,
        "shards": status.shards,
    })
}

/// How the appliance is, for people.
pub(crate) fn status_text(tenant: &str, status: &proto::GetStatusResponse) -> String {
    let counts = status.counts.unwrap_or_default();
    let state = if status.accepting { "taking requests" } else { "refusing requests" };
    let uptime = table::duration(status.uptime_nano);
    let mut text =
        format!("sluicebox {}, up {uptime}, {state}, {} shard(s)\n", status.version, status.shards);
    status.notices.iter().for_each(|notice| text.push_str(&format!("  ! {notice}\n")));
    text.push_str(&format!("\nspans of tenant {tenant}\n"));
    let mut spans = Table::default();
    let rows = [
        ("arrived", counts.arrived),
        ("kept", counts.kept),
        ("sampled out", counts.sampled_out),
        ("shed", counts.shed),
        ("expired", counts.expired),
        ("refused", counts.refused),
        ("undecided", counts.undecided),
    ];
    rows.iter().for_each(|(name, value)| spans.row(["  ".to_owned() + name, value.to_string()]));
    text.push_str(&spans.render_right());
    text.push_str("\nkept traces by reason\n");
    let mut reasons = Table::default();
    for reason in store_model::Reason::ALL {
        let traces = status.kept_traces_by_reason.get(reason.as_str()).copied().unwrap_or(0);
        reasons.row([format!("  {}", reason.as_str()), traces.to_string()]);
    }
    reasons.row(["  (not kept)".to_owned(), status.dropped_traces.to_string()]);
    text.push_str(&reasons.render_right());
    let bytes = table::bytes;
    text.push_str(&format!(
        "\nlive      {} traces, {} spans\nmemory    {} of {}\njournal   {}\narchive   {} in {} sealed segment(s)\n",
        status.live_traces,
        status.live_spans,
        bytes(status.memory_used_bytes),
        bytes(status.memory_limit_bytes),
        bytes(status.journal_bytes),
        bytes(status.archive_bytes),
        status.archive_segments,
    ));
    if status.quarantined_segments > 0 {
        text.push_str(&format!(
            "damaged   {} segment(s) set aside, see `sluicebox doctor`\n",
            status.quarantined_segments
        ));
    }
    text
}

/// One word for a decision.
pub(crate) fn decision_word(decision: i32) -> &'static str {
    match Decision::try_from(decision).unwrap_or_default() {
        Decision::Unspecified | Decision::Pending => "pending",
        Decision::KeptError => "error",
        Decision::KeptSlow => "slow",
        Decision::KeptHead => "head",
    }
}

fn summary_json(summary: &TraceSummary) -> Value {
    json!({
        "trace_id": table::hex(&summary.trace_id), "root_service": summary.root_service,
        "root_operation": summary.root_operation, "start_unix_nano": summary.start_unix_nano.to_string(),
        "duration_ns": summary.duration_nano, "spans": summary.span_count, "errors": summary.error_count,
        "services": summary.services, "decision": decision_word(summary.decision), "complete": summary.complete,
        "adjusted_count": summary.adjusted_count,
    })
}

fn summary_table(traces: &[TraceSummary]) -> String {
    let mut table = Table::default();
    table.row(
        ["TRACE ID", "START (UTC)", "DURATION", "SPANS", "ERRORS", "KEPT FOR", "ROOT"].map(str::to_owned),
    );
    for trace in traces {
        table.row([
            table::hex(&trace.trace_id),
            table::time(trace.start_unix_nano),
            table::duration(trace.duration_nano),
            trace.span_count.to_string(),
            trace.error_count.to_string(),
            decision_word(trace.decision).to_owned(),
            format!("{}: {}", trace.root_service, trace.root_operation),
        ]);
    }
    table.render()
}

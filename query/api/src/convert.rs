//! Messages to engine values and back. Refuses what cannot be meant, with a sentence that says what to do instead.

use query_engine::{Conditions, Cursor, Search, Trace, TraceSummary};
use store_model::{Reason, SpanKind, StatusCode, Tenant, TraceId, UnixNanos};
use tonic::Status;

use crate::proto;
use crate::raw::RawTraces;

/// Summaries of a page when the asker does not say.
const SEARCH_LIMIT_DEFAULT: u32 = 20;

/// More than anybody reads, and each costs a read of its trace.
const SEARCH_LIMIT_MAX: u32 = 10_000;

/// Values of a key when the asker does not say.
const TAG_VALUES_LIMIT_DEFAULT: u32 = 1000;

/// A list of names is held in memory as a whole, on both sides.
const TAG_VALUES_LIMIT_MAX: u32 = 100_000;

/// Each tag is looked for in every span that meets the others.
const TAGS_MAX: usize = 64;

pub(crate) fn trace_id(bytes: &[u8]) -> Result<TraceId, Status> {
    let id = <[u8; 16]>::try_from(bytes).ok().map(TraceId).filter(|id| !id.is_zero());
    id.ok_or_else(|| {
        let length = bytes.len();
        Status::invalid_argument(format!(
            "trace_id must be 16 raw bytes, not all zero; it has {length} (32 hexadecimal digits must be decoded first)"
        ))
    })
}

fn limit(name: &str, asked: u32, default: u32, most: u32) -> Result<usize, Status> {
    if asked > most {
        return Err(Status::invalid_argument(format!("{name} must be at most {most}; it is {asked}")));
    }
    let limit = if asked == 0 { default } else { asked };
    Ok(usize::try_from(limit).unwrap_or(usize::MAX))
}

pub(crate) fn tag_values_limit(asked: u32) -> Result<usize, Status> {
    limit("limit", asked, TAG_VALUES_LIMIT_DEFAULT, TAG_VALUES_LIMIT_MAX)
}

pub(crate) fn tag_key(key: &str) -> Result<&str, Status> {
    if key.is_empty() {
        Err(Status::invalid_argument("key must name an attribute; it is empty"))
    } else {
        Ok(key)
    }
}

fn unless_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn unless_zero(number: u64) -> Option<u64> {
    Some(number).filter(|&number| number != 0)
}

fn status(number: i32) -> Result<Option<StatusCode>, Status> {
    Ok(match proto::SpanStatus::try_from(number) {
        Ok(proto::SpanStatus::Any) => None,
        Ok(proto::SpanStatus::Unset) => Some(StatusCode::Unset),
        Ok(proto::SpanStatus::Ok) => Some(StatusCode::Ok),
        Ok(proto::SpanStatus::Error) => Some(StatusCode::Error),
        Err(_unknown) => {
            return Err(Status::invalid_argument(format!(
                "status {number} is none of SpanStatus: use 0 to 3"
            )));
        }
    })
}

fn kind(number: i32) -> Result<Option<SpanKind>, Status> {
    Ok(match proto::SpanKind::try_from(number) {
        Ok(proto::SpanKind::Any) => None,
        Ok(proto::SpanKind::Unspecified) => Some(SpanKind::Unspecified),
        Ok(proto::SpanKind::Internal) => Some(SpanKind::Internal),
        Ok(proto::SpanKind::Server) => Some(SpanKind::Server),
        Ok(proto::SpanKind::Client) => Some(SpanKind::Client),
        Ok(proto::SpanKind::Producer) => Some(SpanKind::Producer),
        Ok(proto::SpanKind::Consumer) => Some(SpanKind::Consumer),
        Err(_unknown) => {
            return Err(Status::invalid_argument(format!("kind {number} is none of SpanKind: use 0 to 6")));
        }
    })
}

pub(crate) fn search(tenant: Tenant, request: proto::SearchTracesRequest) -> Result<Search, Status> {
    let proto::SearchTracesRequest {
        service,
        operation,
        tags,
        status: status_number,
        kind: kind_number,
        min_duration_nano,
        max_duration_nano,
        start_unix_nano,
        end_unix_nano,
        limit: asked,
        cursor,
    } = request;
    let (start, end) = (unless_zero(start_unix_nano), unless_zero(end_unix_nano));
    if end.is_some_and(|end| start_unix_nano >= end) {
        return Err(Status::invalid_argument(format!(
            "start_unix_nano ({start_unix_nano}) must be before end_unix_nano ({end_unix_nano}); leave end 0 for no limit"
        )));
    }
    let (shortest, longest) = (unless_zero(min_duration_nano), unless_zero(max_duration_nano));
    if longest.is_some_and(|longest| min_duration_nano > longest) {
        return Err(Status::invalid_argument(format!(
            "min_duration_nano ({min_duration_nano}) must not exceed max_duration_nano ({max_duration_nano})"
        )));
    }
    if tags.len() > TAGS_MAX {
        return Err(Status::invalid_argument(format!(
            "tags must be at most {TAGS_MAX}; there are {}",
            tags.len()
        )));
    }
    let tags = tags.into_iter().map(|tag| tag_key(&tag.key).map(str::to_owned).map(|key| (key, tag.value)));
    let cursor = Some(cursor).filter(|cursor| !cursor.is_empty());
    let cursor = cursor.map(|cursor| Cursor::from_bytes(&cursor)).transpose();
    Ok(Search {
        tenant,
        conditions: Conditions {
            service: unless_empty(service),
            operation: unless_empty(operation),
            tags: tags.collect::<Result<_, _>>()?,
            status: status(status_number)?,
            kind: kind(kind_number)?,
            min_duration_ns: shortest,
            max_duration_ns: longest,
        },
        start: start.map(UnixNanos),
        end: end.map(UnixNanos),
        limit: limit("limit", asked, SEARCH_LIMIT_DEFAULT, SEARCH_LIMIT_MAX)?,
        cursor: cursor.map_err(|cause| {
            Status::invalid_argument(format!("{cause}; leave it empty to start with the newest trace"))
        })?,
    })
}

pub(crate) fn summary(summary: TraceSummary) -> proto::TraceSummary {
    let TraceSummary {
        trace_id,
        root_service,
        root_operation,
        start,
        duration_ns,
        span_count,
        error_count,
        services,
        reason,
        complete,
        adjusted_count,
    } = summary;
    let decision = match reason {
        None => proto::Decision::Pending,
        Some(Reason::Error) => proto::Decision::KeptError,
        Some(Reason::Slow) => proto::Decision::KeptSlow,
        Some(Reason::Head) => proto::Decision::KeptHead,
    };
    proto::TraceSummary {
        trace_id: trace_id.0.to_vec(),
        root_service,
        root_operation,
        start_unix_nano: start.0,
        duration_nano: duration_ns,
        span_count,
        error_count,
        services,
        decision: decision.into(),
        complete,
        adjusted_count,
    }
}

pub(crate) fn trace(trace: Trace) -> proto::GetTraceResponse {
    let Trace { otlp, summary: brief, incomplete: _ } = trace;
    proto::GetTraceResponse { trace: Some(RawTraces(otlp)), summary: Some(summary(brief)) }
}

//! `TraceQuery` over the engine: checks what was asked, asks, and turns answers into messages. Never runs the engine on
//! an async thread, and never reads a clock.

use std::sync::Arc;
use std::time::Duration;

use query_engine::{Engine, Names, Page};
use store_model::Tenant;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Request, Response, Status};
use tracing::{error, warn};

use crate::convert;
use crate::gate::Gate;
use crate::proto::trace_query_server::TraceQuery;
use crate::proto::{
    GetStatusRequest, GetStatusResponse, GetTraceRequest, GetTraceResponse, ListOperationsRequest,
    ListOperationsResponse, ListServicesRequest, ListServicesResponse, ListTagKeysRequest,
    ListTagKeysResponse, ListTagValuesRequest, ListTagValuesResponse, SearchTracesRequest,
    SearchTracesResponse,
};

/// The metadata key of the tenant's name.
const TENANT_KEY: &str = "x-scope-orgid";

/// Set in the metadata of an answer that misses something and whose message has no field to say so.
pub const INCOMPLETE_KEY: &str = "x-sluicebox-incomplete";

/// A page is sent in messages of so many summaries: some 20 KiB each, so that the first ones arrive early.
const SUMMARIES_PER_MESSAGE: usize = 100;

/// How many questions run at once. They are bound by memory bandwidth and page faults; more would only make each slower.
const QUESTIONS_MAX: usize = 16;

/// A question waits this long for a place; then its asker is told to come back. Longer, and clients with a deadline of
/// ten seconds would have left.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Who knows how the appliance is.
pub trait StatusSource: Send + Sync + 'static {
    /// The counts of this tenant and the state of the whole. Must not block.
    fn status(&self, tenant: &Tenant) -> GetStatusResponse;
}

/// The implementation of `sluicebox.v1.TraceQuery`.
pub struct Service {
    engine: Arc<Engine>,
    status: Arc<dyn StatusSource>,
    gate: Gate,
}

impl Service {
    /// Over this engine, with this source for `GetStatus`.
    #[must_use]
    pub fn new(engine: Arc<Engine>, status: Arc<dyn StatusSource>) -> Self {
        Self { engine, status, gate: Gate::new(QUESTIONS_MAX, WAIT_MAX) }
    }

    /// Runs one question on a blocking thread. Its place is held until it ends, even when its asker has left.
    async fn ask<T: Send + 'static>(
        &self,
        tenant: Tenant,
        question: impl FnOnce(&Engine, &Tenant) -> Result<T, query_engine::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let Some(place) = self.gate.enter(&tenant).await else {
            return Err(Status::resource_exhausted("too many questions at once; ask again in a moment"));
        };
        let engine = Arc::clone(&self.engine);
        let answer = tokio::task::spawn_blocking(move || {
            let answer = question(&engine, &tenant);
            drop(place);
            answer
        });
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(cause)) => Err(status_of(&cause)),
            Err(cause) => {
                error!(%cause, "question did not end");
                Err(Status::internal("the question failed inside the appliance; its log says why"))
            }
        }
    }

    async fn names(
        &self,
        metadata: &MetadataMap,
        question: impl FnOnce(&Engine, &Tenant) -> Result<Names, query_engine::Error> + Send + 'static,
    ) -> Result<Names, Status> {
        self.ask(tenant_of(metadata)?, question).await
    }
}

fn status_of(cause: &query_engine::Error) -> Status {
    match cause {
        query_engine::Error::BadCursor => Status::invalid_argument(
            "cursor is not one that an earlier page returned; leave it empty to start over",
        ),
        query_engine::Error::Damaged(_) | query_engine::Error::Spans(_) => {
            error!(error = ?cause, "trace cannot be read");
            Status::data_loss(cause.to_string())
        }
    }
}

fn tenant_of(metadata: &MetadataMap) -> Result<Tenant, Status> {
    let Some(name) = metadata.get(TENANT_KEY) else { return Ok(Tenant::default()) };
    let name = name.to_str().map_err(|_not_text| store_model::InvalidTenant);
    name.and_then(Tenant::new).map_err(|cause| Status::invalid_argument(format!("{TENANT_KEY}: {cause}")))
}

/// An answer that says in its metadata what it misses.
fn answer<T>(message: T, incomplete: Option<&str>) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(missing) = incomplete {
        warn!(missing, "answer is incomplete");
        if let Ok(value) = AsciiMetadataValue::try_from(missing) {
            response.metadata_mut().insert(INCOMPLETE_KEY, value);
        }
    }
    response
}

/// The messages of a page; at least one, and the last one says how to go on and what is missing.
fn messages(page: Page) -> Vec<SearchTracesResponse> {
    let Page { traces, next, incomplete } = page;
    let mut summaries = traces.into_iter().map(convert::summary).peekable();
    let mut messages = Vec::new();
    loop {
        let traces = summaries.by_ref().take(SUMMARIES_PER_MESSAGE).collect();
        messages.push(SearchTracesResponse { traces, ..Default::default() });
        if summaries.peek().is_none() {
            break;
        }
    }
    if let Some(last) = messages.last_mut() {
        last.next_cursor = next.map(|cursor| cursor.to_bytes()).unwrap_or_default();
        last.incomplete = incomplete.unwrap_or_default();
    }
    messages
}

#[tonic::async_trait]
impl TraceQuery for Service {
    async fn get_trace(
        &self,
        request: Request<GetTraceRequest>,
    ) -> Result<Response<GetTraceResponse>, Status> {
        let tenant = tenant_of(request.metadata())?;
        let id = convert::trace_id(&request.get_ref().trace_id)?;
        let found = self.ask(tenant, move |engine, tenant| engine.trace(tenant, id)).await?;
        let Some(trace) = found else {
            return Err(Status::not_found(format!(
                "no trace {id}: it never arrived, was not kept, or is another tenant's"
            )));
        };
        let incomplete = trace.incomplete.clone();
        Ok(answer(convert::trace(trace), incomplete.as_deref()))
    }

    type SearchTracesStream = tokio_stream::Iter<std::vec::IntoIter<Result<SearchTracesResponse, Status>>>;

    async fn search_traces(
        &self,
        request: Request<SearchTracesRequest>,
    ) -> Result<Response<Self::SearchTracesStream>, Status> {
        let tenant = tenant_of(request.metadata())?;
        let search = convert::search(tenant.clone(), request.into_inner())?;
        let page = self.ask(tenant, move |engine, _tenant| engine.search(&search)).await?;
        let messages: Vec<_> = messages(page).into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(messages)))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let found = self.names(request.metadata(), Engine::services).await?;
        Ok(answer(ListServicesResponse { services: found.names }, found.incomplete.as_deref()))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let service = request.get_ref().service.clone();
        let question = move |engine: &Engine, tenant: &Tenant| {
            engine.operations(tenant, Some(service.as_str()).filter(|service| !service.is_empty()))
        };
        let found = self.names(request.metadata(), question).await?;
        Ok(answer(ListOperationsResponse { operations: found.names }, found.incomplete.as_deref()))
    }

    async fn list_tag_keys(
        &self,
        request: Request<ListTagKeysRequest>,
    ) -> Result<Response<ListTagKeysResponse>, Status> {
        let found = self.names(request.metadata(), Engine::tag_keys).await?;
        Ok(answer(ListTagKeysResponse { keys: found.names }, found.incomplete.as_deref()))
    }

    async fn list_tag_values(
        &self,
        request: Request<ListTagValuesRequest>,
    ) -> Result<Response<ListTagValuesResponse>, Status> {
        let limit = convert::tag_values_limit(request.get_ref().limit)?;
        let key = convert::tag_key(&request.get_ref().key)?.to_owned();
        let question = move |engine: &Engine, tenant: &Tenant| engine.tag_values(tenant, &key, limit);
        let found = self.names(request.metadata(), question).await?;
        let message = ListTagValuesResponse { values: found.names, truncated: found.truncated };
        Ok(answer(message, found.incomplete.as_deref()))
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(self.status.status(&tenant_of(request.metadata())?)))
    }
}

//! Questions to a running appliance over gRPC, on behalf of one tenant, each with a deadline.

use std::time::Duration;

use query_api::proto::trace_query_client::TraceQueryClient;
use query_api::proto::{
    GetStatusRequest, GetStatusResponse, GetTraceRequest, GetTraceResponse, SearchTracesRequest, TraceSummary,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::error::Error;

/// No answer may take longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// One page of a search.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Newest first.
    pub(crate) traces: Vec<TraceSummary>,
    /// Empty when there is no more.
    pub(crate) next_cursor: Vec<u8>,
    /// Why something is missing, if something is.
    pub(crate) incomplete: String,
}

/// A connection to the query port. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub(crate) struct Appliance {
    client: TraceQueryClient<Channel>,
    tenant: AsciiMetadataValue,
}

impl Appliance {
    /// Connects to `endpoint` (`host:port`).
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody answers.
    pub(crate) async fn connect(endpoint: &str, tenant: &str) -> Result<Self, Error> {
        let failed = |cause: tonic::transport::Error| Error::Connect {
            endpoint: endpoint.to_owned(),
            cause: format!("{cause:?}"),
        };
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(failed)?
            .connect_timeout(Duration::from_secs(5))
            .timeout(DEADLINE)
            .tcp_nodelay(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .connect()
            .await
            .map_err(failed)?;
        let client = TraceQueryClient::new(channel).max_decoding_message_size(query_api::RESPONSE_BYTES_MAX);
        let tenant = tenant.parse().map_err(|_invalid| Error::Options(format!("'{tenant}' is no tenant")))?;
        Ok(Self { client, tenant })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-scope-orgid", self.tenant.clone());
        request
    }

    /// The trace, if there is one.
    ///
    /// # Errors
    /// [`Error::Answer`] for anything but the trace or its absence.
    pub(crate) async fn trace(&self, id: [u8; 16]) -> Result<Option<GetTraceResponse>, Error> {
        let request = self.request(GetTraceRequest { trace_id: id.to_vec() });
        match self.client.clone().get_trace(request).await {
            Ok(response) => Ok(Some(response.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(refused(&status)),
        }
    }

    /// How the appliance is and what this tenant's spans came to.
    ///
    /// # Errors
    /// [`Error::Answer`].
    pub(crate) async fn status(&self) -> Result<GetStatusResponse, Error> {
        let response = self.client.clone().get_status(self.request(GetStatusRequest {})).await;
        response.map(tonic::Response::into_inner).map_err(|status| refused(&status))
    }

    /// One page.
    ///
    /// # Errors
    /// [`Error::Answer`].
    pub(crate) async fn search(&self, search: SearchTracesRequest) -> Result<Page, Error> {
        let failed = |status: Status| refused(&status);
        let response = self.client.clone().search_traces(self.request(search)).await.map_err(failed)?;
        let mut messages = response.into_inner();
        let mut page = Page::default();
        while let Some(message) = messages.message().await.map_err(failed)? {
            page.traces.extend(message.traces);
            page.next_cursor = message.next_cursor;
            page.incomplete = message.incomplete;
        }
        Ok(page)
    }
}

fn refused(status: &Status) -> Error {
    Error::Answer { code: format!("{:?}", status.code()), message: status.message().to_owned() }
}

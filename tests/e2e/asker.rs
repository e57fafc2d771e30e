//! Questions over the query port, and the identity of spans at rest.

use std::net::SocketAddr;

use ingest_otlp::messages::TracesData;
use prost::Message as _;
use query_api::proto::trace_query_client::TraceQueryClient;
use query_api::proto::{
    GetStatusRequest, GetStatusResponse, GetTraceRequest, SearchTracesRequest, SpanCounts, TraceSummary,
};
use store_model::TraceId;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::appliance::eventually;

/// So many looks in a row must find the same before it counts as rest.
const REST_LOOKS: u32 = 15;

/// One connection to the query port.
#[derive(Clone)]
pub(crate) struct Asker {
    client: TraceQueryClient<Channel>,
    tenant: String,
}

impl Asker {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{to}")).unwrap().connect().await.unwrap();
        Self { client: query_api::client(channel), tenant: "default".to_owned() }
    }

    pub(crate) fn with_tenant(mut self, tenant: &str) -> Self {
        self.tenant = tenant.to_owned();
        self
    }

    fn question<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-scope-orgid", self.tenant.parse().unwrap());
        request
    }

    /// A trace, or nothing when there is none.
    pub(crate) async fn trace(&mut self, id: TraceId) -> Option<(TracesData, TraceSummary)> {
        let question = self.question(GetTraceRequest { trace_id: id.0.to_vec() });
        match self.client.get_trace(question).await {
            Ok(answer) => {
                assert!(
                    answer.metadata().get(query_api::INCOMPLETE_KEY).is_none(),
                    "{:?}",
                    answer.metadata()
                );
                let answer = answer.into_inner();
                let trace = TracesData::decode(answer.trace.unwrap().0).unwrap();
                Some((trace, answer.summary.unwrap()))
            }
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                None
            }
        }
    }

    /// All traces that match, over as many pages as it takes.
    pub(crate) async fn search(&mut self, request: SearchTracesRequest) -> Result<Vec<TraceSummary>, Status> {
        let mut found = Vec::new();
        let mut cursor = Vec::new();
        loop {
            let page = SearchTracesRequest { cursor: std::mem::take(&mut cursor), ..request.clone() };
            let mut stream = self.client.search_traces(self.question(page)).await?.into_inner();
            while let Some(message) = stream.message().await? {
                assert_eq!(message.incomplete, "");
                found.extend(message.traces);
                cursor = message.next_cursor;
            }
            if cursor.is_empty() {
                return Ok(found);
            }
        }
    }

    pub(crate) async fn status(&mut self) -> GetStatusResponse {
        self.client.get_status(self.question(GetStatusRequest {})).await.unwrap().into_inner()
    }

    /// Waits until `arrived` spans or more have arrived, as far as settled turns know, and none of them is undecided;
    /// then every one of them must be accounted for.
    pub(crate) async fn at_rest(&mut self, arrived: u64) -> SpanCounts {
        let mut seen = (SpanCounts::default(), 0);
        let counts = eventually("every span is decided", async || {
            let status = self.status().await;
            let counts = status.counts.unwrap();
            let is_rest = counts.undecided == 0 && status.live_traces == 0 && counts.arrived >= arrived;
            // A request on its way between two threads shows nowhere, so rest has to last.
            let looks = if is_rest && seen.0 == counts { seen.1 + 1 } else { 0 };
            seen = (counts, looks);
            (looks >= REST_LOOKS).then_some(counts)
        })
        .await;
        let SpanCounts { arrived, kept, sampled_out, shed, expired, refused, .. } = counts;
        assert_eq!(arrived, kept + sampled_out + shed + expired + refused, "{counts:?}");
        counts
    }
}

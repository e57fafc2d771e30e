//! A sender over OTLP/gRPC, and what a refusal must look like. Never tries again by itself.

use std::net::SocketAddr;
use std::time::Duration;

use ingest_otlp::messages::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::appliance::{LOOK_EVERY, PATIENCE};

/// A request that is not answered within this long counts as failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// One connection to the OTLP port.
#[derive(Clone)]
pub(crate) struct Sender {
    grpc: tonic::client::Grpc<Channel>,
    tenant: Option<String>,
}

impl Sender {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{to}")).unwrap();
        Self::over(channel).await
    }

    /// Over a connection with a way of its own.
    pub(crate) async fn over(channel: Endpoint) -> Self {
        let channel = channel.timeout(ANSWER_WITHIN).connect().await.unwrap();
        Self { grpc: tonic::client::Grpc::new(channel), tenant: None }
    }

    pub(crate) fn with_tenant(mut self, tenant: &str) -> Self {
        self.tenant = Some(tenant.to_owned());
        self
    }

    pub(crate) fn with_gzip(mut self) -> Self {
        self.grpc = self.grpc.send_compressed(CompressionEncoding::Gzip);
        self
    }

    /// Sends once. `Ok` means acknowledged, with nothing refused.
    pub(crate) async fn send(&mut self, request: &ExportTraceServiceRequest) -> Result<(), Status> {
        let path = PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        let codec = ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
        let mut request = Request::new(request.clone());
        if let Some(tenant) = &self.tenant {
            let tenant = tenant.parse().unwrap();
            request.metadata_mut().insert("x-scope-orgid", tenant);
        }
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer: tonic::Response<ExportTraceServiceResponse> =
            self.grpc.unary(request, path, codec).await?;
        let partial = answer.into_inner().partial_success;
        assert_eq!(partial, None, "a part of the request was refused");
        Ok(())
    }

    /// Sends again and again until it is acknowledged. Every refusal must be one that invites this.
    pub(crate) async fn send_until_taken(&mut self, request: &ExportTraceServiceRequest) {
        let trying = async {
            while let Err(refusal) = self.send(request).await {
                assert_invites_retry(&refusal);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.unwrap();
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// UNAVAILABLE with a `RetryInfo` among its details.
pub(crate) fn assert_invites_retry(refusal: &Status) {
    assert_eq!(refusal.code(), Code::Unavailable, "{refusal:?}");
    let details = RpcStatus::decode(refusal.details()).unwrap().details;
    let invites = details.iter().any(|any| any.type_url == "type.googleapis.com/google.rpc.RetryInfo");
    assert!(invites, "no RetryInfo in {refusal:?}");
}

//! The server as its clients see it: every call, every refusal, bytes of spans, health, reflection, shutdown.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

#[path = "../../engine/tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ingest_otlp::messages::TracesData;
use prost::Message;
use query_api::proto::{self, trace_query_client::TraceQueryClient};
use query_api::{Service, StatusSource};
use query_engine::{Engine, Limits};
use store_model::{Reason, StatusCode, Tenant, Threshold};
use support::{PretendedLive, Spec, Store, body, fragment, id};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

struct FixedStatus;

impl StatusSource for FixedStatus {
    fn status(&self, tenant: &Tenant) -> proto::GetStatusResponse {
        proto::GetStatusResponse {
            version: "1.2.3".into(),
            accepting: true,
            notices: vec![format!("asked by {tenant}")],
            ..Default::default()
        }
    }
}

struct Served {
    address: SocketAddr,
    live: Arc<PretendedLive>,
    store: Store,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), query_api::Error>>,
}

impl Served {
    async fn start() -> Self {
        let store = Store::new();
        let live = Arc::new(PretendedLive::default());
        let engine = Engine::new(store.archive(), Arc::clone(&live) as _, Limits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service::new(Arc::new(engine), Arc::new(FixedStatus));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let server = tokio::spawn(query_api::serve(listener, service, shutdown));
        Self { address, live, store, stop, server }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> TraceQueryClient<Channel> {
        query_api::client(self.channel().await)
    }
}

async fn search(
    client: &mut TraceQueryClient<Channel>,
    request: proto::SearchTracesRequest,
) -> Result<Vec<proto::SearchTracesResponse>, tonic::Status> {
    let mut stream = client.search_traces(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_trace_comes_back_byte_for_byte() {
    let served = Served::start().await;
    let spans = [Spec::default(), Spec { span_id: 2, root: false, ..Spec::default() }];
    served.live.add(&Tenant::default(), id(1), 100, &spans);
    let mut client = served.client().await;
    let request = proto::GetTraceRequest { trace_id: vec![1; 16] };
    let found = client.get_trace(request).await.unwrap().into_inner();
    let sent = TracesData::decode(body(spans.iter().map(|span| (id(1), span)))).unwrap();
    let mut sent_spans = sent.resource_spans.iter().flat_map(|group| &group.scope_spans[0].spans);
    let got = TracesData::decode(found.trace.unwrap().0).unwrap();
    let mut got_spans = got.resource_spans.iter().flat_map(|group| &group.scope_spans).flat_map(|s| &s.spans);
    assert!(sent_spans.by_ref().eq(got_spans.by_ref()));
    let summary = found.summary.unwrap();
    assert_eq!(summary.decision(), proto::Decision::Pending);
    assert_eq!((summary.span_count, summary.complete), (2, false));
    assert_eq!(summary.root_service, "shop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_otlp_library_knows_comes_back_too() {
    let served = Served::start().await;
    // Field 500 of the span, of which no version of OTLP has heard: "strange" under a key of two bytes.
    let strange = b"\xa2\x1f\x07strange";
    let mut span = b"\x0a\x10".to_vec();
    span.extend([1; 16]);
    span.extend(b"\x12\x08");
    span.extend([2; 8]);
    span.extend(strange);
    let scope = [&[0x12, u8::try_from(span.len()).unwrap()][..], &span].concat();
    let resource = [&[0x12, u8::try_from(scope.len()).unwrap()][..], &scope].concat();
    let traces = [&[0x0a, u8::try_from(resource.len()).unwrap()][..], &resource].concat();
    served.live.add(&Tenant::default(), id(1), 100, &[]);
    for live in served.live.traces.lock().unwrap().values_mut() {
        live.otlp = Bytes::from(traces.clone());
    }
    let request = proto::GetTraceRequest { trace_id: vec![1; 16] };
    let found = served.client().await.get_trace(request).await.unwrap().into_inner();
    assert_eq!(found.trace.unwrap().0, traces);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_trace_carries_its_reason_and_its_threshold() {
    let mut served = Served::start().await;
    let failed = Spec { status: StatusCode::Error, ..Spec::default() };
    let kept = store_model::Fragment {
        reason: Reason::Error,
        threshold: Threshold::from_probability(0.25),
        ..fragment(&Tenant::default(), id(1), 100, &[failed])
    };
    served.store.insert(kept);
    let request = proto::GetTraceRequest { trace_id: vec![1; 16] };
    let found = served.client().await.get_trace(request).await.unwrap().into_inner();
    let summary = found.summary.unwrap();
    assert_eq!(summary.decision(), proto::Decision::KeptError);
    assert_eq!((summary.error_count, summary.complete, summary.adjusted_count), (1, true, 4.0));
    let got = TracesData::decode(found.trace.unwrap().0).unwrap();
    assert_eq!(got.resource_spans[0].scope_spans[0].spans[0].trace_state, "ot=th:c");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_of_fifty_megabytes_fits_into_an_answer() {
    let served = Served::start().await;
    let long = Spec { colour: "x".repeat(50 << 20), ..Spec::default() };
    served.live.add(&Tenant::default(), id(1), 100, &[long]);
    let request = proto::GetTraceRequest { trace_id: vec![1; 16] };
    let found = served.client().await.get_trace(request).await.unwrap().into_inner();
    assert!(found.trace.unwrap().0.len() > 50 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_search_are_streamed_and_lead_from_one_to_the_next() {
    let mut served = Served::start().await;
    for number in 1..=250 {
        let spans = [Spec::default()];
        served.store.insert(fragment(&Tenant::default(), id(number), u64::from(number), &spans));
    }
    let mut client = served.client().await;
    let request = proto::SearchTracesRequest { service: "shop".into(), limit: 240, ..Default::default() };
    let first = search(&mut client, request.clone()).await.unwrap();
    assert_eq!(first.iter().map(|message| message.traces.len()).collect::<Vec<_>>(), [100, 100, 40]);
    assert!(first[0].next_cursor.is_empty() && !first[2].next_cursor.is_empty());
    let cursor = first[2].next_cursor.clone();
    let second = search(&mut client, proto::SearchTracesRequest { cursor, ..request.clone() }).await.unwrap();
    assert_eq!(second.iter().map(|message| message.traces.len()).collect::<Vec<_>>(), [10]);
    assert!(second[0].next_cursor.is_empty() && second[0].incomplete.is_empty());
    let ids = first.iter().chain(&second).flat_map(|message| &message.traces).map(|trace| trace.trace_id[0]);
    assert!(ids.eq((1..=250).rev()));
    let none = proto::SearchTracesRequest { service: "nobody".into(), ..request };
    assert_eq!(search(&mut client, none).await.unwrap(), [proto::SearchTracesResponse::default()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_status_answer_for_the_asking_tenant() {
    let mut served = Served::start().await;
    let team = Tenant::new("team").unwrap();
    served.store.insert(fragment(&team, id(1), 100, &[Spec::default()]));
    served.live.add(&team, id(2), 100, &[Spec { service: "cart".into(), code: 404, ..Spec::default() }]);
    let mut client = served.client().await;
    fn of_team<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-scope-orgid", "team".parse().unwrap());
        request
    }
    let services = client.list_services(of_team(proto::ListServicesRequest {})).await.unwrap();
    assert_eq!(services.into_inner().services, ["cart", "shop"]);
    let request = proto::ListOperationsRequest { service: "cart".into() };
    assert_eq!(client.list_operations(of_team(request)).await.unwrap().into_inner().operations, ["buy"]);
    let keys = client.list_tag_keys(of_team(proto::ListTagKeysRequest {})).await.unwrap();
    assert_eq!(keys.into_inner().keys, ["code", "colour", "host", "service.name"]);
    let request = proto::ListTagValuesRequest { key: "code".into(), limit: 0 };
    let values = client.list_tag_values(of_team(request.clone())).await.unwrap().into_inner();
    assert_eq!((values.values, values.truncated), (vec!["200".to_owned(), "404".to_owned()], false));
    let one = proto::ListTagValuesRequest { limit: 1, ..request };
    let values = client.list_tag_values(of_team(one)).await.unwrap().into_inner();
    assert_eq!((values.values, values.truncated), (vec!["200".to_owned()], true));
    let status = client.get_status(of_team(proto::GetStatusRequest {})).await.unwrap().into_inner();
    assert_eq!(status.notices, ["asked by team"]);
    let services = client.list_services(proto::ListServicesRequest {}).await.unwrap();
    assert!(services.into_inner().services.is_empty(), "the default tenant has nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_refused_with_advice() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let hex = proto::GetTraceRequest { trace_id: b"0102030405060708090a0b0c0d0e0f10".to_vec() };
    let refused = client.get_trace(hex).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("16 raw bytes"), "{refused}");
    let missing = client.get_trace(proto::GetTraceRequest { trace_id: vec![1; 16] }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    let request = proto::SearchTracesRequest::default;
    let empty_key = proto::Tag { key: String::new(), value: "x".into() };
    for (bad, advice) in [
        (proto::SearchTracesRequest { limit: 10_001, ..request() }, "at most 10000"),
        (proto::SearchTracesRequest { cursor: b"?".to_vec(), ..request() }, "leave it empty"),
        (
            proto::SearchTracesRequest { start_unix_nano: 5, end_unix_nano: 5, ..request() },
            "before end_unix_nano",
        ),
        (
            proto::SearchTracesRequest { min_duration_nano: 2, max_duration_nano: 1, ..request() },
            "must not exceed",
        ),
        (proto::SearchTracesRequest { status: 9, ..request() }, "use 0 to 3"),
        (proto::SearchTracesRequest { kind: 7, ..request() }, "use 0 to 6"),
        (proto::SearchTracesRequest { tags: vec![proto::Tag::default(); 65], ..request() }, "at most 64"),
        (proto::SearchTracesRequest { tags: vec![empty_key], ..request() }, "must name an attribute"),
    ] {
        let refused = search(&mut client, bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(advice), "{refused}");
    }
    let refused = client.list_tag_values(proto::ListTagValuesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut request = Request::new(proto::ListServicesRequest {});
    request.metadata_mut().insert("x-scope-orgid", "a/b".parse().unwrap());
    let refused = client.list_services(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("x-scope-orgid"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health_know_the_service() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    const NAME: &str = "sluicebox.v1.TraceQuery";
    let served = Served::start().await;
    let channel = served.channel().await;
    let ask = async |question: MessageRequest| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut client = ServerReflectionClient::new(channel.clone());
        let answers = client.server_reflection_info(tokio_stream::once(request));
        let answer: ServerReflectionResponse =
            answers.await.unwrap().into_inner().message().await.unwrap().unwrap();
        answer.message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("expected a list");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.iter().any(|name| name == NAME), "{names:?}");
    // A client needs OTLP's messages too, although the server has no code for them.
    for symbol in [NAME, "opentelemetry.proto.trace.v1.Span", "opentelemetry.proto.common.v1.AnyValue"] {
        let answer = ask(MessageRequest::FileContainingSymbol(symbol.into())).await;
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{symbol}: {answer:?}");
    }
    for service in [NAME, ""] {
        let request = HealthCheckRequest { service: service.into() };
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_although_somebody_watches_its_health() {
    let served = Served::start().await;
    let request = HealthCheckRequest { service: "sluicebox.v1.TraceQuery".into() };
    let mut watch = HealthClient::new(served.channel().await).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    served.stop.send(()).unwrap();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    served.server.await.unwrap().unwrap();
}

//! tonic as one more client: bytes in, what it heard out, in the form of the others. Judges nothing.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};
use serde_json::{Value, json};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::grpc::{Case, hex};

#[derive(Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(input.copy_to_bytes(input.remaining()).into()))
    }
}

/// Makes every call over one channel.
pub(crate) async fn call_all(to: SocketAddr, cases: &[Case]) -> Vec<Value> {
    let channel = Channel::from_shared(format!("http://{to}")).unwrap().connect().await.unwrap();
    let mut all = Vec::new();
    for case in cases {
        let heard = match call(&channel, case).await {
            Ok(answer) => json!({ "name": case.name, "code": 0, "answer": hex(&answer) }),
            Err(status) => json!({
                "name": case.name,
                "code": i32::from(status.code()),
                "message": status.message(),
                "details": hex(status.details()),
            }),
        };
        all.push(heard);
    }
    all
}

async fn call(channel: &Channel, case: &Case) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    if case.gzip {
        grpc = grpc.send_compressed(CompressionEncoding::Gzip);
    }
    let mut request = Request::new(case.body.clone());
    if !case.tenant.is_empty() {
        request.metadata_mut().insert("x-scope-orgid", case.tenant.parse().unwrap());
    }
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    grpc.unary(request, case.path.parse().unwrap(), Plain).await.map(tonic::Response::into_inner)
}

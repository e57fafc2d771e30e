//! `zipkin.proto3.ListOfSpans`. Fields: <https://github.com/openzipkin/zipkin-api/blob/master/zipkin.proto>

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Builder, Endpoint};
use crate::error::Error;
use crate::otlp::{Id, Request, kind, text};
use crate::protobuf::Message;

/// Adds every span of the list.
pub(crate) fn read(body: &[u8], request: &mut Request) -> Result<(), Error> {
    let mut builder = Builder::new(request);
    let mut list = Message::new(body);
    while let Some(field) = list.next()? {
        if field.number == 1 {
            read_span(field.message()?, &mut builder)?;
            builder.finish(request)?;
        }
    }
    Ok(())
}

fn read_span(mut span: Message<'_>, builder: &mut Builder) -> Result<(), Error> {
    while let Some(field) = span.next()? {
        match field.number {
            1 => builder.span.trace_id = Id::of_bytes(field.bytes()?),
            2 => builder.span.parent_id = Id::of_bytes(field.bytes()?),
            3 => builder.span.span_id = Id::of_bytes(field.bytes()?),
            4 => {
                builder.span.kind = match field.int32()? {
                    1 => kind::CLIENT,
                    2 => kind::SERVER,
                    3 => kind::PRODUCER,
                    4 => kind::CONSUMER,
                    _ => kind::UNSPECIFIED,
                }
            }
            5 => builder.span.set_name(&text(field.bytes()?)),
            6 => builder.timestamp = field.fixed64()?,
            7 => builder.duration = field.varint()?,
            8 => read_endpoint(field.message()?, &mut builder.local)?,
            9 => read_endpoint(field.message()?, &mut builder.remote)?,
            10 => read_annotation(field.message()?, builder)?,
            11 => read_tag(field.message()?, builder)?,
            12 => builder.debug(field.bool()?),
            13 => builder.shared = field.bool()?,
            _ => {}
        }
    }
    Ok(())
}

fn read_endpoint(mut message: Message<'_>, endpoint: &mut Endpoint) -> Result<(), Error> {
    while let Some(field) = message.next()? {
        match field.number {
            1 => endpoint.set_service(&text(field.bytes()?)),
            // Bytes of another length are no address.
            2 => {
                if let Ok(address) = <[u8; 4]>::try_from(field.bytes()?) {
                    endpoint.set_address(&Ipv4Addr::from(address).to_string(), false);
                }
            }
            3 => {
                if let Ok(address) = <[u8; 16]>::try_from(field.bytes()?) {
                    endpoint.set_address(&Ipv6Addr::from(address).to_string(), true);
                }
            }
            4 => endpoint.port = i64::from(field.int32()?),
            _ => {}
        }
    }
    Ok(())
}

fn read_annotation(mut message: Message<'_>, builder: &mut Builder) -> Result<(), Error> {
    let (mut timestamp, mut value): (_, &[u8]) = (0, b"");
    while let Some(field) = message.next()? {
        match field.number {
            1 => timestamp = field.fixed64()?,
            2 => value = field.bytes()?,
            _ => {}
        }
    }
    builder.annotation(timestamp, &text(value))
}

fn read_tag(mut entry: Message<'_>, builder: &mut Builder) -> Result<(), Error> {
    let (mut key, mut value): (&[u8], &[u8]) = (b"", b"");
    while let Some(field) = entry.next()? {
        match field.number {
            1 => key = field.bytes()?,
            2 => value = field.bytes()?,
            _ => {}
        }
    }
    builder.tag(&text(key), &text(value))
}

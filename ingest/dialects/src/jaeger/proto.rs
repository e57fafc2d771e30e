//! `jaeger.api_v2.PostSpansRequest`.
//! Fields: <https://github.com/jaegertracing/jaeger-idl/blob/main/proto/api_v2/model.proto>

use super::{Builder, Log, Process, Reference, Tag, TagKind};
use crate::error::Error;
use crate::otlp::{Id, Request, text};
use crate::protobuf::{Field, Message};

/// Adds every span of the batch.
pub(crate) fn read(body: &[u8], request: &mut Request) -> Result<(), Error> {
    // The process stands behind the spans that it applies to, so the batch is passed over twice.
    let mut process = Process::default();
    each_of_batch(body, 2, &mut |field| read_process(field.message()?, &mut process, request.bytes_max()))?;
    let mut builder = Builder::new(request);
    let mut shared = None;
    each_of_batch(body, 1, &mut |field| {
        let own = read_span(field.message()?, &mut builder)?;
        let place = match (own, shared) {
            (Some(own), _) => own.place(request)?,
            (None, Some(place)) => place,
            (None, None) => *shared.insert(process.place(request)?),
        };
        builder.finish(place, request)
    })
}

/// Visits the fields `number` of the request's batch, which may come in parts.
fn each_of_batch<'a>(
    body: &'a [u8],
    number: u32,
    each: &mut impl FnMut(Field<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut request = Message::new(body);
    while let Some(field) = request.next()? {
        if field.number == 1 {
            let mut batch = field.message()?;
            while let Some(field) = batch.next()? {
                if field.number == number {
                    each(field)?;
                }
            }
        }
    }
    Ok(())
}

fn read_process(mut message: Message<'_>, process: &mut Process, bytes_max: usize) -> Result<(), Error> {
    while let Some(field) = message.next()? {
        match field.number {
            1 => process.service = field.bytes()?.to_owned(),
            2 => process.tag(&read_tag(field.message()?)?, bytes_max)?,
            _ => {}
        }
    }
    Ok(())
}

/// Reads a span, and its own process if it has one.
fn read_span(mut message: Message<'_>, builder: &mut Builder) -> Result<Option<Process>, Error> {
    let mut process: Option<Process> = None;
    let (mut start, mut duration) = (Time::default(), Time::default());
    while let Some(field) = message.next()? {
        match field.number {
            1 => builder.span.trace_id = Id::of_bytes(field.bytes()?),
            2 => builder.span.span_id = Id::of_bytes(field.bytes()?),
            3 => builder.span.set_name(&text(field.bytes()?)),
            4 => builder.reference(read_reference(field.message()?)?)?,
            5 => builder.flags(field.int()?),
            6 => start.read(field.message()?)?,
            7 => duration.read(field.message()?)?,
            8 => builder.tag(&read_tag(field.message()?)?)?,
            9 => {
                let log = read_log(field.message()?, builder)?;
                builder.log(log)?;
            }
            10 => {
                let own = process.get_or_insert_default();
                read_process(field.message()?, own, builder.span.bytes_max())?;
            }
            // Only the answers of Jaeger's query service refer to a process by name.
            11 => drop(field.bytes()?),
            12 => builder.warning(field.bytes()?)?,
            _ => {}
        }
    }
    builder.span.start_ns = start.nanos();
    builder.span.end_ns = start.nanos().saturating_add(duration.nanos());
    Ok(process)
}

fn read_reference(mut message: Message<'_>) -> Result<Reference, Error> {
    let mut reference = Reference::default();
    while let Some(field) = message.next()? {
        match field.number {
            1 => reference.trace_id = Id::of_bytes(field.bytes()?),
            2 => reference.span_id = Id::of_bytes(field.bytes()?),
            3 => reference.follows = field.int32()? != 0,
            _ => {}
        }
    }
    Ok(reference)
}

fn read_log(mut message: Message<'_>, builder: &Builder) -> Result<Log, Error> {
    let mut log = Log::default();
    let mut time = Time::default();
    while let Some(field) = message.next()? {
        match field.number {
            1 => time.read(field.message()?)?,
            2 => log.field(&read_tag(field.message()?)?, &builder.span)?,
            _ => {}
        }
    }
    log.time_ns = time.nanos();
    Ok(log)
}

fn read_tag(mut message: Message<'_>) -> Result<Tag<'_>, Error> {
    let mut tag = Tag::default();
    while let Some(field) = message.next()? {
        match field.number {
            1 => tag.key = field.bytes()?,
            2 => {
                tag.kind = match field.int32()? {
                    1 => TagKind::Bool,
                    2 => TagKind::Int,
                    3 => TagKind::Double,
                    4 => TagKind::Binary,
                    _ => TagKind::Text,
                }
            }
            3 => tag.text = field.bytes()?,
            4 => tag.flag = field.bool()?,
            5 => tag.int = field.int()?,
            6 => tag.double = field.double()?,
            7 => tag.binary = field.bytes()?,
            _ => {}
        }
    }
    Ok(tag)
}

/// A `Timestamp` or a `Duration`, which have one form.
#[derive(Clone, Copy, Debug, Default)]
struct Time {
    seconds: i64,
    nanos: i32,
}

impl Time {
    fn read(&mut self, mut message: Message<'_>) -> Result<(), Error> {
        while let Some(field) = message.next()? {
            match field.number {
                1 => self.seconds = field.int()?,
                2 => self.nanos = field.int32()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// All of it in nanoseconds; zero for what lies before zero.
    fn nanos(self) -> u64 {
        let nanos = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos);
        u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
    }
}

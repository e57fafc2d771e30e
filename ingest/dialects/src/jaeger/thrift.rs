//! Jaeger's `Batch` in Thrift, alone or as the argument of `emitBatch` or `submitBatches`.
//! Fields: <https://github.com/jaegertracing/jaeger-idl/blob/main/thrift/jaeger.thrift>
//!
//! Names that are read twice in a `match` are a field's id and its type; a field of another type than its own is
//! stepped over, as generated code does.

use super::{Builder, Log, Process, Reference, Tag, TagKind};
use crate::error::Error;
use crate::otlp::{Id, Request, nanos, text};
use crate::thrift::{Fields, Reader, Type};

/// Adds every span of the batch or the batches.
pub(crate) fn read(mut reader: Reader<'_>, request: &mut Request) -> Result<(), Error> {
    let mut builder = Builder::new(request);
    if !reader.skip_call_header()? {
        read_batch(&mut reader, &mut builder, request)?;
    } else {
        let mut arguments = Fields::default();
        while let Some(field) = arguments.next(&mut reader)? {
            match field {
                (1, Type::Struct) => read_batch(&mut reader, &mut builder, request)?,
                (1, Type::List) => {
                    for _ in 0..reader.structs()? {
                        read_batch(&mut reader, &mut builder, request)?;
                    }
                }
                (_, kind) => reader.skip(kind)?,
            }
        }
    }
    if reader.is_done() { Ok(()) } else { Err(reader.malformed("something follows the batch")) }
}

fn read_batch(reader: &mut Reader<'_>, builder: &mut Builder, request: &mut Request) -> Result<(), Error> {
    let mut process = Process::default();
    // Writers put the process first, but nothing makes them; spans that come before it are gone back to.
    let mut has_process = false;
    let mut passed: Option<Reader<'_>> = None;
    let mut fields = Fields::default();
    while let Some(field) = fields.next(reader)? {
        match field {
            (1, Type::Struct) => {
                process = read_process(reader, request.bytes_max())?;
                has_process = true;
            }
            (2, Type::List) if has_process => read_spans(reader, &process, builder, request)?,
            (2, Type::List) => {
                passed = Some(*reader);
                reader.skip(Type::List)?;
            }
            (_, kind) => reader.skip(kind)?,
        }
    }
    passed.map_or(Ok(()), |mut reader| read_spans(&mut reader, &process, builder, request))
}

fn read_spans(
    reader: &mut Reader<'_>,
    process: &Process,
    builder: &mut Builder,
    request: &mut Request,
) -> Result<(), Error> {
    let count = reader.structs()?;
    if count == 0 {
        return Ok(());
    }
    let place = process.place(request)?;
    for _ in 0..count {
        read_span(reader, builder)?;
        builder.finish(place, request)?;
    }
    Ok(())
}

fn read_process(reader: &mut Reader<'_>, bytes_max: usize) -> Result<Process, Error> {
    let mut process = Process::default();
    let mut fields = Fields::default();
    while let Some(field) = fields.next(reader)? {
        match field {
            (1, Type::Bytes) => process.service = reader.bytes()?.to_owned(),
            (2, Type::List) => {
                for _ in 0..reader.structs()? {
                    process.tag(&read_tag(reader)?, bytes_max)?;
                }
            }
            (_, kind) => reader.skip(kind)?,
        }
    }
    Ok(process)
}

fn read_span(reader: &mut Reader<'_>, builder: &mut Builder) -> Result<(), Error> {
    let (mut id_low, mut id_high) = (0, 0);
    let (mut start, mut duration) = (0, 0);
    let mut fields = Fields::default();
    while let Some(field) = fields.next(reader)? {
        match field {
            (1, Type::I64) => id_low = reader.int(Type::I64)?,
            (2, Type::I64) => id_high = reader.int(Type::I64)?,
            (3, Type::I64) => builder.span.span_id = span_id(reader.int(Type::I64)?),
            (4, Type::I64) => builder.span.parent_id = span_id(reader.int(Type::I64)?),
            (5, Type::Bytes) => builder.span.set_name(&text(reader.bytes()?)),
            (6, Type::List) => {
                for _ in 0..reader.structs()? {
                    builder.reference(read_reference(reader)?)?;
                }
            }
            (7, Type::I32) => builder.flags(reader.int(Type::I32)?),
            (8, Type::I64) => start = micros(reader.int(Type::I64)?),
            (9, Type::I64) => duration = micros(reader.int(Type::I64)?),
            (10, Type::List) => {
                for _ in 0..reader.structs()? {
                    builder.tag(&read_tag(reader)?)?;
                }
            }
            (11, Type::List) => {
                for _ in 0..reader.structs()? {
                    let log = read_log(reader, builder)?;
                    builder.log(log)?;
                }
            }
            (_, kind) => reader.skip(kind)?,
        }
    }
    builder.span.trace_id = trace_id(id_high, id_low);
    builder.span.start_ns = nanos(start);
    builder.span.end_ns = nanos(start.saturating_add(duration));
    Ok(())
}

fn read_reference(reader: &mut Reader<'_>) -> Result<Reference, Error> {
    let mut reference = Reference::default();
    let (mut id_low, mut id_high) = (0, 0);
    let mut fields = Fields::default();
    while let Some(field) = fields.next(reader)? {
        match field {
            (1, Type::I32) => reference.follows = reader.int(Type::I32)? != 0,
            (2, Type::I64) => id_low = reader.int(Type::I64)?,
            (3, Type::I64) => id_high = reader.int(Type::I64)?,
            (4, Type::I64) => reference.span_id = span_id(reader.int(Type::I64)?),
            (_, kind) => reader.skip(kind)?,
        }
    }
    reference.trace_id = trace_id(id_high, id_low);
    Ok(reference)
}

fn read_log(reader: &mut Reader<'_>, builder: &Builder) -> Result<Log, Error> {
    let mut log = Log::default();
    let mut fields = Fields::default();
    while let Some(field) = fields.next(reader)? {
        match field {
            (1, Type::I64) => log.time_ns = nanos(micros(reader.int(Type::I64)?)),
            (2, Type::List) => {
                for _ in 0..reader.structs()? {
                    log.field(&read_tag(reader)?, &builder.span)?;
                }
            }
            (_, kind) => reader.skip(kind)?,
        }
    }
    Ok(log)
}

fn read_tag<'a>(reader: &mut Reader<'a>) -> Result<Tag<'a>, Error> {
    let mut tag = Tag::default();
    let mut fields = Fields::default();
    while let Some(field) = fields.next(reader)? {
        match field {
            (1, Type::Bytes) => tag.key = reader.bytes()?,
            (2, Type::I32) => {
                tag.kind = match reader.int(Type::I32)? {
                    1 => TagKind::Double,
                    2 => TagKind::Bool,
                    3 => TagKind::Int,
                    4 => TagKind::Binary,
                    _ => TagKind::Text,
                }
            }
            (3, Type::Bytes) => tag.text = reader.bytes()?,
            (4, Type::Double) => tag.double = reader.double()?,
            (5, Type::Bool) => tag.flag = reader.bool()?,
            (6, Type::I64) => tag.int = reader.int(Type::I64)?,
            (7, Type::Bytes) => tag.binary = reader.bytes()?,
            (_, kind) => reader.skip(kind)?,
        }
    }
    Ok(tag)
}

fn trace_id(high: i64, low: i64) -> Id<16> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&high.to_be_bytes());
    id[8..].copy_from_slice(&low.to_be_bytes());
    Id::Given(id)
}

fn span_id(id: i64) -> Id<8> {
    Id::Given(id.to_be_bytes())
}

/// Microseconds since 1970 or of a duration; zero for what lies before zero.
fn micros(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

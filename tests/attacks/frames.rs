//! HTTP/2 frames as an attacker writes them: any of them, in any order. Reads none.

/// What every client says first, with no settings.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn text(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let prefix = match u8::try_from(length) {
        Ok(short) if short < 127 => vec![short],
        _ => {
            let rest = length - 127;
            assert!(rest < 1 << 14, "two more bytes hold no more");
            vec![127, u8::try_from(rest % 128).unwrap() | 0x80, u8::try_from(rest / 128).unwrap()]
        }
    };
    [prefix, bytes.to_vec()].concat()
}

/// A field that enters no table.
pub(crate) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

/// A field that enters the table, where its index is 62.
pub(crate) fn kept_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0x40], text(name), text(value)].concat()
}

/// The header block of an OTLP/gRPC request.
pub(crate) fn export() -> Vec<u8> {
    let path = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    [
        vec![0x83, 0x86],
        field(b":path", path),
        field(b":authority", b"a"),
        field(b"content-type", b"application/grpc"),
    ]
    .concat()
}

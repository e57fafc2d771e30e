//! A request's head: the line, the fields, and what they say about where the request ends. Refuses whatever two readers
//! could understand differently.

use std::mem::MaybeUninit;

use httparse::Status;

use super::chunked::Chunks;
use super::{Body, Cut};

const FIELDS_MAX: usize = 100;

/// Longer names than this mean nothing to us.
const NAME_BYTES_MAX: usize = 32;

/// What the framing of a request needs to know of its head.
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) body: Body,
    pub(super) keeps: bool,
    pub(super) is_old: bool,
    pub(super) is_head_request: bool,
    pub(super) awaits_continue: bool,
}

/// Reads the head at the start of `bytes` and gives each field to `field`, names in lower case; `None` while it is not
/// complete.
pub(super) fn read(
    bytes: &[u8],
    bytes_max: usize,
    field: &mut impl FnMut(&[u8], &[u8]),
) -> Result<Option<Head>, Cut> {
    let bytes = &bytes[..bytes.len().min(bytes_max)];
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() == bytes_max => return Err(Cut::HeadTooLarge),
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Cut::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Cut::OtherProtocol),
        Err(_illegal) => return Err(Cut::Malformed),
    };
    let is_old = request.version == Some(0);
    let method = request.method.unwrap_or_default();
    let mut framing = Framing::default();
    field(b":method", method.as_bytes());
    field(b":path", origin_form(request.path.unwrap_or_default()).as_bytes());
    for line in request.headers.iter() {
        let mut lower = [0; NAME_BYTES_MAX];
        let Some(name) = lower.get_mut(..line.name.len()) else { continue };
        name.copy_from_slice(line.name.as_bytes());
        name.make_ascii_lowercase();
        let value = line.value.trim_ascii();
        framing.note(name, value)?;
        field(name, value);
    }
    // HTTP/1.1 wants exactly one host; two are a way to be understood differently (RFC 9112, section 3.2).
    if framing.hosts > 1 || (framing.hosts == 0 && !is_old) {
        return Err(Cut::Malformed);
    }
    Ok(Some(Head {
        length,
        body: framing.body(is_old)?,
        keeps: !framing.closes && (!is_old || framing.keeps),
        is_old,
        is_head_request: method == "HEAD",
        awaits_continue: framing.awaits_continue && !is_old,
    }))
}

/// The path and query of a target that may be a whole URL.
fn origin_form(target: &str) -> &str {
    if target.starts_with('/') {
        return target;
    }
    let after_scheme = target.split_once("://").map_or("", |(_, rest)| rest);
    after_scheme.find('/').map_or("", |start| &after_scheme[start..])
}

#[derive(Default)]
struct Framing {
    length: Option<u64>,
    is_chunked: bool,
    hosts: u32,
    closes: bool,
    keeps: bool,
    awaits_continue: bool,
}

impl Framing {
    fn note(&mut self, name: &[u8], value: &[u8]) -> Result<(), Cut> {
        match name {
            b"content-length" => {
                let digits = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
                let length = str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
                if self.length.is_some() || length.is_none() {
                    return Err(Cut::Malformed);
                }
                self.length = length;
            }
            b"transfer-encoding" => {
                if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Cut::Malformed);
                }
                self.is_chunked = true;
            }
            b"host" => self.hosts += 1,
            b"expect" => self.awaits_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            b"connection" => {
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    self.closes |= option.eq_ignore_ascii_case(b"close");
                    self.keeps |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn body(&self, is_old: bool) -> Result<Body, Cut> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(Cut::Malformed),
            // HTTP/1.0 knows no codings, so a proxy before us may have read this differently.
            (true, None) if is_old => Err(Cut::Malformed),
            (true, None) => Ok(Body::Chunked(Chunks::new())),
            (false, length) => Ok(Body::Length(length.unwrap_or(0))),
        }
    }
}

//! What makes a request head well-formed: RFC 9113, sections 8.1 to 8.3. It judges fields one at a time and keeps no
//! bytes.
//!
//! Two deviations. White space around a value is dropped instead of refused: nothing is forwarded, so nothing can be
//! smuggled, and a token pasted with a blank should not cost its owner an evening. CONNECT is refused as malformed:
//! nothing here could be connected to.

/// What a field is to the checks below. Worked out once where the field is spelled out and kept with the table entry,
/// so that a field which comes as an index costs no look at its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    Regular,
    ContentLength,
    Method,
    Scheme,
    Authority,
    Path,
    /// Never allowed in a request: bytes that are illegal in names or values, upper case, an unknown pseudo field,
    /// a field that speaks of a connection.
    Malformed,
}

/// Which class a field is of.
pub fn classify(name: &[u8], value: &[u8]) -> Class {
    if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        return Class::Malformed;
    }
    match name {
        b":method" => Class::Method,
        b":scheme" => Class::Scheme,
        b":authority" => Class::Authority,
        b":path" => Class::Path,
        b"content-length" => Class::ContentLength,
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            Class::Malformed
        }
        b"te" if value != b"trailers" => Class::Malformed,
        [] => Class::Malformed,
        _ if name.iter().all(|&byte| IN_NAMES[usize::from(byte)]) => Class::Regular,
        _ => Class::Malformed,
    }
}

/// RFC 9110's token characters without upper case.
static IN_NAMES: [bool; 256] = {
    let mut allowed = [false; 256];
    let others = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < others.len() {
        allowed[others[at] as usize] = true;
        at += 1;
    }
    allowed
};

/// The value without the white space around it.
pub fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A head while its fields pass by.
#[derive(Debug, Default)]
pub struct Head {
    /// One bit a pseudo field, and one for the first field that is none.
    seen: u8,
    is_malformed: bool,
    content_length: Option<u64>,
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const AUTHORITY: u8 = 4;
const PATH: u8 = 8;
const REGULAR: u8 = 16;

impl Head {
    /// Judges the next field.
    pub fn take(&mut self, class: Class, value: &[u8]) {
        match class {
            Class::Regular => self.seen |= REGULAR,
            Class::Method => self.pseudo(METHOD),
            Class::Scheme => self.pseudo(SCHEME),
            Class::Authority => self.pseudo(AUTHORITY),
            Class::Path if value.is_empty() => self.is_malformed = true,
            Class::Path => self.pseudo(PATH),
            Class::ContentLength => self.length(value),
            Class::Malformed => self.is_malformed = true,
        }
    }

    fn pseudo(&mut self, bit: u8) {
        self.is_malformed |= self.seen & (bit | REGULAR) != 0;
        self.seen |= bit;
    }

    fn length(&mut self, value: &[u8]) {
        self.seen |= REGULAR;
        let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        let length = value
            .iter()
            .fold(0, |sum: u64, byte| sum.wrapping_mul(10).wrapping_add(u64::from(byte.wrapping_sub(b'0'))));
        let agrees = self.content_length.is_none_or(|earlier| earlier == length);
        self.is_malformed |= !digits || !agrees;
        self.content_length = Some(length);
    }

    /// What is wrong is wrong already.
    pub fn is_malformed(&self) -> bool {
        self.is_malformed
    }

    /// Whether all of it makes a request.
    pub fn is_request(&self) -> bool {
        let required = METHOD | SCHEME | PATH;
        !self.is_malformed && self.seen & required == required
    }

    /// Whether all of it makes trailers.
    pub fn is_trailers(&self) -> bool {
        !self.is_malformed && self.seen & !REGULAR == 0
    }

    /// The length of the body, if one was promised.
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_request(fields: &[(&str, &str)]) -> bool {
        let mut head = Head::default();
        for (name, value) in fields {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            head.take(classify(name, value), trimmed(value));
        }
        head.is_request()
    }

    const METHOD_POST: (&str, &str) = (":method", "POST");
    const SCHEME_HTTP: (&str, &str) = (":scheme", "http");
    const PATH_V1: (&str, &str) = (":path", "/v1/traces");

    fn with(field: (&str, &str)) -> bool {
        is_request(&[METHOD_POST, SCHEME_HTTP, PATH_V1, field])
    }

    #[test]
    fn pseudo_fields_are_complete_single_and_first() {
        assert!(is_request(&[METHOD_POST, SCHEME_HTTP, PATH_V1]));
        assert!(is_request(&[PATH_V1, (":authority", "host:4317"), SCHEME_HTTP, METHOD_POST, ("a", "")]));
        assert!(!is_request(&[SCHEME_HTTP, PATH_V1]));
        assert!(!is_request(&[METHOD_POST, PATH_V1]));
        assert!(!is_request(&[METHOD_POST, SCHEME_HTTP]));
        assert!(!is_request(&[METHOD_POST, SCHEME_HTTP, (":path", "")]));
        assert!(!is_request(&[METHOD_POST, SCHEME_HTTP, ("a", "b"), PATH_V1]));
        assert!(!with(PATH_V1));
        assert!(!with((":status", "200")));
        assert!(!with((":protocol", "websocket")));
    }

    #[test]
    fn names_and_values_with_illegal_bytes_are_malformed() {
        assert!(with(("x-scope-orgid", "shop")));
        for name in ["", "Content-Type", "a b", "a:b", ":", "a\0", "caf\u{e9}"] {
            assert!(!with((name, "x")), "{name:?}");
        }
        for value in ["a\rb", "a\nb", "a\0b"] {
            assert!(!with(("a", value)), "{value:?}");
        }
        assert!(with(("a", "caf\u{e9} \t ok")));
    }

    #[test]
    fn fields_about_connections_are_malformed() {
        for name in ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"] {
            assert!(!with((name, "x")), "{name}");
        }
        assert!(with(("te", "trailers")));
        assert!(!with(("te", "gzip")));
    }

    #[test]
    fn content_length_is_one_number() {
        assert!(with(("content-length", "12")));
        assert!(with(("content-length", " 12 ")));
        for value in ["", "-1", "+1", "1x", "1, 1", "9999999999999999999"] {
            assert!(!with(("content-length", value)), "{value:?}");
        }
        let mut head = Head::default();
        head.take(Class::ContentLength, b"7");
        head.take(Class::ContentLength, b"7");
        assert_eq!((head.is_malformed(), head.content_length()), (false, Some(7)));
        head.take(Class::ContentLength, b"8");
        assert!(head.is_malformed());
    }
}

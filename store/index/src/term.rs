//! Terms: what a row can be asked for, and the bytes that stand for it. Owns the byte form; knows nothing of rows.
//!
//! ```text
//! tenant number u32 BE | kind u8 | parts
//!   1 tenant             -
//!   2 service            raw service
//!   3 operation          raw operation
//!   4 service+operation  escaped service, raw operation
//!   5 status             code u8
//!   6 span kind          number u8
//!   7 attribute          escaped key, raw value
//! ```
//! A raw part runs to the end of the term. An escaped part writes byte 00 as 00 FF and ends with 00 00, so any bytes are
//! unambiguous and terms sort by tenant, kind, first part, second part. Every list a query asks for (all values of a
//! key, say) is thereby one range with a common prefix.
//!
//! Parts are cut to [`PART_BYTES_MAX`], when written and when looked up alike; a match on a longer text must be verified
//! on the span.

use store_model::{SpanKind, StatusCode};

use crate::error::Error;

/// Texts are indexed by this many of their first bytes (fewer when that would split a UTF-8 character). Longer ones are
/// prose, stack traces and payloads, which nobody looks up whole.
pub const PART_BYTES_MAX: usize = 1024;

const TENANT: u8 = 1;
const SERVICE: u8 = 2;
const OPERATION: u8 = 3;
const SERVICE_OPERATION: u8 = 4;
const STATUS: u8 = 5;
const KIND: u8 = 6;
const ATTRIBUTE: u8 = 7;

/// One thing that is true of a trace if it is true of any of its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term<'a> {
    /// Belongs to the tenant: every row does, to one.
    Tenant,
    /// Has a span of this service.
    Service(&'a [u8]),
    /// Has a span of this name.
    Operation(&'a [u8]),
    /// Has a span of this service that has this name.
    ServiceOperation(&'a [u8], &'a [u8]),
    /// Has a span of this status.
    Status(StatusCode),
    /// Has a span of this kind.
    Kind(SpanKind),
    /// Has a span, or the resource of a span, with this attribute, its value in text form.
    Attribute {
        /// The attribute's key.
        key: &'a [u8],
        /// The text form of its value.
        value: &'a [u8],
    },
}

impl Term<'_> {
    /// Appends the term's bytes.
    pub fn encode(&self, tenant_number: u32, out: &mut Vec<u8>) {
        out.extend(tenant_number.to_be_bytes());
        match *self {
            Self::Tenant => out.push(TENANT),
            Self::Service(service) => put_raw(out, SERVICE, service),
            Self::Operation(operation) => put_raw(out, OPERATION, operation),
            Self::ServiceOperation(service, operation) => {
                out.push(SERVICE_OPERATION);
                put_escaped(out, service);
                out.extend_from_slice(cut(operation));
            }
            Self::Status(status) => out.extend([STATUS, status as u8]),
            Self::Kind(kind) => out.extend([KIND, kind as u8]),
            Self::Attribute { key, value } => {
                out.push(ATTRIBUTE);
                put_escaped(out, key);
                out.extend_from_slice(cut(value));
            }
        }
    }
}

/// What stands before every service of a tenant; a service follows, raw.
#[must_use]
pub fn services_prefix(tenant_number: u32) -> Vec<u8> {
    prefix(tenant_number, SERVICE)
}

/// What stands before every operation of a tenant, or of one of its services; an operation follows, raw.
#[must_use]
pub fn operations_prefix(tenant_number: u32, service: Option<&[u8]>) -> Vec<u8> {
    let Some(service) = service else {
        return prefix(tenant_number, OPERATION);
    };
    let mut out = prefix(tenant_number, SERVICE_OPERATION);
    put_escaped(&mut out, service);
    out
}

/// What stands before every attribute of a tenant; a key follows, escaped, and a value, raw.
#[must_use]
pub fn attributes_prefix(tenant_number: u32) -> Vec<u8> {
    prefix(tenant_number, ATTRIBUTE)
}

/// What stands before every value of an attribute; a value follows, raw.
#[must_use]
pub fn values_prefix(tenant_number: u32, key: &[u8]) -> Vec<u8> {
    let mut out = prefix(tenant_number, ATTRIBUTE);
    put_escaped(&mut out, key);
    out
}

/// The escaped part that `bytes` begin with, its end mark included.
///
/// # Errors
/// [`Error::Corrupt`] when it has no end.
pub fn escaped_part(bytes: &[u8]) -> Result<&[u8], Error> {
    let mut position = 0;
    while let Some(at) = bytes.get(position..).and_then(|rest| rest.iter().position(|&byte| byte == 0)) {
        let end = position + at + 2;
        match bytes.get(end - 1) {
            Some(0) => return Ok(&bytes[..end]),
            _ => position = end,
        }
    }
    Err(Error::Corrupt { what: "a term" })
}

/// The text that an escaped part stands for.
#[must_use]
pub fn unescape(part: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.iter();
    while let Some(&byte) = bytes.next() {
        if byte == 0 && bytes.next() != Some(&0xFF) {
            break;
        }
        out.push(byte);
    }
    out
}

fn prefix(tenant_number: u32, kind: u8) -> Vec<u8> {
    let mut out = tenant_number.to_be_bytes().to_vec();
    out.push(kind);
    out
}

fn put_raw(out: &mut Vec<u8>, kind: u8, part: &[u8]) {
    out.push(kind);
    out.extend_from_slice(cut(part));
}

fn put_escaped(out: &mut Vec<u8>, part: &[u8]) {
    let part = cut(part);
    if !part.contains(&0) {
        out.extend_from_slice(part);
    } else {
        for &byte in part {
            out.push(byte);
            out.extend((byte == 0).then_some(0xFF));
        }
    }
    out.extend([0, 0]);
}

fn cut(part: &[u8]) -> &[u8] {
    if part.len() <= PART_BYTES_MAX {
        return part;
    }
    // A UTF-8 character has at most three bytes after its first; what is longer is no UTF-8 and may be cut anywhere.
    let splits_character = |end: &usize| part[*end] & 0xC0 == 0x80;
    let end = (PART_BYTES_MAX - 3..=PART_BYTES_MAX).rev().find(|end| !splits_character(end));
    &part[..end.unwrap_or(PART_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(term: Term<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        term.encode(7, &mut out);
        out
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "é".repeat(PART_BYTES_MAX);
        let shifted = format!("x{long}");
        let a = encoded(Term::Service(long.as_bytes()));
        let b = encoded(Term::Service(shifted.as_bytes()));
        assert_eq!((a.len(), b.len()), (5 + 1024, 5 + 1023));
        assert!(std::str::from_utf8(&b[5..]).is_ok());
        let binary = encoded(Term::Service(&[0x80; 2000]));
        assert_eq!(binary.len(), 5 + 1024);
    }

    #[test]
    fn kinds_of_terms_never_meet() {
        let terms = [
            Term::Tenant,
            Term::Service(b"a"),
            Term::Operation(b"a"),
            Term::ServiceOperation(b"a", b""),
            Term::Status(StatusCode::Error),
            Term::Kind(SpanKind::Server),
            Term::Attribute { key: b"a", value: b"" },
        ];
        let all: std::collections::HashSet<_> = terms.into_iter().map(encoded).collect();
        assert_eq!(all.len(), terms.len());
    }

    proptest! {
        #[test]
        fn two_parts_of_any_bytes_are_unambiguous_and_sort_as_pairs(
            a: (Vec<u8>, Vec<u8>), b: (Vec<u8>, Vec<u8>), zeros in 0..4usize
        ) {
            let mut a = a;
            a.0.extend(vec![0; zeros]);
            let term_a = encoded(Term::Attribute { key: &a.0, value: &a.1 });
            let term_b = encoded(Term::Attribute { key: &b.0, value: &b.1 });
            prop_assert_eq!(term_a.cmp(&term_b), a.cmp(&b));
            let rest = term_a.strip_prefix(&*attributes_prefix(7)).unwrap();
            let key = escaped_part(rest).unwrap();
            prop_assert_eq!(unescape(key), a.0.clone());
            prop_assert_eq!(term_a.strip_prefix(&*values_prefix(7, &a.0)), Some(&*a.1));
        }

        #[test]
        fn any_bytes_are_unescaped_without_panic(bytes: Vec<u8>) {
            if let Ok(part) = escaped_part(&bytes) {
                prop_assert!(unescape(part).len() <= part.len());
            }
            prop_assert!(unescape(&bytes).len() <= bytes.len());
        }
    }
}

//! Values of access lines.

use std::{io::Write as _, net::IpAddr};

use super::escape;

pub(super) fn push_json_value(out: &mut Vec<u8>, value: &[u8]) {
    if value.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        escape::push_json_string(out, value);
    }
}

pub(super) fn push_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends an address: the same text as `Display`, but faster for IPv4.
pub(super) fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let (mut text, mut length) = ([b'.'; 16], 0);
            for octet in address.octets() {
                let mut digits = itoa::Buffer::new();
                let digits = digits.format(octet).as_bytes();
                text[length..length + digits.len()].copy_from_slice(digits);
                length += digits.len() + 1;
            }
            out.extend_from_slice(&text[..length - 1]);
        }
        IpAddr::V6(address) => {
            let _ = write!(out, "{address}");
        }
    }
}

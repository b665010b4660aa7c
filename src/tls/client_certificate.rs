//! What a client's certificate says, as text that is safe in a field of HTTP.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use x509_cert::{
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::provider::sha256;

/// A client's certificate that was verified against the app's `client_ca`. All texts are printable
/// ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    said: Arc<Said>,
}

#[derive(Debug, PartialEq, Eq)]
struct Said {
    subject: String,
    names: String,
    fingerprint: String,
}

impl ClientCertificate {
    /// Reads a certificate that was verified; `None` if it can't be parsed.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let parsed = x509_cert::Certificate::from_der(der).ok()?;
        let parsed = parsed.tbs_certificate();
        let names = parsed.get_extension::<SubjectAltName>().ok()?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let names: Vec<_> = names.iter().filter_map(name).collect();
        let said = Said {
            subject: ascii_subject(&parsed.subject().to_string()),
            names: names.join(","),
            fingerprint: hex(&sha256(der)),
        };
        Some(Self { said: Arc::new(said) })
    }

    /// The subject's distinguished name (RFC 4514), as in `CN=a,O=b`. Bytes outside of ASCII are
    /// `\` and two hex digits. Empty if the certificate has none.
    pub fn subject(&self) -> &str {
        &self.said.subject
    }

    /// The alternative names, as in `DNS:a.example,email:a@b.example,URI:x://a/b,IP:192.0.2.7`.
    /// Other bytes than letters, digits and `-._~:/@*?=&+` are percent-encoded: a comma always
    /// ends a name. Names of other kinds are left out.
    pub fn names(&self) -> &str {
        &self.said.names
    }

    /// SHA-256 of the certificate, in lower-case hex digits.
    pub fn fingerprint(&self) -> &str {
        &self.said.fingerprint
    }
}

/// Escapes what the distinguished name doesn't: all outside of ASCII (RFC 4514 §2.4).
fn ascii_subject(subject: &str) -> String {
    let mut text = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        match byte {
            b' '..=b'~' => text.push(byte.into()),
            other => push_hex(&mut text, '\\', other),
        }
    }
    text
}

fn name(name: &GeneralName) -> Option<String> {
    let (kind, value) = match name {
        GeneralName::DnsName(name) => ("DNS", name.as_str().to_owned()),
        GeneralName::Rfc822Name(name) => ("email", name.as_str().to_owned()),
        GeneralName::UniformResourceIdentifier(name) => ("URI", name.as_str().to_owned()),
        GeneralName::IpAddress(address) => {
            let bytes = address.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).to_string());
            let v6 = <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).to_string());
            ("IP", v4.or(v6).ok()?)
        }
        _ => return None,
    };
    let mut text = format!("{kind}:");
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => text.push(byte.into()),
            _ if b"-._~:/@*?=&+".contains(&byte) => text.push(byte.into()),
            other => push_hex(&mut text, '%', other),
        }
    }
    Some(text)
}

fn push_hex(text: &mut String, mark: char, byte: u8) {
    // Writing to a String can't fail.
    let _ = write!(text, "{mark}{byte:02x}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, KeyPair, SanType};

    use super::{
        super::test_support::{Authority, params},
        *,
    };

    #[test]
    fn what_a_client_certificate_says_cannot_break_a_field_or_add_a_name() {
        let mut said = params(&["a.example", "192.0.2.7", "::1"]);
        for name in ["spiffe://a/b,DNS:admin.example", "x:\r\nX-Evil: 1", "x:%2c"] {
            said.subject_alt_names.push(SanType::URI(name.try_into().unwrap()));
        }
        said.subject_alt_names.push(SanType::Rfc822Name("a@b.example".try_into().unwrap()));
        said.distinguished_name.push(DnType::OrganizationName, "\u{e9}, Inc.\r\nX-Evil: 1");
        said.distinguished_name.push(DnType::CommonName, "a,CN=admin");
        let (certificate, _) = Authority::new().issue_with(&said, KeyPair::generate().unwrap());
        let read = ClientCertificate::read(certificate.der()).unwrap();
        assert_eq!(read.subject(), "O=\\c3\\a9\\, Inc.\\0d\\0aX-Evil: 1,CN=a\\,CN=admin");
        assert_eq!(
            read.names(),
            "DNS:a.example,IP:192.0.2.7,IP:::1,URI:spiffe://a/b%2cDNS:admin.example,\
             URI:x:%0d%0aX-Evil:%201,URI:x:%252c,email:a@b.example"
        );
        assert_eq!(read.fingerprint().len(), 64);
        assert_eq!(read.fingerprint(), hex(&sha256(certificate.der())));
        assert_eq!(ClientCertificate::read(b"no certificate"), None);
    }
}

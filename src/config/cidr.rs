//! Networks as people write them: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::{fmt, net::IpAddr};

use super::values::Fault;

/// A network of IP addresses (RFC 4632, RFC 4291 §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// All bits after the prefix are zero.
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether the address is in the network. An IPv4-mapped IPv6 address counts as the IPv4
    /// address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4()
            && network_of(address, self.prefix) == self.network
    }

    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let help = r#"write a network such as "10.0.0.0/8", "fd00::/8" or "127.0.0.1""#;
        let fault = || Fault::new("is not a network").help(help);
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| fault())?;
        if address != address.to_canonical() {
            let canonical = address.to_canonical();
            return Err(fault().help(format!("write it as IPv4, from \"{canonical}\"")));
        }
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let is_number = |prefix: &&str| {
            prefix.bytes().all(|byte| byte.is_ascii_digit())
                && (prefix.len() == 1 || !prefix.starts_with('0'))
        };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => Some(prefix)
                .filter(is_number)
                .and_then(|prefix| prefix.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(fault)?,
        };
        let network = network_of(address, prefix);
        if network != address {
            let fault = Fault::new("has bits set after its prefix");
            return Err(fault.help(format!("write \"{network}/{prefix}\"")));
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// The address with all bits after the prefix cleared.
fn network_of(address: IpAddr, prefix: u8) -> IpAddr {
    // In Rust, a shift by all bits overflows.
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_exactly_its_addresses() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.168.1.128/25", "192.168.1.255", "192.168.1.127"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "ffff::1", "1.2.3.4"),
            ("::1", "::1", "::2"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
        ] {
            let cidr = Cidr::parse(network).unwrap_or_else(|fault| panic!("{network}: {fault:?}"));
            assert!(cidr.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!cidr.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        assert_eq!(Cidr::parse("::1").unwrap().to_string(), "::1/128");
    }

    #[test]
    fn an_invalid_network_gets_a_suggestion() {
        for (text, words) in [
            ("", "such as"),
            ("10.0.0.0/", "such as"),
            ("10.0.0.0/33", "such as"),
            ("::/129", "such as"),
            ("10.0.0.0/08", "such as"),
            ("10.0.0.0/+8", "such as"),
            ("10.0.0.0/8/8", "such as"),
            ("10/8", "such as"),
            ("example.com", "such as"),
            ("[::1]", "such as"),
            ("10.1.0.0/8", "\"10.0.0.0/8\""),
            ("2001:db8::1/32", "\"2001:db8::/32\""),
            ("::ffff:10.0.0.0/104", "from \"10.0.0.0\""),
        ] {
            let fault = Cidr::parse(text).expect_err(text);
            let shown = format!("{fault:?}").replace("\\\"", "\"");
            assert!(shown.contains(words), "{text:?}: {shown}");
        }
    }
}

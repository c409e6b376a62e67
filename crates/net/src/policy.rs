//! What a guest on a user-mode network may reach.
//!
//! Nothing, ever: the host's loopback (but for the gateway's ports with `loopback=on`), addresses
//! without a host of their own (unspecified, multicast, broadcast, reserved), link-local addresses
//! (the host's links are not the guest's, and clouds keep the credentials of the *host* there), and
//! other addresses of clouds' metadata services.
//!
//! Unless `local=off`: private networks, and the host's own addresses, as any neighbour of the host
//! reaches them.
//!
//! Always, unless `restrict=on`: everything else; DNS by the gateway's forwarder.

use crate::UserOptions;
use crate::wire::icmp::Unreachable;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The first three numbers of the addresses of the guest's network, whose mask is 255.255.255.0.
const NETWORK: [u8; 3] = [10, 0, 2];
/// The network's mask.
pub const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// All hosts of the network.
pub const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 255);
/// The gateway, who also is the DHCP server.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Who forwards DNS queries.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The address that the first card that asks is given.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Metadata services of clouds that are not at link-local addresses: Alibaba, Azure, Oracle.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The same, of Amazon and Google.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Whether an address belongs to the guest's network.
pub fn is_in_network(address: Ipv4Addr) -> bool {
    address.octets()[..3] == NETWORK
}

/// Whether a host of the guest's network can have the address.
pub fn is_guest(address: Ipv4Addr) -> bool {
    is_in_network(address)
        && address != GATEWAY
        && address != DNS
        && !matches!(address.octets()[3], 0 | 255)
}

/// What may be reached.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    local: bool,
    loopback: bool,
    restrict: bool,
}

impl Policy {
    /// The policy that the options ask for.
    pub fn new(options: &UserOptions) -> Self {
        Self {
            local: options.local,
            loopback: options.loopback,
            restrict: options.restrict,
        }
    }

    /// Where on the host a connection to `address` leads. DNS is not looked at here.
    ///
    /// # Errors
    /// What the guest is told.
    pub fn admit(&self, address: SocketAddr) -> Result<SocketAddr, Unreachable> {
        if address.ip() == IpAddr::V4(GATEWAY) {
            return if self.loopback && !self.restrict {
                Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()))
            } else {
                Err(Unreachable::Port)
            };
        }
        if self.restrict || is_never(address.ip()) {
            return Err(Unreachable::Prohibited);
        }
        if let IpAddr::V4(v4) = address.ip()
            && is_in_network(v4)
        {
            return Err(Unreachable::Host);
        }
        if !self.local && (is_private(address.ip()) || is_own(address)) {
            return Err(Unreachable::Prohibited);
        }
        Ok(address)
    }

    /// Whether DNS queries are forwarded.
    pub fn has_dns(&self) -> bool {
        !self.restrict
    }
}

/// Addresses that no option opens.
fn is_never(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first == 0
                || v4.is_loopback()
                || v4.is_link_local()
                || first >= 224
                || METADATA_V4.contains(&v4)
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                // Link-local; addresses that stand for IPv4 ones: mapped, compatible, translated.
                || first & 0xffc0 == 0xfe80
                || first == 0
                || v6.segments()[..2] == [0x64, 0xff9b]
                || v6.segments()[0] == 0x2002
                || METADATA_V6.contains(&v6)
        }
    }
}

/// Addresses of private networks.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, third, _] = v4.octets();
            v4.is_private()
                // Carriers' shared addresses, protocol assignments, benchmarking.
                || (first == 100 && second & 0xc0 == 64)
                || (first, second, third) == (192, 0, 0)
                || (first == 198 && second & 0xfe == 18)
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // Unique local; site-local.
            first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0
        }
    }
}

/// Whether the host has the address itself: it would take it as source of what it sends there.
fn is_own(address: SocketAddr) -> bool {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let probe = || {
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &address)?;
        getsockname(&socket)
    };
    match probe() {
        Ok(source) => SocketAddr::try_from(source).is_ok_and(|s| s.ip() == address.ip()),
        // There is no way there: connecting will tell.
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(options: &UserOptions, address: &str) -> Result<SocketAddr, Unreachable> {
        Policy::new(options).admit(SocketAddr::new(address.parse().unwrap(), 80))
    }

    const NEVER: [&str; 17] = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "100.100.100.200",
        "168.63.129.16",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
    ];

    #[test]
    fn no_option_opens_the_loopback_or_a_link() {
        let open = UserOptions {
            loopback: true,
            ..UserOptions::default()
        };
        for address in NEVER {
            for options in [&open, &UserOptions::default()] {
                assert_eq!(
                    admit(options, address),
                    Err(Unreachable::Prohibited),
                    "{address}"
                );
            }
        }
    }

    #[test]
    fn private_networks_are_reached_unless_they_are_off() {
        let off = UserOptions {
            local: false,
            ..UserOptions::default()
        };
        for address in [
            "10.1.2.3",
            "192.168.0.1",
            "172.31.0.1",
            "100.64.0.1",
            "fd12::1",
        ] {
            assert!(admit(&UserOptions::default(), address).is_ok(), "{address}");
            assert_eq!(
                admit(&off, address),
                Err(Unreachable::Prohibited),
                "{address}"
            );
        }
        for address in ["172.32.0.1", "8.8.8.8", "2001:db9::1"] {
            assert!(admit(&off, address).is_ok(), "{address}");
        }
    }

    #[test]
    fn the_gateway_is_the_hosts_loopback_only_if_asked_for() {
        assert_eq!(
            admit(&UserOptions::default(), "10.0.2.2"),
            Err(Unreachable::Port)
        );
        let open = UserOptions {
            loopback: true,
            ..UserOptions::default()
        };
        assert_eq!(
            admit(&open, "10.0.2.2").unwrap(),
            "127.0.0.1:80".parse().unwrap()
        );
        assert_eq!(admit(&open, "10.0.2.77"), Err(Unreachable::Host));
    }

    #[test]
    fn a_restricted_guest_reaches_nothing() {
        let restricted = UserOptions {
            restrict: true,
            loopback: true,
            ..UserOptions::default()
        };
        assert!(admit(&restricted, "8.8.8.8").is_err());
        assert!(admit(&restricted, "10.0.2.2").is_err());
    }

    #[test]
    fn the_hosts_own_addresses_are_told_from_others() {
        assert!(is_own("127.0.0.1:1".parse().unwrap()));
        assert!(!is_own("192.0.2.77:1".parse().unwrap()));
    }
}

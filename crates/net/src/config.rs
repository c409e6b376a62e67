//! What is said of a card: `user,forward=2222:22,rate=100M`, `tap=NAME`, `switch=NAME`.

use crate::Mac;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use thiserror::Error;

/// The most bytes of a name of a tap device, as Linux has it.
const LONGEST_TAP: usize = 15;
/// The most bytes of a switch's name.
const LONGEST_SWITCH: usize = 32;
/// The lowest rate that can be asked for, in bits a second.
const LEAST_RATE: u64 = 8_000;

/// A card and what it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CardConfig {
    /// The network.
    pub attachment: Attachment,
    /// The card's address; if none is given, one is chosen.
    pub mac: Option<Mac>,
    /// The most bits a second, in each direction.
    pub rate: Option<u64>,
}

/// What a card can be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// TCP/IP over sockets of the host.
    User(UserOptions),
    /// A tap device of the host.
    Tap(String),
    /// A switch between machines of this user on this host.
    Switch(String),
}

/// What can be said of the user-mode network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserOptions {
    /// Ports of the host that lead to ports of the guest.
    pub forwards: Vec<Forward>,
    /// Whether private networks and the host's own addresses are within the guest's reach.
    pub local: bool,
    /// Whether the gateway's ports are those of the host's loopback.
    pub loopback: bool,
    /// Whether nothing at all is within the guest's reach; forwards work.
    pub restrict: bool,
}

impl Default for UserOptions {
    fn default() -> Self {
        Self {
            forwards: Vec::new(),
            local: true,
            loopback: false,
            restrict: false,
        }
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Of which protocol.
    pub transport: Transport,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The port of the guest.
    pub guest_port: u16,
}

/// A text that describes no card.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadNet {
    /// Nothing that a card can be attached to.
    #[error("{0:?} is not one of user, tap=NAME, switch=NAME, none")]
    Attachment(String),
    /// An option that there is not, or not for this kind.
    #[error(
        "{0:?} is no option of this network (all: mac=, rate=; user: forward=, local=, loopback=, \
         restrict=)"
    )]
    Option(String),
    /// A value that an option cannot have.
    #[error("{value:?} is no value for {option} ({expected})")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// A name that cannot be.
    #[error("{0:?} is no name of a {1}")]
    Name(String, &'static str),
}

impl CardConfig {
    /// A card on a user-mode network with default options.
    pub fn user() -> Self {
        Self {
            attachment: Attachment::User(UserOptions::default()),
            mac: None,
            rate: None,
        }
    }
}

impl FromStr for CardConfig {
    type Err = BadNet;

    fn from_str(text: &str) -> Result<Self, BadNet> {
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut card = Self {
            attachment: attachment(kind)?,
            mac: None,
            rate: None,
        };
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| BadNet::Option(part.to_owned()))?;
            match (key, &mut card.attachment) {
                ("mac", _) => {
                    card.mac = Some(value.parse().map_err(|_| BadNet::Value {
                        option: "mac",
                        value: value.to_owned(),
                        expected: "as 52:54:00:12:34:56",
                    })?);
                }
                ("rate", _) => card.rate = Some(rate(value)?),
                ("forward", Attachment::User(user)) => user.forwards.push(value.parse()?),
                ("local", Attachment::User(user)) => user.local = switch("local", value)?,
                ("loopback", Attachment::User(user)) => user.loopback = switch("loopback", value)?,
                ("restrict", Attachment::User(user)) => user.restrict = switch("restrict", value)?,
                _ => return Err(BadNet::Option(part.to_owned())),
            }
        }
        Ok(card)
    }
}

fn attachment(kind: &str) -> Result<Attachment, BadNet> {
    let plain = |name: &str, longest: usize| {
        (1..=longest).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with('.')
    };
    match kind.split_once('=') {
        None if kind == "user" => Ok(Attachment::User(UserOptions::default())),
        Some(("tap", name)) if plain(name, LONGEST_TAP) => Ok(Attachment::Tap(name.to_owned())),
        Some(("tap", name)) => Err(BadNet::Name(name.to_owned(), "tap device")),
        Some(("switch", name)) if plain(name, LONGEST_SWITCH) => {
            Ok(Attachment::Switch(name.to_owned()))
        }
        Some(("switch", name)) => Err(BadNet::Name(name.to_owned(), "switch")),
        _ => Err(BadNet::Attachment(kind.to_owned())),
    }
}

fn switch(option: &'static str, value: &str) -> Result<bool, BadNet> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(BadNet::Value {
            option,
            value: value.to_owned(),
            expected: "on or off",
        }),
    }
}

/// Bits a second: a number, or one with K, M or G for thousands, millions and billions.
fn rate(text: &str) -> Result<u64, BadNet> {
    let bad = || BadNet::Value {
        option: "rate",
        value: text.to_owned(),
        expected: "bits a second, at least 8000, or with K, M or G",
    };
    let (digits, unit) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 1_000),
        Some('M' | 'm') => (&text[..text.len() - 1], 1_000_000),
        Some('G' | 'g') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    if !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number
        .checked_mul(unit)
        .filter(|&rate| rate >= LEAST_RATE)
        .ok_or_else(bad)
}

impl FromStr for Forward {
    type Err = BadNet;

    fn from_str(text: &str) -> Result<Self, BadNet> {
        let bad = || BadNet::Value {
            option: "forward",
            value: text.to_owned(),
            expected: "[tcp:|udp:][HOSTADDR:]HOSTPORT:GUESTPORT",
        };
        let (transport, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some(("udp", rest)) => (Transport::Udp, rest),
            _ => (Transport::Tcp, text),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => {
                let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let address = match inner {
                    Some(v6) => IpAddr::V6(v6.parse().map_err(|_| bad())?),
                    None => IpAddr::V4(address.parse().map_err(|_| bad())?),
                };
                (address, host)
            }
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        };
        let port = |text: &str| match text.parse() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(bad()),
        };
        let (host_port, guest_port) = (port(host)?, port(guest)?);
        Ok(Self {
            transport,
            host: SocketAddr::new(address, host_port),
            guest_port,
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{transport}:{}:{}", self.host, self.guest_port)
    }
}

impl fmt::Display for CardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.attachment {
            Attachment::Tap(name) => write!(f, "tap={name}")?,
            Attachment::Switch(name) => write!(f, "switch={name}")?,
            Attachment::User(user) => {
                f.write_str("user")?;
                for forward in &user.forwards {
                    write!(f, ",forward={forward}")?;
                }
                if !user.local {
                    f.write_str(",local=off")?;
                }
                if user.loopback {
                    f.write_str(",loopback=on")?;
                }
                if user.restrict {
                    f.write_str(",restrict=on")?;
                }
            }
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(rate) = self.rate {
            write!(f, ",rate={rate}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for CardConfig {
    type Error = BadNet;

    fn try_from(text: String) -> Result<Self, BadNet> {
        text.parse()
    }
}

impl From<CardConfig> for String {
    fn from(card: CardConfig) -> Self {
        card.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_understood() {
        let card: CardConfig =
            "user,forward=2222:22,forward=udp:0.0.0.0:53:5353,forward=tcp:[::1]:80:8080,local=off,\
             rate=100M,mac=52:54:00:00:00:07"
                .parse()
                .unwrap();
        let Attachment::User(user) = &card.attachment else {
            panic!("{card:?}")
        };
        let forwards: Vec<String> = user.forwards.iter().map(Forward::to_string).collect();
        assert_eq!(
            forwards,
            [
                "tcp:127.0.0.1:2222:22",
                "udp:0.0.0.0:53:5353",
                "tcp:[::1]:80:8080"
            ]
        );
        assert!(!user.local && !user.loopback && !user.restrict);
        assert_eq!(card.rate, Some(100_000_000));
        assert_eq!(card.to_string().parse(), Ok(card));
        assert_eq!(
            "tap=vm0".parse::<CardConfig>().unwrap().to_string(),
            "tap=vm0"
        );
        assert_eq!(
            "switch=lab,rate=1G"
                .parse::<CardConfig>()
                .unwrap()
                .to_string(),
            "switch=lab,rate=1000000000"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "none",
            "User",
            "user=x",
            "tap",
            "tap=",
            "tap=a/b",
            "tap=averyveryverylongname",
            "switch=../x",
            "user,",
            "user,colour=red",
            "user,local=maybe",
            "tap=t,local=off",
            "user,rate=0",
            "user,rate=+9000",
            "user,rate=99999999999G",
            "user,rate=10€",
            "user,forward=22",
            "user,forward=0:22",
            "user,forward=22:70000",
            "user,forward=icmp:1:2",
            "user,forward=::1:22:22",
            "user,mac=ff:ff:ff:ff:ff:ff",
        ] {
            assert!(text.parse::<CardConfig>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = text.parse::<CardConfig>();
            let _ = format!("user,{text}").parse::<CardConfig>();
            let _ = format!("user,forward={text}").parse::<CardConfig>();
        }
    }
}

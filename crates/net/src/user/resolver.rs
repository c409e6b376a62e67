//! Where DNS queries go: to the resolvers that the host itself asks.

use belljar_clock::Nanos;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The host's list of resolvers.
const HOST_LIST: &str = "/etc/resolv.conf";
/// The port of DNS.
pub(super) const PORT: u16 = 53;
/// How often the list is looked at again, at most.
const LOOK_AGAIN: u64 = Nanos::SECOND;
/// How long a resolver may take before the next one is asked.
const PATIENCE: u64 = 3 * Nanos::SECOND / 2;
/// Resolvers that are asked. resolv.conf(5) has as many.
const MOST: usize = 3;

/// Where the resolvers are named.
#[derive(Clone, Debug)]
pub enum Resolvers {
    /// The host's own, by its resolv.conf.
    Host,
    /// These.
    Fixed(Vec<SocketAddr>),
}

/// Chooses the resolver for each query.
#[derive(Debug)]
pub(super) struct Forwarder {
    file: Option<PathBuf>,
    seen: Option<SystemTime>,
    looked_at: Option<Nanos>,
    resolvers: Vec<SocketAddr>,
    current: usize,
    /// When the oldest query was sent that nobody has answered since.
    waiting_since: Option<Nanos>,
}

impl Forwarder {
    pub fn new(resolvers: Resolvers) -> Self {
        let (file, resolvers) = match resolvers {
            Resolvers::Host => (Some(PathBuf::from(HOST_LIST)), Vec::new()),
            Resolvers::Fixed(list) => (None, list),
        };
        Self {
            file,
            seen: None,
            looked_at: None,
            resolvers,
            current: 0,
            waiting_since: None,
        }
    }

    /// The resolver that a query is to be sent to now, if there is one.
    pub fn choose(&mut self, now: Nanos) -> Option<SocketAddr> {
        self.refresh(now);
        let late = |since: Nanos| now.since(since) >= PATIENCE;
        if self.waiting_since.is_some_and(late) {
            self.current += 1;
            self.waiting_since = None;
        }
        self.waiting_since.get_or_insert(now);
        let count = self.resolvers.len();
        self.resolvers
            .get(self.current.checked_rem(count)?)
            .copied()
    }

    /// A resolver has answered.
    pub fn answered(&mut self) {
        self.waiting_since = None;
    }

    /// A resolver has refused.
    pub fn refused(&mut self) {
        self.current += 1;
        self.waiting_since = None;
    }

    fn refresh(&mut self, now: Nanos) {
        let Some(file) = &self.file else { return };
        let recent = |at: Nanos| now.since(at) < LOOK_AGAIN;
        if self.looked_at.is_some_and(recent) {
            return;
        }
        self.looked_at = Some(now);
        let changed = std::fs::metadata(file)
            .and_then(|data| data.modified())
            .ok();
        if self.seen.is_none() || changed != self.seen {
            self.seen = changed;
            self.resolvers = read(file);
            self.current = 0;
        }
    }
}

/// The resolvers of a resolv.conf; the local one if it names none, as resolv.conf(5) has it.
fn read(file: &Path) -> Vec<SocketAddr> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!("no resolvers: cannot read {}: {error}", file.display());
            return Vec::new();
        }
    };
    let list = parse(&text);
    if list.is_empty() {
        vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)]
    } else {
        list
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next() != Some("nameserver") {
                return None;
            }
            // Addresses with a zone ("fe80::1%eth0") are of the host's links: they are left out.
            let address: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_resolvers_is_understood() {
        let list = parse(
            "# comment\nsearch example.org\nnameserver 192.0.2.53\nnameserver\t2001:db8::53 # x\n\
             nameserver fe80::1%eth0\nnameserver nonsense\noptions ndots:2\n",
        );
        let want: Vec<SocketAddr> = ["192.0.2.53:53", "[2001:db8::53]:53"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        assert_eq!(list, want);
    }

    #[test]
    fn a_silent_resolver_gives_way_to_the_next() {
        let two: Vec<SocketAddr> = ["192.0.2.1:53", "192.0.2.2:53"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        let mut forwarder = Forwarder::new(Resolvers::Fixed(two.clone()));
        assert_eq!(forwarder.choose(Nanos(0)), Some(two[0]));
        assert_eq!(forwarder.choose(Nanos(1)), Some(two[0]));
        assert_eq!(forwarder.choose(Nanos(PATIENCE)), Some(two[1]));
        forwarder.answered();
        assert_eq!(forwarder.choose(Nanos(2 * PATIENCE)), Some(two[1]));
        forwarder.refused();
        assert_eq!(forwarder.choose(Nanos(2 * PATIENCE)), Some(two[0]));
    }

    #[test]
    fn without_resolvers_none_is_chosen() {
        let mut forwarder = Forwarder::new(Resolvers::Fixed(Vec::new()));
        assert_eq!(forwarder.choose(Nanos(0)), None);
    }
}

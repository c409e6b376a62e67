//! The agent that `belljar exec` talks to, for guests that Belljar makes.

/// The program, linked statically.
pub(crate) const PROGRAM: &[u8] = include_bytes!(env!("BELLJAR_AGENT"));
/// Where it lies in the guest.
pub(crate) const PLACE: &str = "usr/sbin/belljar-agent";
/// The unit of systemd that runs it, and its name.
pub(crate) const UNIT: (&str, &str) =
    ("belljar-agent.service", include_str!("guest/agent.service"));

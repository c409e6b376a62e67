//! How many descriptors a share has, at most.
//!
//! A process has a limit of its own, and the machine needs descriptors for more than files: a guest
//! that opens what it can must not take those of its network. Three shares together use less than
//! half of what the process may have.

use rustix::process::{Resource, getrlimit};

/// The most handles, and the most descriptors of nodes that no handle stands on.
const MOST: Bounds = Bounds {
    handles: 512,
    idle_nodes: 256,
};
/// The parts of the process' descriptors that are for these. A handle needs two: its own, and its
/// node's.
const PART_OF_HANDLES: u64 = 16;
const PART_OF_NODES: u64 = 32;

/// How many descriptors a share has, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub handles: usize,
    /// Nodes with a descriptor and without a handle.
    pub idle_nodes: usize,
}

impl Bounds {
    /// What the limit of this process, as it is now, leaves.
    pub fn of_process() -> Self {
        Self::within(getrlimit(Resource::Nofile).current)
    }

    fn within(limit: Option<u64>) -> Self {
        let part = |of: u64, most: usize| {
            let part = limit.map_or(most, |limit| usize::try_from(limit / of).unwrap_or(most));
            part.clamp(1, most)
        };
        Self {
            handles: part(PART_OF_HANDLES, MOST.handles),
            idle_nodes: part(PART_OF_NODES, MOST.idle_nodes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_of_descriptors_is_shared_out() {
        for limit in [1 << 10, 4 << 10, 64 << 10] {
            let bounds = Bounds::within(Some(limit));
            let all = 3 * (2 * bounds.handles + bounds.idle_nodes);
            assert!(all < limit as usize / 2, "{limit}: {bounds:?}");
        }
        assert_eq!(Bounds::within(Some(8 << 10)), MOST);
        assert_eq!(Bounds::within(None), MOST);
        let least = Bounds::within(Some(0));
        assert_eq!((least.handles, least.idle_nodes), (1, 1));
    }
}

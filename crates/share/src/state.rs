//! What is saved of a share.

use serde::{Deserialize, Serialize};

/// The state of a [`FileServer`](crate::FileServer), apart from the directory.
///
/// Files are in it by their names. What was removed while the guest had it open is lost: its handle
/// is bad after a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareState {
    pub(crate) mounted: bool,
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) next_node: u64,
    pub(crate) handles: Vec<HandleState>,
    pub(crate) next_handle: u64,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeState {
    pub node: u64,
    pub parent: u64,
    pub name: Vec<u8>,
    pub lookups: u64,
}

/// A handle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandleState {
    pub handle: u64,
    pub node: u64,
    /// The flags that a file was opened with; a directory has none.
    pub flags: Option<u32>,
}

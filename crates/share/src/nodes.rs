//! The nodes: what the guest has looked up and not yet forgotten.
//!
//! A node is known by what it *is* on the host: file system, inode, time of birth. It also has a
//! place, the directory and the name that it was found by last. While a node has a descriptor that
//! is what counts. Descriptors are few: those that were not used for the longest time are closed, and
//! made anew from the place when they are needed. If something else is there by then, the node is
//! stale; the guest's kernel looks its path up again when it is told so.
//!
//! A node that a handle stands on keeps its descriptor, so that a file that was removed can be used
//! as long as it is open.

use crate::host;
use crate::state::NodeState;
use crate::wire::Name;
use rustix::fs::{FileType, Statx};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The node of the shared directory itself.
pub(crate) const ROOT: u64 = 1;
/// The most nodes.
const MOST_NODES: usize = 1 << 18;
/// The most directories between the root and a node that has to be found again.
const DEEPEST: usize = 1024;

/// What a file is on the host, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: (u32, u32),
    mount: u64,
    inode: u64,
    /// Inode numbers are used again.
    birth: (i64, u32),
    kind: u32,
}

impl Identity {
    fn of(file: &Statx) -> Self {
        Self {
            device: (file.stx_dev_major, file.stx_dev_minor),
            mount: file.stx_mnt_id,
            inode: file.stx_ino,
            birth: (file.stx_btime.tv_sec, file.stx_btime.tv_nsec),
            kind: FileType::from_raw_mode(file.stx_mode.into()).as_raw_mode(),
        }
    }
}

#[derive(Debug)]
struct Node {
    /// Unknown after a restore, until it is found.
    identity: Option<Identity>,
    parent: u64,
    name: CString,
    lookups: u64,
    handles: u32,
    file: Option<Arc<OwnedFd>>,
    /// When it was used last, and its key among those that may be closed.
    used: u64,
}

/// All nodes of a share.
#[derive(Debug)]
pub(crate) struct Nodes {
    root: Arc<OwnedFd>,
    known: HashMap<u64, Node>,
    identities: HashMap<Identity, u64>,
    /// The nodes with descriptors that may be closed, by when they were used.
    closable: BTreeMap<u64, u64>,
    next: u64,
    time: u64,
    most: usize,
    most_open: usize,
}

impl Nodes {
    /// The root alone, which is `root`; `most_open` nodes that no handle stands on may have a
    /// descriptor.
    pub fn new(root: OwnedFd, most_open: usize) -> Self {
        Self {
            root: Arc::new(root),
            known: HashMap::new(),
            identities: HashMap::new(),
            closable: BTreeMap::new(),
            next: ROOT + 1,
            time: 0,
            most: MOST_NODES,
            most_open,
        }
    }

    /// The nodes as they were saved; each is looked for when it is used.
    pub fn restore(root: OwnedFd, most_open: usize, states: Vec<NodeState>, next: u64) -> Self {
        let mut nodes = Self::new(root, most_open);
        nodes.next = next.max(ROOT + 1);
        for state in states {
            nodes.next = nodes.next.max(state.node.saturating_add(1));
            let Ok(name) = CString::new(state.name) else {
                continue;
            };
            if Name::new(&name).is_err() || state.node <= ROOT {
                continue;
            }
            let node = Node {
                identity: None,
                parent: state.parent,
                name,
                lookups: state.lookups,
                handles: 0,
                file: None,
                used: 0,
            };
            nodes.known.insert(state.node, node);
        }
        nodes
    }

    /// What is needed to find all nodes again, and the next node's number.
    pub fn save(&self) -> (Vec<NodeState>, u64) {
        let mut states: Vec<NodeState> = self
            .known
            .iter()
            .map(|(&node, of)| NodeState {
                node,
                parent: of.parent,
                name: of.name.as_bytes().to_vec(),
                lookups: of.lookups,
            })
            .collect();
        states.sort_by_key(|state| state.node);
        (states, self.next)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
        self.identities.clear();
        self.closable.clear();
    }

    /// Looks `name` up in the directory `parent`: the node, which the guest knows once more, and its
    /// attributes.
    pub fn look_up(&mut self, parent: u64, name: Name<'_>) -> Result<(u64, Statx), Errno> {
        let file = host::look(&*self.file(parent)?, name)?;
        self.enter(parent, name, file)
    }

    /// Enters what `file` is open for, for looking, and was found as `name` in `parent`.
    pub fn enter(
        &mut self,
        parent: u64,
        name: Name<'_>,
        file: OwnedFd,
    ) -> Result<(u64, Statx), Errno> {
        let attributes = host::attributes(&file)?;
        let identity = Identity::of(&attributes);
        let node = match self.identities.get(&identity) {
            Some(&node) => node,
            None if self.known.len() >= self.most => return Err(Errno::NFILE),
            None => self.insert(identity, parent, name.as_c_str()),
        };
        if let Some(known) = self.known.get_mut(&node) {
            known.lookups = known.lookups.saturating_add(1);
            if known.parent != parent || *known.name != *name.as_c_str() {
                known.parent = parent;
                name.as_c_str().clone_into(&mut known.name);
            }
            if known.file.is_none() {
                known.file = Some(Arc::new(file));
            }
        }
        self.touch(node);
        Ok((node, attributes))
    }

    fn insert(&mut self, identity: Identity, parent: u64, name: &CStr) -> u64 {
        let node = self.next;
        self.next += 1;
        self.identities.insert(identity, node);
        let new = Node {
            identity: Some(identity),
            parent,
            name: name.to_owned(),
            lookups: 0,
            handles: 0,
            file: None,
            used: 0,
        };
        self.known.insert(node, new);
        node
    }

    /// Notes that a node with a descriptor is used now, and closes those of others if there are too
    /// many.
    fn touch(&mut self, node: u64) {
        self.time += 1;
        if let Some(touched) = self.known.get_mut(&node) {
            self.closable.remove(&touched.used);
            touched.used = self.time;
            if touched.file.is_some() && touched.handles == 0 {
                self.closable.insert(self.time, node);
            }
        }
        while self.closable.len() > self.most_open
            && let Some((_, oldest)) = self.closable.pop_first()
        {
            if let Some(oldest) = self.known.get_mut(&oldest) {
                oldest.file = None;
            }
        }
    }

    /// The descriptor of a node, for looking.
    ///
    /// # Errors
    /// `ESTALE` if there is no such node, or it is not to be found any more.
    pub fn file(&mut self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        let mut missing = Vec::new();
        let mut at = node;
        let mut file = loop {
            if at == ROOT {
                break Arc::clone(&self.root);
            }
            let here = self.known.get(&at).ok_or(Errno::STALE)?;
            if let Some(file) = &here.file {
                break Arc::clone(file);
            }
            // A renaming on the host can have made the places a circle.
            if missing.len() >= DEEPEST {
                return Err(Errno::STALE);
            }
            missing.push(at);
            at = here.parent;
        };
        self.touch(at);
        while let Some(at) = missing.pop() {
            file = self.find(at, &file)?;
        }
        Ok(file)
    }

    /// Finds a node by its name in `directory`.
    fn find(&mut self, node: u64, directory: &OwnedFd) -> Result<Arc<OwnedFd>, Errno> {
        let known = self.known.get_mut(&node).ok_or(Errno::STALE)?;
        let file = match host::look(directory, Name::new(&known.name)?) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
            other => Arc::new(other?),
        };
        let identity = Identity::of(&host::attributes(&file)?);
        match known.identity {
            Some(known) if known != identity => return Err(Errno::STALE),
            Some(_) => {}
            None => {
                known.identity = Some(identity);
                self.identities.entry(identity).or_insert(node);
            }
        }
        known.file = Some(Arc::clone(&file));
        self.touch(node);
        Ok(file)
    }

    /// Notes that what `name` in `parent` is now has come there by a renaming.
    pub fn moved(&mut self, parent: u64, name: Name<'_>) {
        let found = self
            .file(parent)
            .and_then(|directory| host::look(&*directory, name))
            .and_then(host::attributes);
        // If it is gone already, the node is as stale as it would be a moment later.
        if let Ok(found) = found
            && let Some(node) = self.identities.get(&Identity::of(&found))
            && let Some(node) = self.known.get_mut(node)
        {
            node.parent = parent;
            name.as_c_str().clone_into(&mut node.name);
        }
    }

    /// Notes that a handle stands on the node, whose descriptor is `file`.
    pub fn pin(&mut self, node: u64, file: Arc<OwnedFd>) {
        if let Some(pinned) = self.known.get_mut(&node) {
            pinned.handles += 1;
            pinned.file = Some(file);
            self.closable.remove(&pinned.used);
        }
    }

    /// Notes that a handle is gone.
    pub fn unpin(&mut self, node: u64) {
        if let Some(pinned) = self.known.get_mut(&node) {
            pinned.handles = pinned.handles.saturating_sub(1);
        }
        self.touch(node);
        self.drop_if_unknown(node);
    }

    /// The guest forgets `count` of its lookups of `node`.
    pub fn forget(&mut self, node: u64, count: u64) {
        if let Some(known) = self.known.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(count);
        }
        self.drop_if_unknown(node);
    }

    fn drop_if_unknown(&mut self, node: u64) {
        let unknown = |of: &Node| of.lookups == 0 && of.handles == 0;
        if !self.known.get(&node).is_some_and(unknown) {
            return;
        }
        if let Some(gone) = self.known.remove(&node) {
            self.closable.remove(&gone.used);
            if let Some(identity) = gone.identity
                && self.identities.get(&identity) == Some(&node)
            {
                self.identities.remove(&identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn nodes(directory: &Path) -> Nodes {
        Nodes::new(host::open_root(directory).unwrap(), 256)
    }

    fn name(text: &'static CStr) -> Name<'static> {
        Name::new(text).unwrap()
    }

    fn open(nodes: &Nodes) -> usize {
        let nodes = nodes.known.values();
        nodes.filter(|node| node.file.is_some()).count()
    }

    #[test]
    fn a_closed_node_is_found_again_by_its_place() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("a/b/c"), "text").unwrap();
        let mut nodes = nodes(directory.path());
        nodes.most_open = 1;
        let (a, _) = nodes.look_up(ROOT, name(c"a")).unwrap();
        let (b, _) = nodes.look_up(a, name(c"b")).unwrap();
        let (c, known) = nodes.look_up(b, name(c"c")).unwrap();
        nodes.file(a).unwrap();
        assert_eq!(open(&nodes), 1);
        let found = host::attributes(&*nodes.file(c).unwrap()).unwrap();
        assert_eq!(found.stx_ino, known.stx_ino);
        assert_eq!(open(&nodes), 1);
    }

    #[test]
    fn a_node_whose_place_something_else_has_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for file in ["a", "b", "other"] {
            fs::write(at(file), file).unwrap();
        }
        let mut nodes = nodes(directory.path());
        nodes.most_open = 1;
        let (a, _) = nodes.look_up(ROOT, name(c"a")).unwrap();
        nodes.look_up(ROOT, name(c"b")).unwrap();
        fs::rename(at("other"), at("a")).unwrap();
        assert_eq!(nodes.file(a).unwrap_err(), Errno::STALE);
        fs::remove_file(at("a")).unwrap();
        assert_eq!(nodes.file(a).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn a_node_under_a_handle_stays_open() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        fs::write(directory.path().join("b"), "b").unwrap();
        let mut nodes = nodes(directory.path());
        nodes.most_open = 0;
        let (a, _) = nodes.look_up(ROOT, name(c"a")).unwrap();
        for _ in 0..2 {
            let file = nodes.file(a).unwrap();
            nodes.pin(a, file);
        }
        nodes.look_up(ROOT, name(c"b")).unwrap();
        fs::remove_file(directory.path().join("a")).unwrap();
        nodes.unpin(a);
        nodes.file(a).unwrap();
        nodes.unpin(a);
        assert_eq!(nodes.file(a).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn what_is_forgotten_is_gone_and_the_number_of_nodes_bounded() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        fs::write(directory.path().join("b"), "b").unwrap();
        let mut nodes = nodes(directory.path());
        nodes.most = 1;
        let (a, _) = nodes.look_up(ROOT, name(c"a")).unwrap();
        assert_eq!(nodes.look_up(ROOT, name(c"a")).unwrap().0, a);
        assert_eq!(nodes.look_up(ROOT, name(c"b")).unwrap_err(), Errno::NFILE);
        nodes.forget(a, 1);
        nodes.file(a).unwrap();
        nodes.forget(a, u64::MAX);
        assert_eq!(nodes.file(a).unwrap_err(), Errno::STALE);
        nodes.forget(a, 1);
        nodes.look_up(ROOT, name(c"b")).unwrap();
        nodes.forget(ROOT, u64::MAX);
        nodes.file(ROOT).unwrap();
    }

    #[test]
    fn places_that_are_a_circle_end() {
        let directory = tempfile::tempdir().unwrap();
        let root = host::open_root(directory.path()).unwrap();
        let state = |node, parent| NodeState {
            node,
            parent,
            name: b"x".to_vec(),
            lookups: 1,
        };
        let mut nodes = Nodes::restore(root, 9, vec![state(2, 3), state(3, 2)], 4);
        assert_eq!(nodes.file(2).unwrap_err(), Errno::STALE);
    }
}

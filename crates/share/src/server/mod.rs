//! The server: one message in, one answer out.

mod attributes;
mod files;
mod names;

use crate::bounds::Bounds;
use crate::handles::{Handle, Handles};
use crate::host::{self, Descriptors};
use crate::nodes::Nodes;
use crate::reply::{self, Terms};
use crate::request::{Header, Operation};
use crate::state::HandleState;
use crate::{ShareConfig, ShareError, ShareState};
use rustix::fs::fstatvfs;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The most data in one message or answer.
pub const MOST_DATA: usize = 1 << 20;
/// The longest message that is answered with more than an error.
pub const MOST_REQUEST: usize = MOST_DATA + 4096;

/// The version of the protocol.
const VERSION: (u32, u32) = (7, 31);
/// What the server can do besides: several reads at a time, writes of more than a page, looking for
/// changes of the host before cached data is used, several users of a directory at a time, and
/// messages of more than 32 pages.
const FEATURES: u32 = 1 << 0 | 1 << 5 | 1 << 12 | 1 << 18 | 1 << 22;

/// Result of an operation whose answer, if it succeeds, is in the buffer that it was given.
type Done = Result<(), Errno>;

/// A directory of the host, as the file server that a guest's file system talks to.
///
/// It works for one guest and on the thread that calls it, for as long as the host takes for one
/// operation on regular files and directories. The guest's kernel is trusted in what its own users
/// may do; what is done to files is done with the rights of this process.
#[derive(Debug)]
pub struct FileServer {
    read_only: bool,
    descriptors: Descriptors,
    nodes: Nodes,
    handles: Handles,
    /// Whether the guest has begun: the first message of a mount has come.
    mounted: bool,
}

/// The two descriptors that a server begins with.
fn begin(directory: &Path) -> Result<(OwnedFd, Descriptors), ShareError> {
    let root = host::open_root(directory).map_err(|source| ShareError::Open {
        directory: directory.to_owned(),
        source: source.into(),
    })?;
    let descriptors = Descriptors::open().map_err(|source| ShareError::Proc(source.into()))?;
    Ok((root, descriptors))
}

impl FileServer {
    /// The server of a directory that no guest has mounted yet.
    ///
    /// # Errors
    /// If the directory cannot be opened, or there is no `/proc`.
    pub fn open(config: &ShareConfig) -> Result<Self, ShareError> {
        let (root, descriptors) = begin(&config.directory)?;
        let bounds = Bounds::of_process();
        Ok(Self {
            read_only: config.read_only,
            descriptors,
            nodes: Nodes::new(root, bounds.idle_nodes),
            handles: Handles::new(1, bounds.handles),
            mounted: false,
        })
    }

    /// The server as it was saved. Handles of files that are not to be found, or not to be opened
    /// as they were, are bad from now on.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn restore(config: &ShareConfig, state: ShareState) -> Result<Self, ShareError> {
        let (root, descriptors) = begin(&config.directory)?;
        let bounds = Bounds::of_process();
        let mut server = Self {
            read_only: config.read_only,
            descriptors,
            nodes: Nodes::restore(root, bounds.idle_nodes, state.nodes, state.next_node),
            handles: Handles::new(state.next_handle, bounds.handles),
            mounted: state.mounted,
        };
        for saved in state.handles {
            let handle = match saved.flags {
                Some(flags) => {
                    Self::open_flags(flags).and_then(|flags| server.open_file(saved.node, flags))
                }
                None => server.open_directory(saved.node),
            };
            match handle {
                Ok(handle) => server.handles.put(saved.handle, handle),
                Err(error) => tracing::warn!(
                    directory = %config.directory.display(),
                    %error,
                    "a file that the guest had open is lost"
                ),
            }
        }
        Ok(server)
    }

    /// The whole state.
    pub fn save(&self) -> ShareState {
        let (nodes, next_node) = self.nodes.save();
        let mut handles: Vec<HandleState> = self
            .handles
            .iter()
            .map(|(number, handle)| HandleState {
                handle: number,
                node: handle.node,
                flags: handle.flags.map(|flags| flags.bits()),
            })
            .collect();
        handles.sort_by_key(|state| state.handle);
        ShareState {
            mounted: self.mounted,
            nodes,
            next_node,
            handles,
            next_handle: self.handles.next(),
        }
    }

    /// Closes and forgets all that the guest has opened and looked up.
    pub fn reset(&mut self) {
        self.handles.clear();
        self.nodes.clear();
        self.mounted = false;
    }

    /// Does what `message` asks for. The answer, of at most `room` bytes, is put into `reply`; it
    /// is empty if there is none.
    pub fn handle(&mut self, message: &[u8], room: usize, reply: &mut Vec<u8>) {
        reply.clear();
        let Some((header, body)) = Header::parse(message) else {
            // There is nothing that an answer could be known by.
            return;
        };
        reply.resize(reply::HEADER, 0);
        let room = room.min(MOST_REQUEST);
        let operation = body.and_then(|body| Operation::parse(&header, body));
        match operation {
            Ok(Operation::Forget(nodes)) => {
                for (node, count) in nodes {
                    self.nodes.forget(node, count);
                }
                reply.clear();
            }
            Err(_) if header.wants_no_answer() => reply.clear(),
            Ok(Operation::Interrupt) => reply.clear(),
            _ if room < reply::HEADER => reply.clear(),
            operation => {
                let done =
                    operation.and_then(|operation| self.perform(&header, operation, room, reply));
                let error = match done {
                    Ok(()) if reply.len() <= room => None,
                    Ok(()) => Some(Errno::OVERFLOW),
                    Err(error) => Some(error),
                };
                reply::finish(reply, header.unique, error);
            }
        }
    }

    fn perform(
        &mut self,
        header: &Header,
        operation: Operation<'_>,
        room: usize,
        reply: &mut Vec<u8>,
    ) -> Done {
        if let Operation::Init {
            major,
            readahead,
            flags,
        } = operation
        {
            return self.init(major, readahead, flags, reply);
        }
        if !self.mounted {
            return Err(Errno::IO);
        }
        if self.read_only && operation.changes() {
            return Err(Errno::ROFS);
        }
        let node = header.node;
        match operation {
            Operation::Init { .. } | Operation::Forget(_) | Operation::Interrupt => {
                Err(Errno::INVAL)
            }
            Operation::Destroy => {
                self.reset();
                Ok(())
            }
            Operation::Lookup(name) => self.look_up(node, name, reply),
            Operation::GetAttributes => self.get_attributes(node, reply),
            Operation::SetAttributes(changes) => self.set_attributes(node, &changes, reply),
            Operation::ReadLink => self.read_link(node, reply),
            Operation::SymLink { name, target } => self.make_link(node, name, target, reply),
            Operation::MakeNode { name, mode } => self.make_node(node, name, mode, reply),
            Operation::MakeDirectory { name, mode } => self.make_directory(node, name, mode, reply),
            Operation::Unlink(name) => self.unlink(node, name, false),
            Operation::RemoveDirectory(name) => self.unlink(node, name, true),
            Operation::Rename {
                name,
                to,
                new,
                flags,
            } => self.rename((node, name), (to, new), flags),
            Operation::Link { node: file, new } => self.link(file, node, new, reply),
            Operation::Open { flags } => self.open_for_guest(node, flags, reply),
            Operation::OpenDirectory => self.open_directory_for_guest(node, reply),
            Operation::Create { name, flags, mode } => {
                self.create(node, name, (flags, mode), reply)
            }
            Operation::Read {
                handle,
                offset,
                size,
            } => self.read(handle, offset, size, room, reply),
            Operation::Write {
                handle,
                offset,
                append,
                data,
            } => self.write(handle, (!append).then_some(offset), data, reply),
            Operation::ReadDirectory {
                handle,
                offset,
                size,
            } => self.read_directory(handle, offset, size, room, reply),
            Operation::Release { handle } => self.release(handle),
            Operation::Sync { handle, data_only } => self.sync(handle, data_only),
            Operation::SyncAll => self.sync_all(),
            Operation::Allocate {
                handle,
                offset,
                len,
                mode,
            } => self.allocate(handle, offset, len, mode),
            Operation::Seek {
                handle,
                offset,
                whence,
            } => self.seek(handle, offset, whence, reply),
            Operation::Statistics => {
                let file = self.nodes.file(node)?;
                reply::statistics(reply, &fstatvfs(&*file)?);
                Ok(())
            }
        }
    }

    /// The first message of a mount: agrees on the protocol.
    fn init(&mut self, major: u32, readahead: u32, flags: u32, reply: &mut Vec<u8>) -> Done {
        if major < VERSION.0 {
            return Err(Errno::PROTO);
        }
        // A guest with a later version is told this one, and begins again.
        if major == VERSION.0 {
            self.reset();
            self.mounted = true;
        }
        let terms = Terms {
            version: VERSION,
            readahead: readahead.min(MOST_DATA as u32),
            flags: flags & FEATURES,
            most_data: MOST_DATA as u32,
        };
        reply::terms(reply, &terms);
        Ok(())
    }

    /// Adds a handle and tells the guest of it.
    fn add_handle(&mut self, handle: Handle, reply: &mut Vec<u8>) {
        let number = self.handles.add(handle);
        reply::handle(reply, number);
    }
}

//! What a guest's file system asks for.

use crate::wire::{Name, Reader};
use rustix::io::Errno;
use std::ffi::CStr;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub opcode: u32,
    /// What its answer is known by.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
}

impl Header {
    /// The header of `message`, if there is a whole one, and what comes after it.
    ///
    /// # Errors
    /// `EINVAL` if the message is not as long as it says.
    pub fn parse(message: &[u8]) -> Option<(Self, Result<&[u8], Errno>)> {
        let mut reader = Reader::new(message);
        let (len, opcode) = (reader.u32().ok()?, reader.u32().ok()?);
        let (unique, node) = (reader.u64().ok()?, reader.u64().ok()?);
        // Who asks: the guest judges itself what its users may do.
        reader.skip(16).ok()?;
        let header = Self {
            opcode,
            unique,
            node,
        };
        let whole = usize::try_from(len) == Ok(message.len());
        let body = if whole {
            Ok(reader.rest())
        } else {
            Err(Errno::INVAL)
        };
        Some((header, body))
    }

    /// Whether the guest waits for no answer, not even that something is wrong.
    pub fn wants_no_answer(&self) -> bool {
        matches!(
            self.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        )
    }
}

/// A moment that a file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Now,
    At { seconds: u64, nanoseconds: u32 },
}

/// What is to be changed of a node's attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub handle: Option<u64>,
    pub mode: Option<u32>,
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<Moment>,
    pub modified: Option<Moment>,
}

/// An operation, with what its message says of it. The node is in the [`Header`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init {
        major: u32,
        readahead: u32,
        flags: u32,
    },
    Destroy,
    /// Nodes, and how many of their lookups the guest forgets.
    Forget(Vec<(u64, u64)>),
    /// An earlier message needs no answer any more. It has been answered.
    Interrupt,
    Lookup(Name<'a>),
    GetAttributes,
    SetAttributes(Changes),
    ReadLink,
    SymLink {
        name: Name<'a>,
        target: &'a CStr,
    },
    MakeNode {
        name: Name<'a>,
        mode: u32,
    },
    MakeDirectory {
        name: Name<'a>,
        mode: u32,
    },
    Unlink(Name<'a>),
    RemoveDirectory(Name<'a>),
    Rename {
        name: Name<'a>,
        to: u64,
        new: Name<'a>,
        flags: u32,
    },
    Link {
        node: u64,
        new: Name<'a>,
    },
    Open {
        flags: u32,
    },
    OpenDirectory,
    Create {
        name: Name<'a>,
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        append: bool,
        data: &'a [u8],
    },
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Release {
        handle: u64,
    },
    Sync {
        handle: u64,
        data_only: bool,
    },
    SyncAll,
    Allocate {
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    Statistics,
}

/// `O_APPEND`.
const APPEND: u32 = 0o2000;
/// A write of the guest's page cache, which is not where the writer's flags say. It is one of the
/// flags of a write.
const FROM_CACHE: u32 = 1;

impl<'a> Operation<'a> {
    /// The operation of a message with `header`, whose other bytes are `body`.
    ///
    /// # Errors
    /// What the guest is told: `ENOSYS` for operations that there are not, `EINVAL` for what is cut
    /// off or breaks the rules. It must not be told anything of a broken [`Forget`](Self::Forget).
    pub fn parse(header: &Header, body: &'a [u8]) -> Result<Self, Errno> {
        let mut reader = Reader::new(body);
        let message = &mut reader;
        Ok(match header.opcode {
            opcode::LOOKUP => Self::Lookup(message.name()?),
            opcode::FORGET => Self::Forget(vec![(header.node, message.u64()?)]),
            opcode::BATCH_FORGET => Self::Forget(forgotten(message)?),
            opcode::GETATTR => Self::GetAttributes,
            opcode::SETATTR => Self::SetAttributes(changes(message)?),
            opcode::READLINK => Self::ReadLink,
            opcode::SYMLINK => Self::SymLink {
                name: message.name()?,
                target: message.text()?,
            },
            opcode::MKNOD => {
                let mode = message.u32()?;
                message.skip(12)?;
                let name = message.name()?;
                Self::MakeNode { name, mode }
            }
            opcode::MKDIR => {
                let mode = message.u32()?;
                message.skip(4)?;
                let name = message.name()?;
                Self::MakeDirectory { name, mode }
            }
            opcode::UNLINK => Self::Unlink(message.name()?),
            opcode::RMDIR => Self::RemoveDirectory(message.name()?),
            opcode::RENAME => rename(message, false)?,
            opcode::RENAME2 => rename(message, true)?,
            opcode::LINK => Self::Link {
                node: message.u64()?,
                new: message.name()?,
            },
            opcode::OPEN => Self::Open {
                flags: message.u32()?,
            },
            opcode::OPENDIR => Self::OpenDirectory,
            opcode::CREATE => {
                let (flags, mode) = (message.u32()?, message.u32()?);
                message.skip(8)?;
                let name = message.name()?;
                Self::Create { name, flags, mode }
            }
            opcode::READ | opcode::READDIR => {
                let (handle, offset, size) = (message.u64()?, message.u64()?, message.u32()?);
                if header.opcode == opcode::READ {
                    Self::Read {
                        handle,
                        offset,
                        size,
                    }
                } else {
                    Self::ReadDirectory {
                        handle,
                        offset,
                        size,
                    }
                }
            }
            opcode::WRITE => write(message)?,
            opcode::RELEASE | opcode::RELEASEDIR => Self::Release {
                handle: message.u64()?,
            },
            opcode::FSYNC | opcode::FSYNCDIR => Self::Sync {
                handle: message.u64()?,
                data_only: message.u32()? & 1 != 0,
            },
            opcode::SYNCFS => Self::SyncAll,
            opcode::FALLOCATE => Self::Allocate {
                handle: message.u64()?,
                offset: message.u64()?,
                len: message.u64()?,
                mode: message.u32()?,
            },
            opcode::LSEEK => Self::Seek {
                handle: message.u64()?,
                offset: message.u64()?,
                whence: message.u32()?,
            },
            opcode::STATFS => Self::Statistics,
            opcode::INIT => {
                let major = message.u32()?;
                message.skip(4)?;
                let (readahead, flags) = (message.u32()?, message.u32()?);
                Self::Init {
                    major,
                    readahead,
                    flags,
                }
            }
            opcode::DESTROY => Self::Destroy,
            opcode::INTERRUPT => Self::Interrupt,
            // Extended attributes, locks, FLUSH, ACCESS, IOCTL, POLL and others: the guest's kernel
            // remembers it, does what it can itself, and says EOPNOTSUPP for the rest.
            _ => return Err(Errno::NOSYS),
        })
    }
}

impl Operation<'_> {
    /// Whether it changes something, so that it is refused where the guest may only read. What is
    /// done through a handle for writing is not among it: there is no such handle then.
    pub fn changes(&self) -> bool {
        matches!(
            self,
            Self::SetAttributes(_)
                | Self::SymLink { .. }
                | Self::MakeNode { .. }
                | Self::MakeDirectory { .. }
                | Self::Unlink(_)
                | Self::RemoveDirectory(_)
                | Self::Rename { .. }
                | Self::Link { .. }
                | Self::Create { .. }
                | Self::Write { .. }
                | Self::Allocate { .. }
        )
    }
}

fn forgotten(message: &mut Reader<'_>) -> Result<Vec<(u64, u64)>, Errno> {
    let count = message.u32()?;
    message.skip(4)?;
    // What is not there ends it, so the count alone allocates nothing.
    (0..count)
        .map(|_| Ok((message.u64()?, message.u64()?)))
        .collect()
}

fn rename<'a>(message: &mut Reader<'a>, has_flags: bool) -> Result<Operation<'a>, Errno> {
    let (to, mut flags) = (message.u64()?, 0);
    if has_flags {
        flags = message.u32()?;
        message.skip(4)?;
    }
    let (name, new) = (message.name()?, message.name()?);
    Ok(Operation::Rename {
        name,
        to,
        new,
        flags,
    })
}

fn write<'a>(message: &mut Reader<'a>) -> Result<Operation<'a>, Errno> {
    let (handle, offset, size) = (message.u64()?, message.u64()?, message.u32()?);
    let kind = message.u32()?;
    message.skip(8)?;
    let flags = message.u32()?;
    message.skip(4)?;
    let data = message.rest();
    Ok(Operation::Write {
        handle,
        offset,
        append: flags & APPEND != 0 && kind & FROM_CACHE == 0,
        data: data.get(..size as usize).ok_or(Errno::INVAL)?,
    })
}

fn changes(message: &mut Reader<'_>) -> Result<Changes, Errno> {
    let valid = message.u32()?;
    message.skip(4)?;
    let (handle, size) = (message.u64()?, message.u64()?);
    message.skip(8)?;
    let (accessed, modified) = (message.u64()?, message.u64()?);
    message.skip(8)?;
    let (accessed_nanoseconds, modified_nanoseconds) = (message.u32()?, message.u32()?);
    message.skip(4)?;
    let mode = message.u32()?;
    message.skip(4)?;
    let (user, group) = (message.u32()?, message.u32()?);
    let has = |bit: u32| valid & 1 << bit != 0;
    let moment = |set, now, seconds, nanoseconds| {
        let at = Moment::At {
            seconds,
            nanoseconds,
        };
        has(set).then(|| if has(now) { Moment::Now } else { at })
    };
    Ok(Changes {
        handle: has(6).then_some(handle),
        mode: has(0).then_some(mode),
        user: has(1).then_some(user),
        group: has(2).then_some(group),
        size: has(3).then_some(size),
        accessed: moment(4, 7, accessed, accessed_nanoseconds),
        modified: moment(5, 8, modified, modified_nanoseconds),
    })
}

/// The numbers of the operations.
pub(crate) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const SYNCFS: u32 = 50;
}

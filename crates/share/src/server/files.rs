//! Operations on what is open.

use super::{Done, FileServer, MOST_DATA};
use crate::handles::Handle;
use crate::host;
use crate::nodes::ROOT;
use crate::reply;
use crate::wire::Put;
use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom, fallocate, fchmod, fdatasync, fsync,
    seek, syncfs,
};
use rustix::io::{Errno, IoSlice, ReadWriteFlags, pread, pwritev2};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// Bytes of the host's entries of a directory that are read at once.
const ENTRIES: usize = 32 << 10;
/// An inode number that is not told.
const UNKNOWN_INODE: u64 = 0xffff_ffff;

/// Where to seek: `SEEK_DATA`, `SEEK_HOLE`.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl FileServer {
    /// How a file is to be opened that the guest opens with `flags`. Appending, truncating and so
    /// on are done by the operations that are to do it.
    pub(super) fn open_flags(flags: u32) -> Result<OFlags, Errno> {
        let flags = OFlags::from_bits_retain(flags);
        let access = flags & OFlags::RWMODE;
        if access == OFlags::RWMODE {
            return Err(Errno::INVAL);
        }
        Ok(access | flags & (OFlags::SYNC | OFlags::DSYNC))
    }

    /// The handle of something that was opened.
    pub(super) fn new_handle(
        &mut self,
        node: u64,
        file: OwnedFd,
        flags: Option<OFlags>,
    ) -> Result<Handle, Errno> {
        let looking = self.nodes.file(node)?;
        self.nodes.pin(node, looking);
        Ok(Handle {
            node,
            file,
            flags,
            written: false,
        })
    }

    /// Opens a node for an operation if it is of `kind`, and otherwise not even tries to.
    pub(super) fn open_as(
        &mut self,
        node: u64,
        kind: FileType,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let file = self.nodes.file(node)?;
        let found = FileType::from_raw_mode(host::attributes(&*file)?.stx_mode.into());
        if found != kind {
            return Err(match (kind, found) {
                (FileType::Directory, _) => Errno::NOTDIR,
                (_, FileType::Directory) => Errno::ISDIR,
                (_, FileType::Symlink) => Errno::LOOP,
                _ => Errno::ACCESS,
            });
        }
        self.descriptors.reopen(&*file, flags)
    }

    pub(super) fn open_file(&mut self, node: u64, flags: OFlags) -> Result<Handle, Errno> {
        if self.read_only && flags & OFlags::RWMODE != OFlags::RDONLY {
            return Err(Errno::ROFS);
        }
        self.handles.check_room()?;
        let file = self.open_as(node, FileType::RegularFile, flags)?;
        self.new_handle(node, file, Some(flags))
    }

    pub(super) fn open_directory(&mut self, node: u64) -> Result<Handle, Errno> {
        self.handles.check_room()?;
        let file = self.open_as(node, FileType::Directory, OFlags::RDONLY)?;
        self.new_handle(node, file, None)
    }

    pub(super) fn open_for_guest(&mut self, node: u64, flags: u32, reply: &mut Vec<u8>) -> Done {
        let handle = self.open_file(node, Self::open_flags(flags)?)?;
        self.add_handle(handle, reply);
        Ok(())
    }

    pub(super) fn open_directory_for_guest(&mut self, node: u64, reply: &mut Vec<u8>) -> Done {
        let handle = self.open_directory(node)?;
        self.add_handle(handle, reply);
        Ok(())
    }

    pub(super) fn release(&mut self, handle: u64) -> Done {
        let gone = self.handles.remove(handle)?;
        self.nodes.unpin(gone.node);
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        handle: u64,
        offset: u64,
        size: u32,
        room: usize,
        reply: &mut Vec<u8>,
    ) -> Done {
        let handle = self.handles.file(handle)?;
        let begin = reply.len();
        let size = (size as usize)
            .min(MOST_DATA)
            .min(room.saturating_sub(begin));
        reply.resize(begin + size, 0);
        let mut done = 0;
        // Less than was asked for means the end to the guest.
        while done < size {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match pread(&handle.file, &mut reply[begin + done..], at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        reply.truncate(begin + done);
        Ok(())
    }

    /// Writes at `offset`, or at the end if there is none.
    pub(super) fn write(
        &mut self,
        handle: u64,
        offset: Option<u64>,
        data: &[u8],
        reply: &mut Vec<u8>,
    ) -> Done {
        let handle = self.handles.file(handle)?;
        if !handle.written {
            drop_privileges(&handle.file)?;
            handle.written = true;
        }
        let flags = match offset {
            Some(_) => ReadWriteFlags::empty(),
            None => ReadWriteFlags::APPEND,
        };
        let mut done = 0;
        while done < data.len() {
            let at = offset.unwrap_or(0).checked_add(done as u64);
            // What is beyond this the host takes for its own position.
            let at = at.filter(|&at| i64::try_from(at).is_ok());
            let slices = [IoSlice::new(&data[done..])];
            match pwritev2(&handle.file, &slices, at.ok_or(Errno::FBIG)?, flags) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        reply.u32(done as u32);
        reply.u32(0);
        Ok(())
    }

    pub(super) fn read_directory(
        &mut self,
        handle: u64,
        offset: u64,
        size: u32,
        room: usize,
        reply: &mut Vec<u8>,
    ) -> Done {
        let handle = self.handles.get(handle)?;
        if handle.flags.is_some() {
            return Err(Errno::NOTDIR);
        }
        let size = (size as usize).min(MOST_DATA);
        let limit = reply.len().saturating_add(size).min(room);
        seek(&handle.file, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(&handle.file, &mut buffer);
        let begin = reply.len();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) if reply.len() > begin => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name().to_bytes();
            // What is above the shared directory is not the guest's.
            let outside = handle.node == ROOT && name == b"..";
            let inode = if outside { UNKNOWN_INODE } else { entry.ino() };
            let entry = (inode, entry.file_type(), name, entry.next_entry_cookie());
            if !reply::directory_entry(reply, limit, entry) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, handle: u64, data_only: bool) -> Done {
        let handle = self.handles.get(handle)?;
        if data_only {
            fdatasync(&handle.file)
        } else {
            fsync(&handle.file)
        }
    }

    /// Makes everything that the guest has written durable.
    pub(super) fn sync_all(&mut self) -> Done {
        syncfs(self.open_as(ROOT, FileType::Directory, OFlags::RDONLY)?)
    }

    pub(super) fn allocate(&mut self, handle: u64, offset: u64, len: u64, mode: u32) -> Done {
        let mode = FallocateFlags::from_bits_retain(mode);
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let handle = self.handles.file(handle)?;
        drop_privileges(&handle.file)?;
        fallocate(&handle.file, mode, offset, len)
    }

    /// Finds data or a hole.
    pub(super) fn seek(
        &mut self,
        handle: u64,
        offset: u64,
        whence: u32,
        reply: &mut Vec<u8>,
    ) -> Done {
        let from = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let handle = self.handles.file(handle)?;
        reply.u64(seek(&handle.file, from)?);
        Ok(())
    }
}

/// Takes from a file that is about to be changed what makes it run with its owner's rights. The host
/// does that itself unless this process is privileged.
pub(super) fn drop_privileges(file: &OwnedFd) -> Done {
    let mode = u32::from(host::attributes(file)?.stx_mode);
    if mode & 0o6000 == 0 {
        return Ok(());
    }
    match fchmod(file, Mode::from_raw_mode(mode & 0o1777)) {
        // Who may not do this is not privileged.
        Err(Errno::PERM) => Ok(()),
        other => other,
    }
}

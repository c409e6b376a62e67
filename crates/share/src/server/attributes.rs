//! Operations on attributes.

use super::files::drop_privileges;
use super::names::{directory_mode, file_mode};
use super::{Done, FileServer};
use crate::host;
use crate::reply;
use crate::request::{Changes, Moment};
use rustix::fs::{FileType, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, ftruncate};
use rustix::io::Errno;

/// Nanoseconds of a second.
const SECOND: u32 = 1_000_000_000;

impl FileServer {
    pub(super) fn get_attributes(&mut self, node: u64, reply: &mut Vec<u8>) -> Done {
        let file = self.nodes.file(node)?;
        reply::only_attributes(reply, &host::attributes(&*file)?);
        Ok(())
    }

    pub(super) fn set_attributes(
        &mut self,
        node: u64,
        changes: &Changes,
        reply: &mut Vec<u8>,
    ) -> Done {
        let file = self.nodes.file(node)?;
        let before = host::attributes(&*file)?;
        // Files belong to the host's user, whoever the guest's users are.
        let other = |wanted: Option<u32>, is| wanted.is_some_and(|wanted| wanted != is);
        if other(changes.user, before.stx_uid) || other(changes.group, before.stx_gid) {
            return Err(Errno::PERM);
        }
        if let Some(mode) = changes.mode {
            let mode = match FileType::from_raw_mode(before.stx_mode.into()) {
                FileType::Symlink => return Err(Errno::OPNOTSUPP),
                FileType::Directory => directory_mode(mode),
                _ => file_mode(mode),
            };
            self.descriptors.set_mode(&*file, mode)?;
        }
        if let Some(size) = changes.size {
            self.truncate(node, changes.handle, size)?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            let times = Timestamps {
                last_access: time(changes.accessed)?,
                last_modification: time(changes.modified)?,
            };
            self.descriptors.set_times(&*file, &times)?;
        }
        reply::only_attributes(reply, &host::attributes(&*file)?);
        Ok(())
    }

    /// Changes the size, through the guest's handle if it has one: a file may be open for writing
    /// whose mode does not allow it any more.
    fn truncate(&mut self, node: u64, handle: Option<u64>, size: u64) -> Done {
        if let Some(handle) = handle {
            let handle = self.handles.file(handle)?;
            if handle.node == node {
                drop_privileges(&handle.file)?;
                return ftruncate(&handle.file, size);
            }
        }
        let file = self.open_as(node, FileType::RegularFile, OFlags::WRONLY)?;
        drop_privileges(&file)?;
        ftruncate(&file, size)
    }
}

/// A moment as the host takes it.
fn time(moment: Option<Moment>) -> Result<Timespec, Errno> {
    let (tv_sec, tv_nsec) = match moment {
        None => (0, UTIME_OMIT),
        Some(Moment::Now) => (0, UTIME_NOW),
        Some(Moment::At {
            seconds,
            nanoseconds,
        }) if nanoseconds < SECOND => (seconds as i64, nanoseconds.into()),
        Some(Moment::At { .. }) => return Err(Errno::INVAL),
    };
    Ok(Timespec { tv_sec, tv_nsec })
}

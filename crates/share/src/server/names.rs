//! Operations on names in directories.

use super::{Done, FileServer};
use crate::host;
use crate::reply;
use crate::wire::Name;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fchmod, mkdirat, openat, readlinkat,
    renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::CStr;

/// `O_EXCL`.
const EXCLUSIVE: u32 = 0o200;

/// The mode that a new file or a changed one gets: whatever the guest asks for, but not the bits
/// that make a program run with the rights of its owner, who is the host's user.
pub(super) fn file_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o1777)
}

/// The same for a directory, where the group's bit tells only whose the new files in it are.
pub(super) fn directory_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o3777)
}

impl FileServer {
    pub(super) fn look_up(&mut self, parent: u64, name: Name<'_>, reply: &mut Vec<u8>) -> Done {
        let (node, attributes) = self.nodes.look_up(parent, name)?;
        reply::entry(reply, node, &attributes);
        Ok(())
    }

    pub(super) fn read_link(&mut self, node: u64, reply: &mut Vec<u8>) -> Done {
        let file = self.nodes.file(node)?;
        let target = readlinkat(&*file, c"", Vec::new()).map_err(|error| match error {
            // With an empty path this is what it means that the file is no link.
            Errno::NOENT => Errno::INVAL,
            other => other,
        })?;
        reply.extend_from_slice(target.to_bytes());
        Ok(())
    }

    pub(super) fn make_link(
        &mut self,
        parent: u64,
        name: Name<'_>,
        target: &CStr,
        reply: &mut Vec<u8>,
    ) -> Done {
        let directory = self.nodes.file(parent)?;
        symlinkat(target, &*directory, name.as_c_str())?;
        self.look_up(parent, name, reply)
    }

    /// Makes a regular file; others are refused.
    pub(super) fn make_node(
        &mut self,
        parent: u64,
        name: Name<'_>,
        mode: u32,
        reply: &mut Vec<u8>,
    ) -> Done {
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => {}
            _ if mode & 0o170_000 == 0 => {}
            _ => return Err(Errno::PERM),
        }
        let directory = self.nodes.file(parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&*directory, name.as_c_str(), flags, file_mode(mode))?;
        // This process' umask is not the guest's, which has been heeded there.
        fchmod(&file, file_mode(mode))?;
        self.look_up(parent, name, reply)
    }

    pub(super) fn make_directory(
        &mut self,
        parent: u64,
        name: Name<'_>,
        mode: u32,
        reply: &mut Vec<u8>,
    ) -> Done {
        let directory = self.nodes.file(parent)?;
        mkdirat(&*directory, name.as_c_str(), directory_mode(mode))?;
        let new = host::look(&*directory, name)?;
        let made = host::attributes(&new)?;
        // It gets the bit of the group from the directory that it is in.
        let inherited = u32::from(made.stx_mode) & 0o2000;
        if FileType::from_raw_mode(made.stx_mode.into()) == FileType::Directory {
            self.descriptors
                .set_mode(&new, directory_mode(mode | inherited))?;
        }
        self.look_up(parent, name, reply)
    }

    pub(super) fn unlink(&mut self, parent: u64, name: Name<'_>, directory: bool) -> Done {
        let flags = if directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        unlinkat(&*self.nodes.file(parent)?, name.as_c_str(), flags)
    }

    pub(super) fn rename(
        &mut self,
        (from, name): (u64, Name<'_>),
        (to, new): (u64, Name<'_>),
        flags: u32,
    ) -> Done {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old_directory, new_directory) = (self.nodes.file(from)?, self.nodes.file(to)?);
        renameat_with(
            &*old_directory,
            name.as_c_str(),
            &*new_directory,
            new.as_c_str(),
            flags,
        )?;
        self.nodes.moved(to, new);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.nodes.moved(from, name);
        }
        Ok(())
    }

    pub(super) fn link(
        &mut self,
        node: u64,
        parent: u64,
        new: Name<'_>,
        reply: &mut Vec<u8>,
    ) -> Done {
        let (file, directory) = (self.nodes.file(node)?, self.nodes.file(parent)?);
        self.descriptors.link(&*file, &*directory, new)?;
        self.look_up(parent, new, reply)
    }

    /// Opens the file `name`, and makes it if there is none.
    pub(super) fn create(
        &mut self,
        parent: u64,
        name: Name<'_>,
        (flags, mode): (u32, u32),
        reply: &mut Vec<u8>,
    ) -> Done {
        self.handles.check_room()?;
        let directory = self.nodes.file(parent)?;
        // Only a file that is made here is opened by its name: what else has the name may be
        // anything.
        let how = Self::open_flags(flags)? | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = match openat(&*directory, name.as_c_str(), how, file_mode(mode)) {
            Err(Errno::EXIST) if flags & EXCLUSIVE == 0 => {
                let (node, attributes) = self.nodes.look_up(parent, name)?;
                return match self.open_file(node, Self::open_flags(flags)?) {
                    Ok(handle) => {
                        reply::entry(reply, node, &attributes);
                        self.add_handle(handle, reply);
                        Ok(())
                    }
                    Err(error) => {
                        self.nodes.forget(node, 1);
                        Err(error)
                    }
                };
            }
            other => other?,
        };
        fchmod(&file, file_mode(mode))?;
        let looking = self.descriptors.reopen(&file, OFlags::PATH)?;
        let (node, attributes) = self.nodes.enter(parent, name, looking)?;
        let handle = self.new_handle(node, file, Some(Self::open_flags(flags)?))?;
        reply::entry(reply, node, &attributes);
        self.add_handle(handle, reply);
        Ok(())
    }
}

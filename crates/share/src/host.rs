//! The host's files. Nothing here resolves more than one component of a path, but for the names of
//! descriptors in `/proc/self/fd`, which are the server's own.

use crate::wire::Name;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, Timestamps, chmodat, linkat, openat, statx,
    utimensat,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Opens the directory that is shared. Here alone the host follows a path, the user's own.
pub(crate) fn open_root(directory: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, directory, flags, Mode::empty())
}

/// A descriptor of what has the name `name` in `directory`: for looking only, and of a symbolic link
/// itself.
pub(crate) fn look(directory: impl AsFd, name: Name<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name.as_c_str(), flags, Mode::empty())
}

/// The attributes of what `file` is open for.
pub(crate) fn attributes(file: impl AsFd) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    statx(file, c"", AtFlags::EMPTY_PATH, wanted)
}

/// The server's own descriptors as files, for what Linux does only with a path: opening a file
/// anew, changing its mode or times, and giving it another name.
#[derive(Debug)]
pub(crate) struct Descriptors(OwnedFd);

impl Descriptors {
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, c"/proc/self/fd", flags, Mode::empty()).map(Self)
    }

    fn name(file: BorrowedFd<'_>) -> String {
        file.as_raw_fd().to_string()
    }

    /// Opens what `file` is open for once more.
    pub fn reopen(&self, file: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(&self.0, Self::name(file.as_fd()), flags, Mode::empty())
    }

    /// Changes the mode. A symbolic link has none.
    pub fn set_mode(&self, file: impl AsFd, mode: Mode) -> Result<(), Errno> {
        chmodat(&self.0, Self::name(file.as_fd()), mode, AtFlags::empty())
    }

    /// Changes the times, of a symbolic link itself too.
    pub fn set_times(&self, file: impl AsFd, times: &Timestamps) -> Result<(), Errno> {
        let name = Self::name(file.as_fd());
        utimensat(&self.0, name, times, AtFlags::empty())
    }

    /// Gives `file` the name `new` in `directory` too.
    pub fn link(&self, file: impl AsFd, directory: impl AsFd, new: Name<'_>) -> Result<(), Errno> {
        let name = Self::name(file.as_fd());
        let flags = AtFlags::SYMLINK_FOLLOW;
        linkat(&self.0, name, directory, new.as_c_str(), flags)
    }
}

//! The handles: what the guest has open.

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Something that the guest has open.
#[derive(Debug)]
pub(crate) struct Handle {
    pub node: u64,
    pub file: OwnedFd,
    /// How a file was opened; `None` is a directory.
    pub flags: Option<OFlags>,
    /// Whether the file has been written through this handle.
    pub written: bool,
}

/// All handles of a share.
#[derive(Debug)]
pub(crate) struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    /// None yet, and never more than `most`; the first one is to be `next`.
    pub fn new(next: u64, most: usize) -> Self {
        Self {
            open: HashMap::new(),
            next,
            most,
        }
    }

    /// Whether there is room for one more.
    ///
    /// # Errors
    /// `ENFILE` if not.
    pub fn check_room(&self) -> Result<(), Errno> {
        if self.open.len() < self.most {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    /// Adds a handle for which there [is room](Self::check_room).
    pub fn add(&mut self, handle: Handle) -> u64 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(number, handle);
        number
    }

    /// Adds a handle as it was saved.
    pub fn put(&mut self, number: u64, handle: Handle) {
        self.open.insert(number, handle);
    }

    /// A handle.
    ///
    /// # Errors
    /// `EBADF` if there is no such handle.
    pub fn get(&mut self, number: u64) -> Result<&mut Handle, Errno> {
        self.open.get_mut(&number).ok_or(Errno::BADF)
    }

    /// A handle of a file.
    ///
    /// # Errors
    /// `EBADF` if there is no such handle, or it is a directory's.
    pub fn file(&mut self, number: u64) -> Result<&mut Handle, Errno> {
        let handle = self.get(number)?;
        if handle.flags.is_some() {
            Ok(handle)
        } else {
            Err(Errno::BADF)
        }
    }

    /// Removes a handle.
    ///
    /// # Errors
    /// `EBADF` if there is no such handle.
    pub fn remove(&mut self, number: u64) -> Result<Handle, Errno> {
        self.open.remove(&number).ok_or(Errno::BADF)
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.open.clear();
    }

    /// All handles and their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Handle)> {
        self.open.iter().map(|(&number, handle)| (number, handle))
    }

    /// The number of the next handle.
    pub fn next(&self) -> u64 {
        self.next
    }
}

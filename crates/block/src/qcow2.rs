//! qcow2 images, by the crate `imago`.
//!
//! This module keeps to itself what is asked of that crate: an image is opened only after its header
//! was [checked](crate::header), every file of a chain is opened (and locked) here and never by the
//! crate, and what it panics at becomes an error in [`Disk`](crate::Disk).

use crate::chain;
use crate::storage::{Storage, check_change, check_range};
use crate::{BlockError, Format};
use belljar_memory::Segments;
use imago::FormatAccess;
use imago::file::File as ImageFile;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Bytes that are copied between guest memory and the image at once.
const CHUNK: u64 = 1 << 18;

/// A qcow2 image with the images behind it.
#[derive(Debug)]
pub struct Qcow2Image {
    /// Held for writing while clusters are given up, which others may be reading.
    access: RwLock<FormatAccess<ImageFile>>,
    size: u64,
    read_only: bool,
    /// A flush failed: what was written since the one before may be lost.
    lost: AtomicBool,
}

impl Qcow2Image {
    /// Opens the image at `path` and what is behind it. A backing file must lie in the image's own
    /// directory or below it.
    ///
    /// # Errors
    /// A file that the host does not open or that somebody else uses; an image that is damaged, made
    /// to do harm, or of a kind that is not supported.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BlockError> {
        Ok(Self::over(chain::open(path, !read_only)?, read_only))
    }

    /// Opens the image at `path` for the changes to `base`, and makes it if there is none.
    ///
    /// # Errors
    /// As for [`open`](Self::open); an image whose backing file is not `base`.
    pub fn open_overlay(path: &Path, base: &Path, format: Format) -> Result<Self, BlockError> {
        let access = chain::open_overlay(path, base, format)?;
        Ok(Self::over(access, false))
    }

    fn over(access: FormatAccess<ImageFile>, read_only: bool) -> Self {
        let size = access.size();
        Self {
            access: RwLock::new(access),
            size,
            read_only,
            lost: AtomicBool::new(false),
        }
    }

    fn access(&self) -> RwLockReadGuard<'_, FormatAccess<ImageFile>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroes a range and gives up its clusters.
    fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.discard_to_zero(offset, len)
    }
}

impl Storage for Qcow2Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, segments: &Segments) -> io::Result<()> {
        check_range(offset, segments.len(), self.size)?;
        let mut buffer = vec![0; segments.len().min(CHUNK) as usize];
        let mut done = 0;
        while done < segments.len() {
            let now = (segments.len() - done).min(CHUNK);
            let part = &mut buffer[..now as usize];
            self.access().read(&mut *part, offset + done)?;
            segments.fill(done, part);
            done += now;
        }
        Ok(())
    }

    fn write(&self, offset: u64, segments: &Segments) -> io::Result<()> {
        check_change(self, offset, segments.len())?;
        let mut buffer = vec![0; segments.len().min(CHUNK) as usize];
        let mut done = 0;
        while done < segments.len() {
            let now = (segments.len() - done).min(CHUNK);
            let part = &mut buffer[..now as usize];
            segments.copy_to(done, part);
            self.access().write(&*part, offset + done)?;
            done += now;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        if self.lost.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush of this disk failed"));
        }
        let access = self.access();
        access
            .flush()
            .and_then(|()| access.sync())
            .inspect_err(|_| self.lost.store(true, Ordering::Release))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_change(self, offset, len)?;
        match self.unmap(offset, len) {
            // Images of version 2 have no clusters of zeroes.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        check_change(self, offset, len)?;
        if may_unmap {
            match self.unmap(offset, len) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        match self.access().write_zeroes(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            result => return result,
        }
        let zeroes = vec![0; len.min(CHUNK) as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(CHUNK);
            self.access()
                .write(&zeroes[..now as usize], offset + done)?;
            done += now;
        }
        Ok(())
    }
}

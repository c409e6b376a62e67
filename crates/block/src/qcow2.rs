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
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Bytes that are copied between guest memory and the image at once.
const CHUNK: u64 = 1 << 18;

/// A qcow2 image with the images behind it.
#[derive(Debug)]
pub struct Qcow2Image<F: imago::Storage + 'static = ImageFile> {
    /// Held for writing while clusters are given up, which others may be reading.
    access: RwLock<FormatAccess<F>>,
    /// Clusters were given up since everything was made to last. They must not be used again before the host's
    /// disk knows: else, after a power cut, two clusters of the guest could be one.
    freed: AtomicBool,
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
        Ok(Self::over(chain::open_overlay(path, base, format)?, false))
    }
}

impl<F: imago::Storage + 'static> Qcow2Image<F> {
    /// The disk in an image that is open, in a file of any kind.
    pub fn over(access: FormatAccess<F>, read_only: bool) -> Self {
        let size = access.size();
        Self {
            access: RwLock::new(access),
            freed: AtomicBool::new(false),
            size,
            read_only,
            lost: AtomicBool::new(false),
        }
    }

    fn access(&self) -> RwLockReadGuard<'_, FormatAccess<F>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroes whole clusters and gives them up; `None` if the image cannot.
    fn unmap(&self, clusters: Range<u64>) -> io::Result<Option<()>> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        self.freed.store(true, Ordering::Release);
        match access.discard_to_zero(clusters.start, clusters.end - clusters.start) {
            // Images of version 2 have no clusters of zeroes.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            result => result.map(Some),
        }
    }

    /// The whole clusters in a range, if the image can give up any.
    fn whole_clusters(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let size = self.access().inner().zero_granularity()?;
        let whole = offset.next_multiple_of(size)..(offset + len) / size * size;
        (!whole.is_empty()).then_some(whole)
    }

    /// Zeroes a range and gives nothing up.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.settled()?.write_zeroes(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            result => return result,
        }
        // Images of version 2 have no clusters of zeroes.
        let zeroes = vec![0; len.min(CHUNK) as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(CHUNK);
            self.settled()?
                .write(&zeroes[..now as usize], offset + done)?;
            done += now;
        }
        Ok(())
    }

    /// The image for a change that may use clusters, when those given up before are so on the
    /// host's disk.
    fn settled(&self) -> io::Result<RwLockReadGuard<'_, FormatAccess<F>>> {
        loop {
            let access = self.access();
            if !self.freed.load(Ordering::Acquire) {
                return Ok(access);
            }
            drop(access);
            let access = self.access.write().unwrap_or_else(PoisonError::into_inner);
            if self.freed.load(Ordering::Acquire) {
                self.make_last(&access)?;
            }
        }
    }

    /// Makes everything last; `access` is held for writing. Data come first: a table that names a
    /// new cluster must not last without what was copied into it from an old one.
    fn make_last(&self, access: &FormatAccess<F>) -> io::Result<()> {
        if self.lost.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush of this disk failed"));
        }
        access
            .sync()
            .and_then(|()| access.flush())
            .and_then(|()| access.sync())
            .inspect_err(|_| self.lost.store(true, Ordering::Release))?;
        self.freed.store(false, Ordering::Release);
        Ok(())
    }
}

impl<F: imago::Storage + 'static> Storage for Qcow2Image<F> {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn file(&self) -> Option<&std::fs::File> {
        None
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
            self.settled()?.write(&*part, offset + done)?;
            done += now;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        self.make_last(&access)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_change(self, offset, len)?;
        if let Some(clusters) = self.whole_clusters(offset, len) {
            self.unmap(clusters)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        check_change(self, offset, len)?;
        if may_unmap && let Some(clusters) = self.whole_clusters(offset, len) {
            self.zero(offset, clusters.start - offset)?;
            self.zero(clusters.end, offset + len - clusters.end)?;
            if self.unmap(clusters)?.is_some() {
                return Ok(());
            }
        }
        self.zero(offset, len)
    }
}

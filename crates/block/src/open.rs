//! From what a user says to a disk.

use crate::lock::open_locked;
use crate::{
    BlockError, Disk, DiskConfig, Format, Limits, Overlay, Qcow2Image, RawFile, Storage,
    TemporaryOverlay, header,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Opens a disk.
///
/// # Errors
/// A file that the host does not open, that somebody else uses, or that makes no sense.
pub fn open(config: &DiskConfig) -> Result<Disk, BlockError> {
    let storage = open_storage(config)?;
    if storage.size() == 0 {
        return Err(BlockError::Empty(config.file.clone()));
    }
    let limits = Limits {
        bps: config.bps,
        iops: config.iops,
    };
    let name = config.file.display().to_string();
    Disk::with_aio(name, storage, limits, config.aio)
}

fn open_storage(config: &DiskConfig) -> Result<Box<dyn Storage>, BlockError> {
    match &config.overlay {
        None => open_image(config, config.read_only),
        Some(Overlay::Temporary) => {
            let below = open_image(config, true)?;
            let overlay = TemporaryOverlay::new(below).map_err(BlockError::Temporary)?;
            Ok(Box::new(overlay))
        }
        Some(Overlay::File(overlay)) => {
            let format = config.format();
            if config.format.is_none() && format == Format::Raw {
                refuse_ambiguous(&config.file, &open_locked(&config.file, false)?)?;
            }
            let image = Qcow2Image::open_overlay(overlay, &config.file, format)?;
            Ok(Box::new(image))
        }
    }
}

/// Opens the image itself.
fn open_image(config: &DiskConfig, read_only: bool) -> Result<Box<dyn Storage>, BlockError> {
    match config.format() {
        Format::Raw => open_raw(config, read_only),
        Format::Qcow2 => Ok(Box::new(Qcow2Image::open(&config.file, read_only)?)),
    }
}

fn open_raw(config: &DiskConfig, read_only: bool) -> Result<Box<dyn Storage>, BlockError> {
    let file = open_locked(&config.file, !read_only)?;
    if config.format.is_none() {
        refuse_ambiguous(&config.file, &file)?;
    }
    let raw = RawFile::new(file, read_only).map_err(|source| BlockError::Open {
        file: config.file.clone(),
        source,
    })?;
    Ok(Box::new(raw))
}

/// The format is never taken from the content, which a guest may have written: an image that says
/// it is qcow2 can name any file of the host. But a user who forgot to say so should hear it.
fn refuse_ambiguous(path: &Path, file: &File) -> Result<(), BlockError> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == header::MAGIC => Err(BlockError::Ambiguous(path.to_owned())),
        _ => Ok(()),
    }
}

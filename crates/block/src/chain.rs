//! A qcow2 image and the images behind it.
//!
//! The name of a backing file is a word of the image's author, who may want another file of the host
//! to be read. So it must lead to a file in the image's own directory or below it, links resolved;
//! only the base of an overlay, which the user names, may lie anywhere.

use crate::header;
use crate::lock::{lock, open_locked};
use crate::{BlockError, Format, tables};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, FormatCreateBuilder};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

/// The most images behind one another.
const LONGEST: usize = 32;

fn bad(file: &Path, reason: impl ToString) -> BlockError {
    BlockError::Image {
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}

/// Opens a qcow2 image and what is behind it.
pub(crate) fn open(path: &Path, write: bool) -> Result<FormatAccess<ImageFile>, BlockError> {
    open_qcow2(path, write, LONGEST)
}

/// Opens, or makes, the qcow2 image at `path` with the changes to `base`.
pub(crate) fn open_overlay(
    path: &Path,
    base: &Path,
    format: Format,
) -> Result<FormatAccess<ImageFile>, BlockError> {
    let base = absolute(base)?;
    let backing = open_any(&base, format, LONGEST)?;
    if !path.try_exists().map_err(|error| bad(path, error))? {
        create(path, &base, format, backing.size())?;
    }
    let mut image = open_alone(path, true)?;
    let name = image.implicit_backing_file().map(PathBuf::from);
    let directory = absolute(path)?;
    let named = name.and_then(|name| directory.parent()?.join(name).canonicalize().ok());
    if named.as_deref() != Some(&*base) {
        let reason = format!("it is not an overlay of {}", base.display());
        return Err(bad(path, reason));
    }
    image.set_backing(Some(backing));
    Ok(FormatAccess::new(image))
}

fn absolute(path: &Path) -> Result<PathBuf, BlockError> {
    path.canonicalize().map_err(|source| BlockError::Open {
        file: path.to_owned(),
        source,
    })
}

/// Opens an image that is only read.
fn open_any(
    path: &Path,
    format: Format,
    left: usize,
) -> Result<FormatAccess<ImageFile>, BlockError> {
    match format {
        Format::Qcow2 => open_qcow2(path, false, left),
        Format::Raw => {
            let file = open_locked(path, false)?;
            let raw = ImageFile::try_from(file).and_then(|file| Raw::open_image(file, false));
            raw.map(FormatAccess::new).map_err(|error| bad(path, error))
        }
    }
}

/// Opens a qcow2 image without what is behind it.
fn open_alone(path: &Path, write: bool) -> Result<Qcow2<ImageFile>, BlockError> {
    let file = open_locked(path, write)?;
    header::check(&file, write).map_err(|error| bad(path, error))?;
    let counted = tables::check(&file, write).map_err(|error| bad(path, error))?;
    if counted != 0 {
        tracing::warn!(
            file = %path.display(), clusters = counted,
            "the host lost power while the image was in use: counted clusters that were not"
        );
    }
    let image = ImageFile::try_from(file).and_then(|file| Qcow2::open_image(file, write));
    let mut image = image.map_err(|error| bad(path, error))?;
    image.set_data_file(None);
    image.set_backing(None);
    Ok(image)
}

fn open_qcow2(
    path: &Path,
    write: bool,
    left: usize,
) -> Result<FormatAccess<ImageFile>, BlockError> {
    let mut image = open_alone(path, write)?;
    if let Some(name) = image.implicit_backing_file().cloned() {
        let left = left
            .checked_sub(1)
            .ok_or_else(|| bad(path, "too many images lie behind it"))?;
        let backing = resolve(path, &name)?;
        let format = backing_format(path, image.implicit_backing_format(), &backing)?;
        image.set_backing(Some(open_any(&backing, format, left)?));
    }
    Ok(FormatAccess::new(image))
}

/// The format of a backing file. One that the image does not say is not guessed from the content.
fn backing_format(
    path: &Path,
    named: Option<&String>,
    backing: &Path,
) -> Result<Format, BlockError> {
    match named.map(String::as_str) {
        Some("raw") => Ok(Format::Raw),
        Some("qcow2") => Ok(Format::Qcow2),
        Some(other) => {
            let reason = format!("the format {other:?} of its backing file is not supported");
            Err(bad(path, reason))
        }
        None => {
            let format = Format::of_name(backing);
            if format == Format::Raw && begins_as_qcow2(backing) {
                return Err(bad(
                    path,
                    "it does not say the format of its backing file; qemu-img rebase -u -F can",
                ));
            }
            Ok(format)
        }
    }
}

fn begins_as_qcow2(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|file| file.read_exact_at(&mut magic, 0).is_ok())
        && magic == header::MAGIC
}

/// The backing file that an image names.
fn resolve(path: &Path, name: &str) -> Result<PathBuf, BlockError> {
    let outside = || {
        let reason = format!(
            "its backing file {name:?} is outside its directory; give it as the disk and the image \
             with overlay="
        );
        bad(path, reason)
    };
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(name).components().all(inside) {
        return Err(outside());
    }
    let path = absolute(path)?;
    let directory = path.parent().ok_or_else(outside)?;
    let backing = absolute(&directory.join(name))?;
    if !backing.starts_with(directory) {
        return Err(outside());
    }
    Ok(backing)
}

/// Makes an overlay. The file has its name only when it is complete.
fn create(path: &Path, base: &Path, format: Format, size: u64) -> Result<(), BlockError> {
    let failed = |source: io::Error| BlockError::Open {
        file: path.to_owned(),
        source,
    };
    let name = base
        .to_str()
        .ok_or_else(|| bad(path, "the name of its base is not Unicode"))?;
    let format = match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    lock(file.as_file(), path, true)?;
    let image = file.as_file().try_clone().and_then(ImageFile::try_from);
    Qcow2::<ImageFile>::create_builder(image.map_err(failed)?)
        .size(size.next_multiple_of(crate::SECTOR))
        .backing(name.to_owned(), format.to_owned())
        .create()
        .map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path)
        .map_err(|error| failed(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)
}

//! Why a disk could not be opened.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a disk could not be opened.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The host does not open the file.
    #[error("the disk image {file} cannot be opened", file = .file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Somebody else has the file open.
    #[error(
        "the disk image {file} is in use by another machine; a disk can be shared with readonly \
         or overlay= only, by all that use it",
        file = .0.display()
    )]
    InUse(PathBuf),
    /// A file that nobody said is qcow2 looks as if it were.
    #[error(
        "the disk image {file} looks like qcow2; say format=qcow2, or format=raw if a guest may have \
         written that into a raw disk",
        file = .0.display()
    )]
    Ambiguous(PathBuf),
    /// There is nothing in the image.
    #[error("the disk image {file} is empty", file = .0.display())]
    Empty(PathBuf),
    /// The image is damaged, made to do harm, or of a kind that is not supported.
    #[error("the disk image {file} cannot be used: {reason}", file = .file.display())]
    Image {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The host gives no temporary file.
    #[error("the host gave no temporary file for a disk's changes (TMPDIR, or else /var/tmp)")]
    Temporary(#[source] io::Error),
    /// io_uring was asked for, for something that is no raw image.
    #[error(
        "the disk {file} cannot be served by io_uring: it is no raw image, or has an overlay",
        file = .0.display()
    )]
    NotRaw(PathBuf),
    /// io_uring was asked for, and the host has none.
    #[error("the disk {file} cannot be served by io_uring", file = .file.display())]
    Ring {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: belljar_uring::Unavailable,
    },
    /// The host gives no thread.
    #[error("the host gave no thread for a disk")]
    Thread(#[source] io::Error),
}

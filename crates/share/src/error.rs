//! Why a directory cannot be shared.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The host does not open it.
    #[error("the directory {directory} cannot be shared", directory = .directory.display())]
    Open {
        /// The directory.
        directory: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Files are opened through `/proc/self/fd`, and it is not there.
    #[error("sharing a directory needs /proc")]
    Proc(#[source] io::Error),
    /// The host refuses what serving needs.
    #[error("the host gives no file descriptor")]
    Host(#[source] io::Error),
}

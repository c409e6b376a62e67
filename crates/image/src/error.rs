//! Why a guest could not be made.

use std::path::PathBuf;
use thiserror::Error;

/// Why a guest could not be made.
#[derive(Debug, Error)]
pub enum ImageError {
    /// apt cannot be run.
    #[error(
        "the default guest is made with apt, and {program} cannot be run on this host; give a \
         kernel and an initrd with --kernel and --initrd"
    )]
    NoApt {
        /// The program.
        program: &'static str,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The host's apt knows no mirror of Debian.
    #[error(
        "apt on this host has no source of Debian's packages in {directory}, from which the \
         default guest is made; give a kernel and an initrd with --kernel and --initrd"
    )]
    NoDebianSource {
        /// Where the sources were looked for.
        directory: PathBuf,
    },
    /// The name is not one of a suite.
    #[error("{0:?} cannot be the name of a Debian suite, such as bookworm or trixie")]
    BadSuite(String),
    /// The keyring of the host lacks the suite's keys.
    #[error(
        "the signature of the suite {suite} cannot be checked: this host has none of its keys \
         ({keys}); install the newest debian-archive-keyring package, choose another --suite, or \
         give --kernel and --initrd"
    )]
    UnknownKey {
        /// The suite.
        suite: String,
        /// Identifiers of the keys that signed it.
        keys: String,
    },
    /// apt failed.
    #[error(
        "{command} failed for the suite {suite}: {message}; without apt and network, give a kernel \
         and an initrd with --kernel and --initrd"
    )]
    Apt {
        /// The command, for example `apt-get update`.
        command: String,
        /// The suite.
        suite: String,
        /// What apt said.
        message: String,
    },
    /// The mirror lacks a file that its own index names.
    #[error(
        "the mirror does not have {file}, although the package index of the suite {suite} names it; \
         if that lasts, take the suite without later updates: belljar image build \
         debian:{suite} --no-updates"
    )]
    Gone {
        /// The suite.
        suite: String,
        /// The address of the first such file.
        file: String,
    },
    /// The suite lacks a package.
    #[error(
        "the suite {suite} has no package {package}; choose another --suite, or give --kernel and \
         --initrd"
    )]
    NoPackage {
        /// The suite.
        suite: String,
        /// The package.
        package: String,
    },
    /// A package is not as expected.
    #[error("the package {file} cannot be unpacked: {problem}")]
    BadPackage {
        /// The name of the package's file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Two packages, or a package and what is added to it, disagree about a path.
    #[error("{0} cannot be put into the tree: a part of its path is no directory")]
    BadPlace(String),
    /// A file needs another one that is not there.
    #[error("{file} needs {needed}, which no package has")]
    Incomplete {
        /// The file.
        file: String,
        /// What it needs: a library, an interpreter, or the target of a link.
        needed: String,
    },
    /// There is no directory for the cache.
    #[error("there is no place for guests: set XDG_CACHE_HOME or HOME")]
    NoCacheDirectory,
    /// There is no directory for the user's data.
    #[error("there is no place for machines' disks: set XDG_DATA_HOME or HOME")]
    NoDataDirectory,
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// A disk on which no file system can be made.
    #[error("a disk of {len} bytes cannot have a file system (64 MiB to 15 TiB)")]
    DiskTooSmall {
        /// The bytes for the file system.
        len: u64,
    },
    /// What is to be on the disk does not fit.
    #[error("the disk is too small for {0}; give a larger --size")]
    DiskFull(String),
    /// A name that is none of an image that could be built.
    #[error("{0:?} is no image that can be built; images have names such as debian:trixie")]
    UnknownImage(String),
    /// There is no image of that name.
    #[error("there is no image {0:?}; `belljar image list` shows what there is")]
    NoImage(String),
    /// The beginning of an identifier that several images have.
    #[error("{0:?} begins the identifiers of several images")]
    Ambiguous(String),
    /// A setting that cannot be carried out.
    #[error("the {setting} of an image cannot be {value:?}")]
    BadSetting {
        /// Which one.
        setting: &'static str,
        /// What was given.
        value: String,
    },
    /// The data about an image is damaged.
    #[error("the file {path} about an image is damaged; remove its directory and build it again")]
    BadMetadata {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The packages could not be configured.
    #[error(
        "the image's packages could not be configured: {problem}; the console's end:\n{console}"
    )]
    NotConfigured {
        /// What failed.
        problem: String,
        /// What the machine printed last.
        console: String,
    },
    /// The machine in which an image is configured failed.
    #[error("the machine in which the image is configured failed")]
    Machine {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A machine's disk was made from another image.
    #[error(
        "the machine {machine} has a disk that was made from {image}; give another --name, or \
         --fresh to begin with a new disk"
    )]
    OtherImage {
        /// The machine's name.
        machine: String,
        /// The image.
        image: String,
    },
    /// A name that a cpio archive cannot hold.
    #[error("{0:?} cannot be a name in a cpio archive")]
    BadName(String),
    /// A file that is too large for the cpio format.
    #[error("{name} has {len} bytes, and a cpio archive holds files of less than 4 GiB")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
}

impl ImageError {
    /// Makes an [`ImageError::Io`] of a cause.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

//! Why a machine could not be asked, or a directory not be used.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a machine could not be asked, or a directory not be used.
#[derive(Debug, Error)]
pub enum ApiError {
    /// There is no machine of this name.
    #[error("there is no machine {0:?}; `belljar ps` lists those that run")]
    NoMachine(String),
    /// The machine has ended; only what it left is there.
    #[error("the machine {0:?} does not run any more")]
    NotRunning(String),
    /// A machine of this name runs already.
    #[error("a machine named {0:?} runs already; choose another --name or stop it")]
    NameTaken(String),
    /// A text that cannot be a machine's name.
    #[error(
        "{0:?} is no name for a machine (letters, digits, '_', '.' and '-', at most 64, the first a letter or digit)"
    )]
    BadName(String),
    /// The runtime directory, or one in it, is not what it must be.
    #[error("the directory {} cannot be trusted: {why}", path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The host refused something.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With this.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection to the machine failed")]
    Connection(#[source] io::Error),
    /// The other side did not say anything in time.
    #[error("no answer within {0} seconds")]
    Timeout(u64),
    /// The other side closed the connection instead of saying something.
    #[error("the connection was closed without an answer")]
    Closed,
    /// A line that is longer than any may be.
    #[error("a message of more than {0} bytes")]
    TooLong(usize),
    /// A line that is no message of this protocol.
    #[error("not a message of this protocol")]
    Syntax(#[source] serde_json::Error),
    /// The machine did not do what it was asked for.
    #[error("{0}")]
    Refused(String),
    /// An answer to something else.
    #[error("the machine answered something else than it was asked")]
    WrongAnswer,
}

impl ApiError {
    /// For `map_err`: the host refused to do `what` with `path`.
    pub(crate) fn file(what: &'static str, path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            what,
            path: path.clone(),
            source,
        }
    }
}

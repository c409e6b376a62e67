//! Host directories that a guest shares.
//!
//! Floor 3 of the house; it knows neither cards nor machines. [`ShareConfig`] is what a user says of
//! a share. A [`FileServer`] answers the messages of a guest's file system, one message in and one
//! answer out; they are those of FUSE, version 7.31, as the virtio file system device carries them
//! (Virtio 1.2, 5.11; the messages are described by Linux' `include/uapi/linux/fuse.h`).
//!
//! # What a guest can reach
//!
//! The directory and what lies below it, and nothing else:
//!
//! - A name is one component: not empty, not `.` or `..`, without a slash. It is looked up in a
//!   directory that the server holds open, with `O_PATH` and `O_NOFOLLOW`. So no path is ever
//!   resolved by the host, and a symbolic link is a text that the guest reads and resolves itself.
//! - What was looked up is only then opened, through its descriptor, and only if it is a regular
//!   file or a directory. Its type cannot change any more, whoever renames what meanwhile. Pipes,
//!   sockets and devices are seen and never opened.
//! - Nodes, handles and descriptors are bounded, and so is the length of every message and answer.
//!
//! The server holds descriptors of few files only. Others it finds again by their names, and checks
//! that they are what the guest had looked up (`nodes`).

#![forbid(unsafe_code)]

mod bounds;
mod config;
mod error;
mod handles;
mod host;
mod nodes;
mod reply;
mod request;
mod server;
mod state;
mod wire;

pub use config::{BadShare, LONGEST_TAG, ShareConfig};
pub use error::ShareError;
pub use server::{FileServer, MOST_DATA, MOST_REQUEST};
pub use state::ShareState;

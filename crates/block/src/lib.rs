//! The disks of a machine.
//!
//! Floor 3 of the house; it knows guest memory and nothing of the cards (virtio, NVMe) that a guest
//! sees. A [`Storage`] is the content of a disk: a [`RawFile`], a [`Qcow2Image`], or a
//! [`TemporaryOverlay`] over another. A [`Disk`] is what a card holds:
//! it takes [`Request`]s, never makes its caller wait for the host's disk, has io_uring or a few threads
//! serve them, keeps the limits, and logs every error. [`DiskConfig`] is what a user says of a disk, and [`open`] makes
//! the disk of it.
//!
//! Durability: what a completed flush covers is on the host's disk. A flush covers every write that
//! was complete when it was submitted.

#![forbid(unsafe_code)]

mod chain;
mod config;
mod disk;
mod error;
mod header;
mod limit;
mod lock;
mod open;
mod overlay;
mod qcow2;
mod raw;
mod storage;
mod tables;

pub use config::{Aio, BadDisk, DiskConfig, Format, Interface, Overlay};
pub use disk::{Disk, Done, Request};
pub use error::BlockError;
pub use limit::Limits;
pub use open::open;
pub use overlay::TemporaryOverlay;
pub use qcow2::Qcow2Image;
pub use raw::RawFile;
pub use storage::{SECTOR, Storage};

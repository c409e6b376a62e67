//! Guests made by Belljar itself.
//!
//! Floor 5 of the house; it knows nothing of machines. [`default_guest`] makes the guest of
//! `belljar run` without arguments: the stock cloud kernel and the static busybox of a Debian
//! suite, fetched by the host's apt from the mirror that the host uses, with the signature checks
//! that the host makes, and never installed. [`cpio`] writes the initial RAM filesystem. Guests with
//! programs of Debian are made of [`packages`], unpacked into a [`Tree`].

#![forbid(unsafe_code)]

mod apt;
pub mod cache;
pub mod cpio;
mod deb;
mod elf;
mod error;
mod initramfs;
mod packages;
mod progress;
mod sources;
mod store;
mod tree;

pub use error::ImageError;
pub use packages::packages;
pub use store::{Guest, Store};
pub use tree::Tree;

/// The default guest of `suite`, or of the suite that the host's apt is configured for, made in the
/// user's cache if it is not there. Shows its progress on standard error.
///
/// # Errors
/// An [`ImageError`] if the host has no apt, no source of Debian's packages, or no network; if a
/// signature cannot be checked; or if the suite lacks a package.
pub fn default_guest(suite: Option<&str>) -> Result<Guest, ImageError> {
    Store::of_user()?.guest(suite)
}

//! Guests made by Belljar itself.
//!
//! Floor 5 of the house; it knows nothing of machines. [`default_guest`] makes the guest of
//! `belljar run` without arguments: the stock cloud kernel and the static busybox of a Debian
//! suite, fetched by the host's apt from the mirror that the host uses, with the signature checks
//! that the host makes, and never installed. [`cpio`] writes the initial RAM filesystem. Guests with
//! programs of Debian are made of [`packages`], unpacked into a [`Tree`].
//!
//! [`Images`] are whole systems on disks. [`Images::build`] fetches the packages of a [`Recipe`],
//! unpacks them into an [`ext4`] file system of its own writing with dpkg's database beside them, and
//! has them configured in a machine, which a [`Runner`] from above runs. [`MachineDisks`] are the
//! copies on which machines live.

#![forbid(unsafe_code)]

mod agent;
mod apt;
mod build;
mod bundle;
pub mod cache;
mod configure;
pub mod cpio;
mod deb;
mod disks;
mod dpkg;
mod elf;
mod error;
pub mod ext4;
mod first_boot;
pub mod gpt;
mod images;
mod initramfs;
pub mod names;
mod packages;
mod progress;
mod runner;
mod sources;
mod sparse;
mod store;
mod tree;

pub use disks::{MachineDisk, MachineDisks};
pub use error::ImageError;
pub use first_boot::FirstBoot;
pub use images::{Image, Images, Metadata, Package, Recipe};
pub use packages::packages;
pub use runner::{Job, Runner};
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

//! The disks of machines that run images: a machine's own copy, which lasts.
//!
//! A machine's directory has all that boots it, so that the image may be built anew or removed. It
//! lies with the user's data, not in the cache.

use crate::cache;
use crate::images::{Image, parse, write_json};
use crate::{ImageError, names, sparse};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

const DISK: &str = "disk.raw";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.cpio";
const METADATA: &str = "machine.json";

/// What a machine boots from its own disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    /// The disk, a raw file that the machine writes to.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM filesystem.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// Whether it was made just now.
    pub is_new: bool,
}

/// What is known of a machine's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    /// The name by which the user asked for the image.
    image: String,
    /// The image's identifier.
    id: String,
    /// The kernel's command line.
    cmdline: String,
}

/// The machines' disks of a user.
#[derive(Clone, Debug)]
pub struct MachineDisks {
    directory: PathBuf,
}

impl MachineDisks {
    /// Those in the user's data directory.
    ///
    /// # Errors
    /// [`ImageError::NoDataDirectory`] if the environment names none.
    pub fn of_user() -> Result<Self, ImageError> {
        cache::user_data_directory("machines").map(Self::at)
    }

    /// Those in `directory`, which need not exist.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The disk of `machine`, which runs the image that the user calls `image`; `None` if it has
    /// none yet.
    ///
    /// # Errors
    /// [`ImageError::OtherImage`] if it was made from another one; [`ImageError::BadMetadata`].
    pub fn find(&self, machine: &str, image: &str) -> Result<Option<MachineDisk>, ImageError> {
        let home = self.home(machine)?;
        let path = home.join(METADATA);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(ImageError::io("read", &path))?,
        };
        let metadata: Metadata = parse(&path, &bytes)?;
        if metadata.image != image {
            return Err(ImageError::OtherImage {
                machine: machine.to_owned(),
                image: metadata.image,
            });
        }
        Ok(Some(disk_in(&home, metadata.cmdline, false)))
    }

    /// Makes the disk of `machine` from `image`, which the user calls `name`.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the host refuses.
    pub fn make(
        &self,
        machine: &str,
        image: &Image,
        name: &str,
    ) -> Result<MachineDisk, ImageError> {
        let home = self.home(machine)?;
        fs::create_dir_all(&self.directory).map_err(ImageError::io("create", &self.directory))?;
        let _lock = cache::lock(
            &self.directory.join(format!("{machine}.lock")),
            "the disk of this machine",
        )?;
        let cmdline = image.metadata.cmdline.clone();
        cache::make_whole(&home, |contents, _| {
            for (from, to) in [
                (image.disk(), DISK),
                (image.kernel(), KERNEL),
                (image.initrd(), INITRD),
            ] {
                sparse::copy(&from, &contents.join(to))?;
            }
            write_json(
                &contents.join(METADATA),
                &Metadata {
                    image: name.to_owned(),
                    id: image.metadata.id.clone(),
                    cmdline: cmdline.clone(),
                },
            )
        })?;
        Ok(disk_in(&home, cmdline, true))
    }

    /// Removes the disk of `machine` and everything on it, if it has one.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the host refuses.
    pub fn remove(&self, machine: &str) -> Result<(), ImageError> {
        let home = self.home(machine)?;
        match fs::remove_dir_all(&home) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", home)(e))
            }
            _ => Ok(()),
        }
    }

    fn home(&self, machine: &str) -> Result<PathBuf, ImageError> {
        if names::is_name(machine) {
            Ok(self.directory.join(machine))
        } else {
            Err(ImageError::BadSetting {
                setting: "machine",
                value: machine.to_owned(),
            })
        }
    }
}

fn disk_in(home: &Path, cmdline: String, is_new: bool) -> MachineDisk {
    MachineDisk {
        disk: home.join(DISK),
        kernel: home.join(KERNEL),
        initrd: home.join(INITRD),
        cmdline,
        is_new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Images;
    use crate::images::tests::put;

    #[test]
    fn a_disk_is_made_once_and_then_kept() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::at(directory.path().join("images"));
        put(&images, "abcd1111", 1);
        let image = images.find("abcd1111").unwrap().unwrap();
        let disks = MachineDisks::at(directory.path().join("machines"));
        let name = "debian:trixie";
        assert_eq!(disks.find("web", name).unwrap(), None);
        let made = disks.make("web", &image, name).unwrap();
        assert!(made.is_new && made.cmdline == "rw");
        fs::write(&made.disk, b"changed").unwrap();
        images.remove("abcd1111").unwrap();
        let found = disks.find("web", name).unwrap().unwrap();
        assert!(!found.is_new);
        assert_eq!(fs::read(&found.disk).unwrap(), b"changed");
        assert_eq!(fs::read(&found.kernel).unwrap(), b"kernel");
        disks.remove("web").unwrap();
        disks.remove("web").unwrap();
        assert_eq!(disks.find("web", name).unwrap(), None);
    }

    #[test]
    fn a_machine_does_not_change_its_image_in_silence() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::at(directory.path().join("images"));
        put(&images, "abcd1111", 1);
        let image = images.find("abcd1111").unwrap().unwrap();
        let disks = MachineDisks::at(directory.path().join("machines"));
        disks.make("web", &image, "debian:trixie").unwrap();
        let result = disks.find("web", "debian:sid");
        assert!(matches!(result, Err(ImageError::OtherImage { .. })));
        assert!(disks.find("../web", "debian:sid").is_err());
    }
}

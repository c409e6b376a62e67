//! The machine's disks, and what is on them when it has ended.

use super::Kept;
use super::content;
use super::guest::HOME;
use super::loads::{Content, LONGEST, PLACES};
use crate::debian::copy_disk;
use anyhow::{Context, Result, ensure};
use belljar_image::Image;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A sector of a GPT.
const SECTOR: u64 = 512;
/// The first partition's entry, and the number of its first sector there (UEFI 2.10, 5.3.3).
const ENTRY: u64 = 2 * SECTOR + 32;

/// The files of the disks.
#[derive(Debug)]
pub struct Disks {
    /// The root, by virtio.
    pub root: PathBuf,
    /// One without a file system, by NVMe.
    pub raw: PathBuf,
}

impl Disks {
    /// Makes them in `directory`: a copy of the image's disk, and an empty one.
    pub fn new(image: &Image, directory: &Path) -> Result<Self> {
        let disks = Self {
            root: directory.join("root.raw"),
            raw: directory.join("raw.raw"),
        };
        copy_disk(image, &disks.root)?;
        File::create_new(&disks.raw)?.set_len(PLACES * LONGEST)?;
        Ok(disks)
    }

    /// Checks the root's file system, and that all that was kept is there.
    pub fn check(&self, kept: &Kept, directory: &Path) -> Result<()> {
        check_regions(&self.raw, &kept.regions).context("the NVMe disk")?;
        let root = file_system(&self.root)?;
        let output = Command::new("e2fsck")
            .args(["-f", "-n", &root])
            .output()
            .context("e2fsck cannot be run on this host")?;
        ensure!(
            output.status.success(),
            "e2fsck: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        let copy = directory.join("copy");
        for (place, content) in kept.files.iter().enumerate() {
            let Some(Content { seed, length }) = *content else {
                continue;
            };
            let request = format!("dump {HOME}/files/{place} {}", copy.display());
            let output = Command::new("debugfs")
                .args(["-R", &request, &root])
                .output();
            let output = output.context("debugfs cannot be run on this host")?;
            let read = || -> Result<()> {
                let mut file = File::open(&copy)?;
                content::check(&mut file, seed, length)?;
                content::check_end(&mut file)
            };
            read().with_context(|| {
                let said = String::from_utf8_lossy(&output.stderr);
                format!("file {place} of the root ({})", said.trim())
            })?;
            std::fs::remove_file(&copy)?;
        }
        Ok(())
    }
}

/// Checks regions of a disk.
fn check_regions(disk: &Path, regions: &[Option<Content>]) -> Result<()> {
    let mut file = File::open(disk)?;
    for (place, content) in regions.iter().enumerate() {
        if let Some(Content { seed, length }) = *content {
            file.seek(SeekFrom::Start(place as u64 * LONGEST))?;
            let mut region = file.by_ref().take(length);
            content::check(&mut region, seed, length).with_context(|| format!("region {place}"))?;
        }
    }
    Ok(())
}

/// The file system in a disk's first partition, as the tools of e2fsprogs name it.
fn file_system(disk: &Path) -> Result<String> {
    let mut sector = [0; 8];
    File::open(disk)?.read_exact_at(&mut sector, ENTRY)?;
    let offset = u64::from_le_bytes(sector) * SECTOR;
    Ok(format!("{}?offset={offset}", disk.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_region_that_differs_is_told() {
        let mut disk = tempfile::NamedTempFile::new().unwrap();
        let kept = |seed| {
            Some(Content {
                seed,
                length: 1 << 16,
            })
        };
        disk.as_file().set_len(4 * LONGEST).unwrap();
        for (place, seed) in [(0, 5), (2, 6)] {
            disk.seek(SeekFrom::Start(place * LONGEST)).unwrap();
            content::write(&mut disk, seed, 1 << 16).unwrap();
        }
        check_regions(disk.path(), &[kept(5), None, kept(6)]).unwrap();
        assert!(check_regions(disk.path(), &[kept(5), kept(6)]).is_err());
        disk.write_all(b"behind").unwrap();
        check_regions(disk.path(), &[kept(5), None, kept(6)]).unwrap();
        disk.seek(SeekFrom::Start(2 * LONGEST + 40)).unwrap();
        disk.write_all(b"within").unwrap();
        let error = check_regions(disk.path(), &[kept(5), None, kept(6)]).unwrap_err();
        assert_eq!(error.to_string(), "region 2");
    }

    #[test]
    fn the_partition_is_found() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file()
            .write_all_at(&2048_u64.to_le_bytes(), ENTRY)
            .unwrap();
        let name = file_system(disk.path()).unwrap();
        assert!(name.ends_with("?offset=1048576"), "{name}");
    }
}

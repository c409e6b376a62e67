//! What goes into an image, and the identifier that follows from it.

use crate::apt::Apt;
use crate::dpkg::Control;
use crate::images::Recipe;
use crate::progress::Progress;
use crate::sources::SystemSources;
use crate::{ImageError, bundle, configure, first_boot};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What an ordinary system has beside the essential packages: an init, a network, a kernel, and
/// what people expect at a prompt.
const PACKAGES: [&str; 14] = [
    "apt",
    "ca-certificates",
    "dbus",
    "debian-archive-keyring",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "less",
    "linux-image-cloud-amd64",
    "nano",
    "netbase",
    "procps",
    "systemd-sysv",
];
/// Packages that only some suites have; the others have them in others, or need none.
const WHERE_AVAILABLE: [&str; 3] = ["systemd-resolved", "udev", "usr-is-merged"];
/// What a user who may become root needs.
const SUDO: &str = "sudo";
/// The package whose busybox boots the image.
const BUSYBOX: &str = "busybox-static";
/// Characters of an identifier.
const ID: usize = 16;

/// What goes into an image.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The names of the packages that were asked for, and are not there for others' sake.
    pub(crate) wanted: BTreeSet<String>,
    /// The files of all packages, in apt's order.
    pub(crate) debs: Vec<PathBuf>,
    /// The file of the package with the static busybox.
    pub(crate) busybox: PathBuf,
    /// The system's own sources of packages.
    pub(crate) sources: SystemSources,
}

impl Plan {
    /// Chooses and fetches the packages.
    pub(crate) fn make(
        apt: &Apt<'_>,
        recipe: &Recipe,
        sources: SystemSources,
        progress: &Progress,
    ) -> Result<Self, ImageError> {
        let wanted = choose(apt, recipe)?;
        let names: Vec<String> = wanted.iter().cloned().collect();
        let files = apt.files_of(&names)?;
        progress.step(&format!("fetching {} packages", files.len()));
        let directory = apt.download_all(&names)?;
        let busybox = apt.files_of(&[BUSYBOX.to_owned()])?;
        apt.download_all(&[BUSYBOX])?;
        let path = |file: &String| directory.join(file);
        let busybox = busybox
            .iter()
            .find(|file| file.starts_with(BUSYBOX))
            .map(path);
        Ok(Self {
            wanted,
            debs: files.iter().map(path).collect(),
            busybox: busybox.unwrap_or_else(|| directory.join(BUSYBOX)),
            sources,
        })
    }

    /// The identifier of the image of `recipe`: a digest of everything that it is made of.
    pub(crate) fn id(&self, format: u32, recipe: &Recipe) -> Result<String, ImageError> {
        let mut digest = Sha256::new();
        let mut add = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        add(&format.to_le_bytes());
        let recipe = serde_json::to_vec(recipe).map_err(|source| ImageError::BadMetadata {
            path: PathBuf::from("recipe"),
            source,
        })?;
        add(&recipe);
        add(self.sources.text.as_bytes());
        for text in [
            configure::script(""),
            bundle::init().to_owned(),
            first_boot::READER.to_owned(),
            first_boot::UNITS.iter().map(|(_, text)| *text).collect(),
        ] {
            add(text.as_bytes());
        }
        // The order is apt's choice and means nothing.
        let mut files: Vec<&PathBuf> = self.debs.iter().chain([&self.busybox]).collect();
        files.sort();
        for file in files {
            add(&hash_file(file)?);
        }
        Ok(hexadecimal(&digest.finalize())[..ID].to_owned())
    }
}

/// The names of the packages to ask for.
fn choose(apt: &Apt<'_>, recipe: &Recipe) -> Result<BTreeSet<String>, ImageError> {
    let mut wanted: BTreeSet<String> = PACKAGES.map(str::to_owned).into();
    wanted.extend(recipe.packages.iter().cloned());
    if recipe.first_boot.user.is_some() {
        wanted.insert(SUDO.to_owned());
    }
    apt.each_available(|stanza| {
        let Some(control) = Control::parse(stanza) else {
            return;
        };
        let name = control.package();
        let is_required = control.is_essential() || control.field("priority") == Some("required");
        // Compilers' empty base packages of old suites are "required", and nobody needs them.
        let is_base = name.starts_with("gcc-");
        if (is_required && !is_base) || WHERE_AVAILABLE.contains(&name) {
            wanted.insert(name.to_owned());
        }
    })?;
    Ok(wanted)
}

fn hash_file(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut digest = Sha256::new();
    File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut digest))
        .map_err(ImageError::io("read", path))?;
    Ok(digest.finalize().to_vec())
}

/// The first 16 bytes of the digest of a text.
pub(crate) fn digest16(text: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(text.as_bytes())[..16]);
    bytes
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn plan(directory: &Path, files: &[(&str, &str)]) -> Plan {
        let debs = files.iter().map(|(name, text)| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            path
        });
        let debs = debs.collect();
        let busybox = directory.join("busybox.deb");
        fs::write(&busybox, "busybox").unwrap();
        Plan {
            wanted: BTreeSet::new(),
            debs,
            busybox,
            sources: SystemSources::default(),
        }
    }

    #[test]
    fn the_identifier_follows_from_the_contents_and_not_from_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = crate::images::tests::metadata("x", 1).recipe;
        let id = |files: &[(&str, &str)], recipe: &Recipe| {
            plan(directory.path(), files).id(1, recipe).unwrap()
        };
        let first = id(&[("a.deb", "1"), ("b.deb", "2")], &recipe);
        assert_eq!(first.len(), ID);
        assert_eq!(id(&[("b.deb", "2"), ("a.deb", "1")], &recipe), first);
        assert_ne!(id(&[("a.deb", "1"), ("b.deb", "3")], &recipe), first);
        let mut larger = recipe.clone();
        larger.size += 1 << 30;
        assert_ne!(id(&[("a.deb", "1"), ("b.deb", "2")], &larger), first);
        let mut named = recipe.clone();
        named.first_boot.hostname = Some("x".to_owned());
        assert_ne!(id(&[("a.deb", "1"), ("b.deb", "2")], &named), first);
    }
}

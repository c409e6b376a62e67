//! The user's images: each a directory that appears whole and is never changed, and a file of names.

use crate::cache::{self, write_through};
use crate::{FirstBoot, ImageError, names, sources};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The disk.
const DISK: &str = "disk.raw";
/// The kernel.
const KERNEL: &str = "vmlinuz";
/// The initial RAM filesystem.
const INITRD: &str = "initrd.cpio";
/// What is known of the image.
const METADATA: &str = "image.json";
/// Which image a name means.
const NAMES: &str = "names.json";
/// The salt of passwords.
const SALT: &str = "salt";
/// The characters that a salt has, and of which. crypt(5).
const SALT_LEN: usize = 16;
const SALT_LETTERS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The shortest beginning of an identifier that stands for it.
const SHORTEST_BEGINNING: usize = 4;

/// What an image is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The suite of Debian.
    pub suite: String,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether later updates are taken, too, where the host takes them for its own suite.
    pub updates: bool,
    /// Packages beside those that every image has.
    pub packages: Vec<String>,
    /// What happens at the first boot.
    pub first_boot: FirstBoot,
}

/// A package of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The version of this structure.
    pub format: u32,
    /// The image's identifier, which follows from everything that it was made of.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// What it was to be. Passwords are hashes.
    pub recipe: Recipe,
    /// The UUID of the partition that has the root.
    pub root_partition: String,
    /// The UUID of the root's file system.
    pub root: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Its packages, by name.
    pub packages: Vec<Package>,
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its names, sorted.
    pub names: Vec<String>,
    /// What is known of it.
    pub metadata: Metadata,
    directory: PathBuf,
}

impl Image {
    /// The disk, a raw file. It is not to be written to.
    pub fn disk(&self) -> PathBuf {
        self.directory.join(DISK)
    }

    /// The kernel that boots the disk.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    /// The initial RAM filesystem for it.
    pub fn initrd(&self) -> PathBuf {
        self.directory.join(INITRD)
    }

    /// Bytes that the disk takes on the host.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn used(&self) -> Result<u64, ImageError> {
        use std::os::unix::fs::MetadataExt;
        let disk = self.disk();
        let metadata = fs::metadata(&disk).map_err(ImageError::io("look at", disk))?;
        Ok(metadata.blocks() * 512)
    }
}

/// Files of an image in the directory in which it is made.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) disk: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) metadata: PathBuf,
}

impl Files {
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self {
            disk: directory.join(DISK),
            kernel: directory.join(KERNEL),
            initrd: directory.join(INITRD),
            metadata: directory.join(METADATA),
        }
    }
}

/// A directory of images.
#[derive(Clone, Debug)]
pub struct Images {
    pub(crate) directory: PathBuf,
    pub(crate) apt_directory: PathBuf,
}

impl Images {
    /// The images in the user's cache directory.
    ///
    /// # Errors
    /// [`ImageError::NoCacheDirectory`] if the environment names none.
    pub fn of_user() -> Result<Self, ImageError> {
        cache::user_directory("images").map(Self::at)
    }

    /// The images in `directory`, which need not exist.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            apt_directory: PathBuf::from(sources::APT_DIRECTORY),
        }
    }

    /// The salt for hashes of passwords: chosen at random once and kept, so that the same settings
    /// give the same image.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn salt(&self) -> Result<String, ImageError> {
        let path = self.directory.join(SALT);
        fs::create_dir_all(&self.directory).map_err(ImageError::io("create", &self.directory))?;
        let _lock = self.lock_names()?;
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            salt => return salt.map_err(ImageError::io("read", path)),
        }
        let mut random = [0; SALT_LEN];
        fs::File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut random))
            .map_err(ImageError::io("read", "/dev/urandom"))?;
        let letters = random.map(|byte| SALT_LETTERS[usize::from(byte) % SALT_LETTERS.len()]);
        let salt: String = letters.iter().copied().map(char::from).collect();
        let partial = path.with_added_extension("partial");
        write_through(&partial, salt.as_bytes())?;
        fs::rename(&partial, &path).map_err(ImageError::io("rename", partial))?;
        Ok(salt)
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// [`ImageError::Io`]; [`ImageError::BadMetadata`].
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images = Vec::new();
        let names = self.names()?;
        let entries = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(images),
            entries => entries.map_err(ImageError::io("list", &self.directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(ImageError::io("list", &self.directory))?;
            let directory = entry.path();
            // What is being made has an extension; apt's state has none of our file.
            if directory.extension().is_none() && directory.join(METADATA).is_file() {
                images.push(load(directory, &names)?);
            }
        }
        images.sort_by(|a, b| {
            let (a, b) = (&a.metadata, &b.metadata);
            b.made.cmp(&a.made).then_with(|| a.id.cmp(&b.id))
        });
        Ok(images)
    }

    /// The image of a name, or of the beginning of an identifier; `None` if there is none.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`]; as for [`list`](Self::list).
    pub fn find(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let images = self.list()?;
        let named = |image: &&Image| image.names.iter().any(|n| n == name);
        if let Some(image) = images.iter().find(named) {
            return Ok(Some(image.clone()));
        }
        if name.len() < SHORTEST_BEGINNING {
            return Ok(None);
        }
        let mut found = images
            .into_iter()
            .filter(|i| i.metadata.id.starts_with(name));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(ImageError::Ambiguous(name.to_owned())),
            (image, _) => Ok(image),
        }
    }

    /// Removes an image and its names.
    ///
    /// # Errors
    /// [`ImageError::NoImage`]; as for [`find`](Self::find).
    pub fn remove(&self, name: &str) -> Result<Image, ImageError> {
        let image = self.find(name)?;
        let image = image.ok_or_else(|| ImageError::NoImage(name.to_owned()))?;
        let _lock = self.lock_names()?;
        let mut names = self.names()?;
        names.retain(|_, id| *id != image.metadata.id);
        self.write_names(&names)?;
        // Nobody finds it from here on, also if the removal is cut short.
        let gone = image.directory.with_added_extension("removed");
        fs::rename(&image.directory, &gone)
            .and_then(|()| fs::remove_dir_all(&gone))
            .map_err(ImageError::io("remove", &image.directory))?;
        Ok(image)
    }

    /// Makes `name` mean the image `id`.
    pub(crate) fn set_name(&self, name: &str, id: &str) -> Result<(), ImageError> {
        let _lock = self.lock_names()?;
        let mut names = self.names()?;
        names.insert(name.to_owned(), id.to_owned());
        self.write_names(&names)
    }

    /// The image `id`, if it is there.
    pub(crate) fn by_id(&self, id: &str) -> Result<Option<Image>, ImageError> {
        let directory = self.directory.join(id);
        if !directory.join(METADATA).is_file() {
            return Ok(None);
        }
        load(directory, &self.names()?).map(Some)
    }

    fn lock_names(&self) -> Result<fs::File, ImageError> {
        cache::lock(&self.directory.join("names.lock"), "a name")
    }

    fn names(&self) -> Result<BTreeMap<String, String>, ImageError> {
        let path = self.directory.join(NAMES);
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(ImageError::io("read", path)(e)),
            Ok(bytes) => parse(&path, &bytes),
        }
    }

    fn write_names(&self, names: &BTreeMap<String, String>) -> Result<(), ImageError> {
        write_json(&self.directory.join(NAMES), names)
    }
}

fn load(directory: PathBuf, names: &BTreeMap<String, String>) -> Result<Image, ImageError> {
    let path = directory.join(METADATA);
    let bytes = fs::read(&path).map_err(ImageError::io("read", &path))?;
    let metadata: Metadata = parse(&path, &bytes)?;
    let names = names.iter().filter(|(_, id)| **id == metadata.id);
    Ok(Image {
        names: names.map(|(name, _)| name.clone()).collect(),
        metadata,
        directory,
    })
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::BadMetadata {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that is there as a whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let partial = path.with_added_extension("partial");
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| ImageError::BadMetadata {
        path: path.to_owned(),
        source,
    })?;
    bytes.push(b'\n');
    write_through(&partial, &bytes)?;
    fs::rename(&partial, path).map_err(ImageError::io("rename", partial))
}

impl Recipe {
    /// Checks what is to be built.
    ///
    /// # Errors
    /// [`ImageError::UnknownImage`], [`ImageError::BadSetting`].
    pub fn validate(&self) -> Result<(), ImageError> {
        names::suite_of(&format!("debian:{}", self.suite))?;
        let is_package = |name: &str| {
            name.len() >= 2
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(|c| {
                    c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c)
                })
                // apt takes this as a wish to remove.
                && !name.ends_with('-')
        };
        if let Some(name) = self.packages.iter().find(|name| !is_package(name)) {
            return Err(ImageError::BadSetting {
                setting: "package",
                value: name.clone(),
            });
        }
        self.first_boot.validate()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn metadata(id: &str, made: u64) -> Metadata {
        Metadata {
            format: 1,
            id: id.to_owned(),
            made,
            recipe: Recipe {
                suite: "trixie".to_owned(),
                size: 4 << 30,
                updates: true,
                packages: vec!["less".to_owned()],
                first_boot: FirstBoot::default(),
            },
            root_partition: "p".to_owned(),
            root: "r".to_owned(),
            cmdline: "rw".to_owned(),
            packages: vec![],
        }
    }

    /// Puts an image there as building does.
    pub(crate) fn put(images: &Images, id: &str, made: u64) {
        let directory = images.directory.join(id);
        fs::create_dir_all(&directory).unwrap();
        let files = Files::in_directory(&directory);
        for (path, bytes) in [
            (&files.disk, &b"disk"[..]),
            (&files.kernel, b"kernel"),
            (&files.initrd, b"initrd"),
        ] {
            fs::write(path, bytes).unwrap();
        }
        write_json(&files.metadata, &metadata(id, made)).unwrap();
    }

    #[test]
    fn images_are_found_by_name_and_by_the_beginning_of_their_identifier() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::at(directory.path());
        assert_eq!(images.list().unwrap(), []);
        put(&images, "abcd1111", 1);
        put(&images, "abcd2222", 2);
        fs::create_dir(directory.path().join("cafe0000.partial")).unwrap();
        images.set_name("debian:trixie", "abcd1111").unwrap();
        let ids = |image: Option<Image>| image.map(|i| i.metadata.id);
        assert_eq!(images.list().unwrap().len(), 2);
        assert_eq!(images.list().unwrap()[0].metadata.id, "abcd2222");
        assert_eq!(
            ids(images.find("debian:trixie").unwrap()).unwrap(),
            "abcd1111"
        );
        assert_eq!(ids(images.find("abcd2").unwrap()).unwrap(), "abcd2222");
        assert_eq!(ids(images.find("abc").unwrap()), None);
        assert!(matches!(images.find("abcd"), Err(ImageError::Ambiguous(_))));
    }

    #[test]
    fn a_name_moves_to_the_newest_image_and_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::at(directory.path());
        put(&images, "abcd1111", 1);
        put(&images, "abcd2222", 2);
        images.set_name("debian:trixie", "abcd1111").unwrap();
        images.set_name("debian:trixie", "abcd2222").unwrap();
        let removed = images.remove("debian:trixie").unwrap();
        assert_eq!(removed.names, ["debian:trixie"]);
        assert!(images.find("debian:trixie").unwrap().is_none());
        assert_eq!(images.list().unwrap().len(), 1);
        assert!(matches!(
            images.remove("debian:trixie"),
            Err(ImageError::NoImage(_))
        ));
    }

    #[test]
    fn the_salt_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::at(directory.path().join("images"));
        let salt = images.salt().unwrap();
        assert_eq!(salt.len(), SALT_LEN);
        assert_eq!(images.salt().unwrap(), salt);
        let other = Images::at(directory.path().join("others"));
        assert_ne!(other.salt().unwrap(), salt);
    }

    #[test]
    fn damaged_metadata_is_told_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::at(directory.path());
        put(&images, "abcd1111", 1);
        fs::write(directory.path().join("abcd1111").join(METADATA), "{}").unwrap();
        let error = images.list().unwrap_err().to_string();
        assert!(error.contains(METADATA), "{error}");
    }

    #[test]
    fn packages_that_apt_would_take_for_something_else_are_refused() {
        let with = |name: &str| {
            let mut recipe = metadata("a", 1).recipe;
            recipe.packages = vec![name.to_owned()];
            recipe.validate()
        };
        for name in ["openssh-server", "g++", "libstdc++6", "0ad"] {
            with(name).unwrap();
        }
        for name in [
            "", "-y", "--force", "foo-", "a b", "foo/sid", "foo=1", "Foo", "*",
        ] {
            assert!(with(name).is_err(), "{name}");
        }
    }
}

//! The user's guests, kept so that the next run needs no network.
//!
//! A suite's guest is a directory that appears whole, by a rename, and is never changed except for
//! its initrd, which is made anew when this program makes it otherwise. Deleting the directory
//! makes the next run fetch the newest packages.

use crate::apt::Apt;
use crate::cache::{self, write_through};
use crate::progress::Progress;
use crate::{ImageError, bundle, deb, initramfs, sources};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

const KERNEL: &str = "vmlinuz";
const BUSYBOX: &str = "busybox";
/// A directory of modules of the kernel, whose names are in the order in which they are loaded.
const MODULES: &str = "modules";
/// The modules that were looked for, a line each; what of them is built in is no file.
const WANTED: &str = "wanted";
const INITRD: &str = "initrd.cpio";
/// Tells what the others were made of, for people.
const PACKAGES: &str = "packages";

/// A guest that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM filesystem.
    pub initrd: PathBuf,
    /// The kernel command line.
    pub cmdline: String,
    /// The Debian suite that it was made from.
    pub suite: String,
}

/// A directory of guests, one for each suite.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    apt_directory: PathBuf,
}

impl Store {
    /// The store in the user's cache directory.
    ///
    /// # Errors
    /// [`ImageError::NoCacheDirectory`] if the environment names none.
    pub fn of_user() -> Result<Self, ImageError> {
        cache::user_directory("guests").map(Self::at)
    }

    /// The store in `directory`, which need not exist.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            apt_directory: PathBuf::from(sources::APT_DIRECTORY),
        }
    }

    /// The guest of `suite`, or of the suite that the host's apt is configured for; fetched if it
    /// is not here.
    ///
    /// # Errors
    /// As for [`default_guest`](crate::default_guest).
    pub fn guest(&self, suite: Option<&str>) -> Result<Guest, ImageError> {
        let suite = sources::suite(&self.apt_directory, suite)?;
        fs::create_dir_all(&self.directory).map_err(ImageError::io("create", &self.directory))?;
        let _lock = cache::lock(
            &self.directory.join(format!("{suite}.lock")),
            &format!("the guest of {suite}"),
        )?;
        let home = self.directory.join(&suite);
        let made_for = || fs::read(home.join(WANTED)).unwrap_or_default();
        if home.exists() && made_for() != wanted().as_bytes() {
            // It was made by a version that did not keep what is needed now.
            fs::remove_dir_all(&home).map_err(ImageError::io("remove", &home))?;
        }
        cache::make_whole(&home, |contents, aside| self.fetch(&suite, contents, aside))?;
        let initrd = refresh_initrd(&home)?;
        Ok(Guest {
            kernel: home.join(KERNEL),
            initrd,
            cmdline: initramfs::CMDLINE.to_owned(),
            suite,
        })
    }

    /// Puts the parts of the guest of `suite` into `home`, with apt's state `aside`.
    fn fetch(&self, suite: &str, home: &Path, aside: &Path) -> Result<(), ImageError> {
        let sources = sources::select(&self.apt_directory, Some(suite))?;
        let progress = Progress::new();
        let apt = Apt::new(aside.join("apt"), &sources, &progress)?;
        progress.step(&format!("reading the package index of Debian {suite}"));
        apt.update()?;
        let kernel = kernel_package(&apt, suite)?;
        let mut versions = Vec::new();
        let mut fetch = |package: &str| {
            let version = apt.candidate(package)?.version;
            progress.step(&format!("fetching {package} {version}"));
            versions.push(format!("{package} {version}\n"));
            apt.download(package)
        };
        let kernel_file = fetch(&kernel)?;
        let busybox_file = fetch(BUSYBOX_PACKAGE)?;
        progress.step("unpacking the kernel and busybox");
        let is_busybox = |path: &str| path == "bin/busybox" || path == "usr/bin/busybox";
        let (kernel, modules) = kernel_files(&kernel_file)?;
        let busybox = deb::read_file(&busybox_file, is_busybox, "busybox")?;

        for (name, bytes) in [
            (KERNEL, kernel.as_slice()),
            (BUSYBOX, &busybox),
            (PACKAGES, versions.concat().as_bytes()),
            (WANTED, wanted().as_bytes()),
        ] {
            write_through(&home.join(name), bytes)?;
        }
        let directory = home.join(MODULES);
        fs::create_dir_all(&directory).map_err(ImageError::io("create", &directory))?;
        for (index, (name, bytes)) in modules.iter().enumerate() {
            write_through(&directory.join(format!("{index:02}-{name}.ko")), bytes)?;
        }
        Ok(())
    }
}

/// What [`WANTED`] holds.
fn wanted() -> String {
    initramfs::MODULES.join("\n") + "\n"
}

/// Files with their names.
type Files = Vec<(String, Vec<u8>)>;

/// The kernel of a package, and the modules that the guest needs.
fn kernel_files(package: &Path) -> Result<(Vec<u8>, Files), ImageError> {
    let (mut kernel, mut files) = (None, Vec::new());
    deb::visit(package, |path, entry| {
        if !entry.header().entry_type().is_file() {
            return Ok(ControlFlow::Continue(()));
        }
        if bundle::is_kernel(path) {
            kernel = Some(deb::read(path, entry)?);
        } else if bundle::is_wanted(path) {
            files.push((path.to_owned(), deb::read(path, entry)?));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let kernel = kernel.ok_or_else(|| ImageError::BadPackage {
        file: package.display().to_string(),
        problem: "it has no kernel".to_owned(),
    })?;
    Ok((kernel, bundle::modules(&files, &initramfs::MODULES)?))
}

/// The modules in `home`, in their order.
fn modules(home: &Path) -> Result<Files, ImageError> {
    let directory = home.join(MODULES);
    let mut modules = Vec::new();
    for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
        let entry = entry.map_err(ImageError::io("list", &directory))?;
        let bytes = fs::read(entry.path()).map_err(ImageError::io("read", entry.path()))?;
        modules.push((entry.file_name().to_string_lossy().into_owned(), bytes));
    }
    modules.sort();
    Ok(modules)
}

/// The package that holds the stock cloud kernel of `suite`: the versioned one that the metapackage
/// depends on, or from Debian 14 on the one that this depends on for the kernel itself.
fn kernel_package(apt: &Apt<'_>, suite: &str) -> Result<String, ImageError> {
    let dependency = |package: &str, prefix: &str| {
        let mut depends = apt.candidate(package)?.depends.into_iter();
        Ok(depends.find(|name| name.starts_with(prefix)))
    };
    let image =
        dependency(KERNEL_METAPACKAGE, "linux-image-")?.ok_or_else(|| ImageError::NoPackage {
            suite: suite.to_owned(),
            package: format!("that {KERNEL_METAPACKAGE} depends on"),
        })?;
    Ok(dependency(&image, "linux-binary-")?.unwrap_or(image))
}

/// Makes the initrd of the guest in `home` anew unless it is as this program makes it.
fn refresh_initrd(home: &Path) -> Result<PathBuf, ImageError> {
    let busybox_path = home.join(BUSYBOX);
    let busybox = fs::read(&busybox_path).map_err(ImageError::io("read", busybox_path))?;
    let bytes = initramfs::build(&busybox, &modules(home)?)?;
    let path = home.join(INITRD);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(path);
    }
    // Another guest may be starting from the old file.
    let new = home.join(format!("{INITRD}.new"));
    write_through(&new, &bytes)?;
    fs::rename(&new, &path).map_err(ImageError::io("rename", new))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with_guest(directory: &Path) -> Store {
        let home = directory.join("guests/trixie");
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join(KERNEL), b"kernel").unwrap();
        fs::write(home.join(BUSYBOX), b"busybox").unwrap();
        fs::create_dir_all(home.join(MODULES)).unwrap();
        fs::write(home.join(WANTED), wanted()).unwrap();
        Store {
            directory: directory.join("guests"),
            apt_directory: directory.join("apt"),
        }
    }

    #[test]
    fn a_guest_that_is_here_needs_neither_apt_nor_network() {
        let directory = tempfile::tempdir().unwrap();
        let guest = store_with_guest(directory.path())
            .guest(Some("trixie"))
            .unwrap();
        assert_eq!(fs::read(&guest.kernel).unwrap(), b"kernel");
        let initrd = fs::read(&guest.initrd).unwrap();
        assert_eq!(initrd, initramfs::build(b"busybox", &[]).unwrap());
        assert_eq!(guest.cmdline, "console=ttyS0");
    }

    #[test]
    fn an_initrd_is_written_again_only_if_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let store = store_with_guest(directory.path());
        let path = store.guest(Some("trixie")).unwrap().initrd;
        let written = || fs::metadata(&path).unwrap().modified().unwrap();
        let first = written();
        store.guest(Some("trixie")).unwrap();
        assert_eq!(written(), first);
        fs::write(&path, b"of an older version").unwrap();
        store.guest(Some("trixie")).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(b"070701"));
    }

    #[test]
    fn names_that_are_no_suites_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        for suite in [
            "",
            "..",
            "../x",
            "a b",
            "a\nTrusted: yes",
            "-o",
            "/etc",
            "sid.lock",
        ] {
            let result = store.guest(Some(suite));
            assert!(matches!(result, Err(ImageError::BadSuite(_))), "{suite:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_host_without_sources_of_debian_is_told_the_options() {
        let directory = tempfile::tempdir().unwrap();
        let store = store_with_guest(directory.path());
        for suite in [None, Some("bookworm")] {
            let text = store.guest(suite).unwrap_err().to_string();
            assert!(text.contains("--kernel and --initrd"), "{text}");
        }
        assert!(!directory.path().join("guests/bookworm").exists());
        assert!(!directory.path().join("guests/bookworm.partial").exists());
    }
}

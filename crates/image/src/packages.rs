//! Packages of Debian with all that they depend on, kept for the next run.

use crate::apt::Apt;
use crate::progress::Progress;
use crate::{ImageError, cache, sources};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The files of the packages `names` of `suite`, or of the suite that the host's apt is configured
/// for, and of all packages that they depend on. They are kept below `directory`, fetched if they are
/// not there, and never installed; deleting the directory makes the next call fetch the newest.
///
/// # Errors
/// As for [`default_guest`](crate::default_guest).
pub fn packages(
    directory: &Path,
    suite: Option<&str>,
    names: &[&str],
) -> Result<Vec<PathBuf>, ImageError> {
    with_sources(Path::new(sources::APT_DIRECTORY), directory, suite, names)
}

/// [`packages`] with the apt configuration in `apt_directory`.
fn with_sources(
    apt_directory: &Path,
    directory: &Path,
    suite: Option<&str>,
    names: &[&str],
) -> Result<Vec<PathBuf>, ImageError> {
    let suite = sources::suite(apt_directory, suite)?;
    fs::create_dir_all(directory).map_err(ImageError::io("create", directory))?;
    let mut names = names.to_vec();
    names.sort_unstable();
    let mut hasher = DefaultHasher::new();
    names.hash(&mut hasher);
    let name = format!("{suite}-{:016x}", hasher.finish());
    let _lock = cache::lock(&directory.join(format!("{name}.lock")), "these packages")?;
    let home = directory.join(name);
    cache::make_whole(&home, |contents, aside| {
        let sources = sources::select(apt_directory, Some(&suite))?;
        let progress = Progress::new();
        let apt = Apt::new(aside.join("apt"), &sources, &progress)?;
        progress.step(&format!("reading the package index of Debian {suite}"));
        apt.update()?;
        progress.step(&format!("fetching {}", names.join(", ")));
        for file in packages_in(&apt.download_all(&names)?)? {
            let name = file.file_name().unwrap_or_default();
            fs::rename(&file, contents.join(name)).map_err(ImageError::io("rename", &file))?;
        }
        Ok::<_, ImageError>(())
    })?;
    packages_in(&home)
}

/// The packages in `directory`, sorted.
fn packages_in(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(ImageError::io("list", directory))? {
        let path = entry.map_err(ImageError::io("list", directory))?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_here_need_neither_apt_nor_network() {
        let directory = tempfile::tempdir().unwrap();
        let get = |names: &[&str]| {
            let nowhere = directory.path().join("apt");
            with_sources(&nowhere, directory.path(), Some("trixie"), names)
        };
        assert!(matches!(
            get(&["a", "b"]),
            Err(ImageError::NoDebianSource { .. })
        ));
        let lock = fs::read_dir(directory.path()).unwrap().next().unwrap();
        let home = lock.unwrap().path().with_extension("");
        fs::create_dir(&home).unwrap();
        for name in ["b_1_all.deb", "a_1_amd64.deb", "lock"] {
            fs::write(home.join(name), b"").unwrap();
        }
        let expected = ["a_1_amd64.deb", "b_1_all.deb"].map(|name| home.join(name));
        assert_eq!(get(&["b", "a"]).unwrap(), expected);
    }
}

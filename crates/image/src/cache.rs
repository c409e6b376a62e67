//! The user's cache: where it is, and how a directory appears in it whole.

use crate::ImageError;
use crate::progress::Progress;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The directory `name` of Belljar's in the user's cache; it need not exist. XDG Base Directory
/// Specification 0.8.
///
/// # Errors
/// [`ImageError::NoCacheDirectory`] if the environment names none.
pub fn user_directory(name: &str) -> Result<PathBuf, ImageError> {
    base("XDG_CACHE_HOME", ".cache")
        .map(|cache| cache.join("belljar").join(name))
        .ok_or(ImageError::NoCacheDirectory)
}

/// The directory `name` of Belljar's among the user's data, which is not made anew if it goes; it
/// need not exist. XDG Base Directory Specification 0.8.
///
/// # Errors
/// [`ImageError::NoDataDirectory`] if the environment names none.
pub fn user_data_directory(name: &str) -> Result<PathBuf, ImageError> {
    base("XDG_DATA_HOME", ".local/share")
        .map(|data| data.join("belljar").join(name))
        .ok_or(ImageError::NoDataDirectory)
}

/// The directory that `variable` names, or `default` at the user's home.
fn base(variable: &str, default: &str) -> Option<PathBuf> {
    let absolute = |variable| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(default)))
}

/// Waits until no other process holds the lock `path`, and tells that another one makes `what`
/// meanwhile. The lock ends with the file.
///
/// # Errors
/// [`ImageError::Io`] if the file cannot be made or locked.
pub fn lock(path: &Path, what: &str) -> Result<File, ImageError> {
    let file = File::create(path).map_err(ImageError::io("create", path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(e)) => return Err(ImageError::io("lock", path)(e)),
    }
    let progress = Progress::new();
    progress.step(&format!("another process makes {what}; waiting"));
    file.lock().map_err(ImageError::io("lock", path))?;
    Ok(file)
}

/// Makes the directory `home`, unless it is there, so that it appears whole, by a rename. `make` is
/// given a new directory to fill, and one beside it for what is of no use afterwards.
///
/// # Errors
/// What `make` returns; [`ImageError::Io`] if the host refuses.
pub fn make_whole<E: From<ImageError>>(
    home: &Path,
    make: impl FnOnce(&Path, &Path) -> Result<(), E>,
) -> Result<(), E> {
    if home.is_dir() {
        return Ok(());
    }
    let partial = home.with_added_extension("partial");
    remove_if_there(&partial)?;
    let (contents, aside) = (partial.join("contents"), partial.join("aside"));
    for directory in [&contents, &aside] {
        fs::create_dir_all(directory).map_err(ImageError::io("create", directory))?;
    }
    let result = make(&contents, &aside).and_then(|()| {
        fs::rename(&contents, home).map_err(|e| ImageError::io("rename", &contents)(e).into())
    });
    // What is left is of no use, also after a failure, whose cause counts more than this one's.
    let removed = remove_if_there(&partial).map_err(E::from);
    result.and(removed)
}

/// Writes a file and has the host put it on its disk, so that a rename never shows half of it.
///
/// # Errors
/// [`ImageError::Io`] if the host refuses.
pub fn write_through(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    File::create(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(ImageError::io("write", path))
}

fn remove_if_there(directory: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::io("remove", directory)(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("1.2-x");
        let refused = make_whole(&home, |contents, aside| {
            fs::write(contents.join("half"), b"").unwrap();
            fs::write(aside.join("rest"), b"").unwrap();
            Err(ImageError::NoCacheDirectory)
        });
        assert!(refused.is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

        let make = |contents: &Path, _: &Path| {
            assert!(!home.exists());
            fs::write(contents.join("file"), b"1").unwrap();
            Ok::<_, ImageError>(())
        };
        make_whole(&home, make).unwrap();
        assert_eq!(fs::read(home.join("file")).unwrap(), b"1");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_there_is_not_made_again() {
        let directory = tempfile::tempdir().unwrap();
        make_whole(directory.path(), |_, _| -> Result<(), ImageError> {
            panic!("it is there")
        })
        .unwrap();
    }
}

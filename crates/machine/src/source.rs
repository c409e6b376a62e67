//! A file that is loaded at each reset.

use crate::MachineError;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

/// A file to load. It is held open: a reset boots the same file, whatever its name stands for then.
/// No copy of it is kept, because machines are many and their initial RAM filesystems large.
#[derive(Debug)]
pub(crate) struct Source {
    what: &'static str,
    path: PathBuf,
    limit: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(File),
    /// What came from a pipe, which can be read only once.
    Kept(Vec<u8>),
}

impl Source {
    /// Opens the file; of what does not fit in `limit` bytes no more is read than shows that.
    pub fn open(what: &'static str, path: &Path, limit: u64) -> Result<Self, MachineError> {
        let limit = limit.saturating_add(1);
        let content = || {
            let file = File::open(path)?;
            Ok(if file.metadata()?.is_file() {
                Content::File(file)
            } else {
                Content::Kept(read(&file, limit)?)
            })
        };
        let content = content().map_err(|source| failed(what, path, source))?;
        Ok(Self {
            what,
            path: path.to_owned(),
            limit,
            content,
        })
    }

    /// What it holds.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, MachineError> {
        match &self.content {
            Content::Kept(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::File(file) => (&*file)
                .rewind()
                .and_then(|()| read(file, self.limit))
                .map(Cow::Owned)
                .map_err(|source| failed(self.what, &self.path, source)),
        }
    }
}

/// The rest of `file`, `limit` bytes at most.
fn read(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> MachineError {
    MachineError::Read {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_after_its_name_was_given_to_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, b"old").unwrap();
        let source = Source::open("kernel", &path, 10).unwrap();
        let new = directory.path().join("new");
        std::fs::write(&new, b"newer").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(*source.bytes().unwrap(), *b"old");
        assert_eq!(*source.bytes().unwrap(), *b"old");
    }

    #[test]
    fn no_more_is_read_than_shows_that_it_does_not_fit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, [1; 100]).unwrap();
        let source = Source::open("kernel", &path, 10).unwrap();
        assert_eq!(source.bytes().unwrap().len(), 11);
        let source = Source::open("kernel", Path::new("/dev/zero"), 10).unwrap();
        assert_eq!(source.bytes().unwrap().len(), 11);
    }
}

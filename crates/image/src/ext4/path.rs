//! Paths in the tree: from the root, through links to directories.

use super::{Kind, LONGEST_NAME, ROOT, Writer};
use crate::ImageError;

/// The longest path, as in Linux.
const LONGEST_PATH: usize = 4096;
/// More links than any path goes through.
const MOST_LINKS: u32 = 16;

impl Writer<'_> {
    /// The directory that `path` lies in, which is made if it is not there, and its name in it.
    pub(super) fn place<'p>(&mut self, path: &'p str) -> Result<(usize, &'p str), ImageError> {
        let bad = || ImageError::BadPlace(path.to_owned());
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if path.len() > LONGEST_PATH {
            return Err(bad());
        }
        if matches!(name, "" | "." | "..") || name.len() > LONGEST_NAME || name.contains('\0') {
            return Err(bad());
        }
        if let Some(directory) = self.find_directory(parent) {
            return Ok((directory, name));
        }
        // No attributes are known: a package that has a directory says them before or after.
        let attributes = super::Attributes {
            permissions: 0o755,
            ..self.nodes[ROOT].attributes
        };
        self.directory(parent, attributes)?;
        let directory = self.find_directory(parent).ok_or_else(bad)?;
        Ok((directory, name))
    }

    /// The directory that `path` leads to.
    pub(super) fn find_directory(&self, path: &str) -> Option<usize> {
        let mut links = MOST_LINKS;
        self.walk(ROOT, path, &mut links)
    }

    /// The directory that `path` leads to from `from`.
    fn walk(&self, from: usize, path: &str, links: &mut u32) -> Option<usize> {
        let mut at = if path.starts_with('/') { ROOT } else { from };
        for part in path.split('/') {
            at = match (part, &self.nodes[at].kind) {
                ("" | ".", _) => at,
                ("..", Kind::Directory { parent, .. }) => *parent,
                (name, _) => {
                    let next = self.entry(at, name)?;
                    match &self.nodes[next].kind {
                        Kind::Directory { .. } => next,
                        Kind::Symlink(target) => {
                            *links = links.checked_sub(1)?;
                            self.walk(at, target, links)?
                        }
                        _ => return None,
                    }
                }
            };
        }
        Some(at)
    }
}

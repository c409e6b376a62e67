//! A tree of files made of Debian packages: a root for programs, without the rest of a system.
//!
//! The tree is "usr-merged" as Debian's installed systems are: `bin`, `lib` and their like are links
//! into `usr`, whatever the packages say.

use crate::cpio::Archive;
use crate::deb::{self, Entry};
use crate::{ImageError, elf};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The links at the root of a usr-merged tree.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Where the dynamic linker of Debian's amd64 looks for libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];
/// More links than any path of a package goes through.
const MOST_LINKS: u32 = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File { executable: bool, data: Vec<u8> },
    Symlink(String),
}

/// Files by their paths, which are relative to the root and have no `.` and `..`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Every node's parents are directories in it.
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// A tree with nothing but the links into `usr`.
    pub fn new() -> Self {
        let mut tree = Self::default();
        tree.nodes.insert("usr".to_owned(), Node::Directory);
        for name in MERGED {
            let target = format!("usr/{name}");
            tree.nodes.insert(target.clone(), Node::Directory);
            tree.nodes.insert(name.to_owned(), Node::Symlink(target));
        }
        tree
    }

    /// Unpacks those files and links of the packages whose paths, merged into `usr` and relative to
    /// the root, are `wanted`.
    ///
    /// # Errors
    /// [`ImageError::BadPackage`] if one is damaged; [`ImageError::BadPlace`] if they do not fit
    /// together.
    pub fn of_packages(
        packages: &[PathBuf],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, ImageError> {
        let mut tree = Self::new();
        for package in packages {
            deb::visit(package, |path, entry| {
                let path = merged(path);
                if wanted(&path) {
                    tree.unpack(&path, entry)?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(tree)
    }

    /// Adds what a package has at `path`. Directories are made for what is in them.
    fn unpack(&mut self, path: &str, entry: &mut Entry<'_>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let target = entry.link_name_bytes().unwrap_or_default();
        let target = String::from_utf8_lossy(&target).into_owned();
        let node = if kind.is_file() {
            Node::File {
                executable: entry.header().mode()? & 0o111 != 0,
                data: deb::read(path, entry)?,
            }
        } else if kind.is_symlink() {
            Node::Symlink(target)
        } else if kind.is_hard_link() {
            let target = merged(deb::relative(&target));
            let first = self.nodes.get(&target);
            let missing = || io::Error::other(incomplete(path, &target));
            first.cloned().ok_or_else(missing)?
        } else {
            return Ok(());
        };
        self.add(path, node).map_err(io::Error::other)
    }

    /// Adds a directory and those that it is in.
    ///
    /// # Errors
    /// [`ImageError::BadPlace`] if something else has its path or that of a parent.
    pub fn directory(&mut self, path: &str) -> Result<(), ImageError> {
        self.add(path, Node::Directory)
    }

    /// Adds a regular file and the directories that it is in; it replaces another one.
    ///
    /// # Errors
    /// [`ImageError::BadPlace`] if something else has its path or that of a parent.
    pub fn file(&mut self, path: &str, executable: bool, data: &[u8]) -> Result<(), ImageError> {
        let data = data.to_vec();
        self.add(path, Node::File { executable, data })
    }

    /// Whether there is a file or a link whose path is `wanted`.
    pub fn has(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let mut files = self.nodes.iter().filter(|(_, n)| **n != Node::Directory);
        files.any(|(path, _)| wanted(path))
    }

    /// Leaves what is `wanted` and what that needs to run: interpreters, shared libraries, and the
    /// targets of links.
    ///
    /// # Errors
    /// [`ImageError::Incomplete`] if the tree lacks something that is needed.
    pub fn keep(&mut self, wanted: impl Fn(&str) -> bool) -> Result<(), ImageError> {
        let mut kept = Self::new();
        let mut open: Vec<String> = self.nodes.keys().filter(|p| wanted(p)).cloned().collect();
        while let Some(path) = open.pop() {
            let Some(node) = self.nodes.get(&path) else {
                continue;
            };
            if kept.nodes.get(&path) != Some(node) {
                kept.add(&path, node.clone())?;
                open.extend(self.needs(&path, node)?);
            }
        }
        *self = kept;
        Ok(())
    }

    /// The tree as an initial RAM filesystem.
    ///
    /// # Errors
    /// [`ImageError::BadName`] or [`ImageError::TooLarge`] if the format cannot hold a file.
    pub fn archive(&self) -> Result<Archive, ImageError> {
        let mut archive = Archive::new();
        for (path, node) in &self.nodes {
            match node {
                Node::Directory => archive.directory(path, 0o755)?,
                Node::File { executable, data } => {
                    archive.file(path, permissions(*executable), data)?;
                }
                Node::Symlink(target) => archive.symlink(path, target)?,
            }
        }
        Ok(archive)
    }

    /// Writes the tree below the new directory `root`.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the host refuses.
    pub fn write_to(&self, root: &Path) -> Result<(), ImageError> {
        // No link is there before all else is: nothing can be written outside of `root`.
        let (links, others): (Vec<_>, Vec<_>) = self
            .nodes
            .iter()
            .partition(|(_, node)| matches!(node, Node::Symlink(_)));
        for (path, node) in others.into_iter().chain(links) {
            let place = root.join(path);
            write(&place, node).map_err(ImageError::io("write", place))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, node: Node) -> Result<(), ImageError> {
        let bad = || ImageError::BadPlace(path.to_owned());
        let is_proper = |part: &str| !matches!(part, "" | "." | "..");
        if !path.split('/').all(is_proper) {
            return Err(bad());
        }
        for (end, _) in path.match_indices('/') {
            let parent = self.nodes.entry(path[..end].to_owned());
            if *parent.or_insert(Node::Directory) != Node::Directory {
                return Err(bad());
            }
        }
        let is_directory = |node: &Node| *node == Node::Directory;
        let old = self.nodes.get(path);
        if old.is_some_and(|old| is_directory(old) != is_directory(&node)) {
            return Err(bad());
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    /// The paths of what the node at `path` needs.
    fn needs(&self, path: &str, node: &Node) -> Result<Vec<String>, ImageError> {
        let data = match node {
            Node::Directory => return Ok(Vec::new()),
            Node::Symlink(target) => return self.resolve(path, target),
            Node::File { data, .. } => data,
        };
        if let Some(interpreter) = script_interpreter(data) {
            return self.resolve(path, &interpreter);
        }
        let elf = elf::needs(data).unwrap_or_default();
        let mut needs = Vec::new();
        for name in &elf.libraries {
            let places = LIBRARIES.map(|directory| format!("{directory}/{name}"));
            let place = places.into_iter().find(|p| self.nodes.contains_key(p));
            needs.push(place.ok_or_else(|| incomplete(path, name))?);
        }
        if let Some(linker) = elf.interpreter {
            needs.extend(self.resolve(path, &linker)?);
        }
        Ok(needs)
    }

    /// What the file at `from` names with `target`, after the links to directories on the way.
    fn resolve(&self, from: &str, target: &str) -> Result<Vec<String>, ImageError> {
        let mut place = beside(from, target);
        let mut found = Vec::new();
        for _ in 0..MOST_LINKS {
            place = merged(&normal(&place));
            if self.nodes.contains_key(&place) {
                found.push(place);
                return Ok(found);
            }
            let link = place.match_indices('/').find_map(|(end, _)| {
                let Node::Symlink(to) = self.nodes.get(&place[..end])? else {
                    return None;
                };
                Some((end, to))
            });
            let Some((end, to)) = link else {
                break;
            };
            let beyond = format!("{}{}", beside(&place[..end], to), &place[end..]);
            place.truncate(end);
            found.push(std::mem::replace(&mut place, beyond));
        }
        Err(incomplete(from, target))
    }
}

/// The place that a link at `from`, or a script there, means by `target`.
fn beside(from: &str, target: &str) -> String {
    match from.rsplit_once('/') {
        Some((directory, _)) if !target.starts_with('/') => format!("{directory}/{target}"),
        _ => target.to_owned(),
    }
}

/// `path`, which is relative to the root, as it is in a usr-merged tree.
fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// `path` relative to the root, without `.` and `..`.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The program that the first line of a script names.
fn script_interpreter(file: &[u8]) -> Option<String> {
    let line = file.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    line.split_whitespace().next().map(str::to_owned)
}

fn incomplete(file: &str, needed: &str) -> ImageError {
    ImageError::Incomplete {
        file: file.to_owned(),
        needed: needed.to_owned(),
    }
}

fn permissions(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

fn write(place: &Path, node: &Node) -> io::Result<()> {
    match node {
        Node::Directory => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(place),
        Node::File { executable, data } => fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(permissions(*executable))
            .open(place)?
            .write_all(data),
        Node::Symlink(target) => symlink(target, place),
    }
}

#[cfg(test)]
mod tests;

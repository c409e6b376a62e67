//! Packages into a file system, and what dpkg remembers of them into its database.

use super::Control;
use crate::ImageError;
use crate::deb::{self, relative};
use crate::ext4::{Attributes, Special, Writer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

const DATABASE: &str = "var/lib/dpkg";
/// What a configuration file is called until its package is configured.
const NEW: &str = ".dpkg-new";

/// Files of packages that are needed beside the disk, by their paths.
pub(crate) type Found = Vec<(String, Vec<u8>)>;

/// Unpacks packages one after the other.
#[derive(Debug)]
pub(crate) struct Unpacker<'w, 'f> {
    disk: &'w mut Writer<'f>,
    /// Attributes of the database's files.
    attributes: Attributes,
    packages: Vec<Control>,
    /// The names of packages with a preinst script, as dpkg knows them.
    preinst: Vec<String>,
    status: String,
    /// The file of triggers that wait for changes of files.
    file_triggers: String,
    /// The other triggers, with those who wait for them.
    triggers: Vec<(String, String)>,
}

impl<'w, 'f> Unpacker<'w, 'f> {
    /// An unpacker onto `disk`, whose files of its own are changed at `made`.
    pub(crate) fn new(disk: &'w mut Writer<'f>, made: u32) -> Self {
        Self {
            disk,
            attributes: Attributes {
                permissions: 0o644,
                user: 0,
                group: 0,
                modified: made,
            },
            packages: Vec::new(),
            preinst: Vec::new(),
            status: String::new(),
            file_triggers: String::new(),
            triggers: Vec::new(),
        }
    }

    /// Unpacks the package `deb`, whose files are the tar `data`. Those that are `wanted` are also
    /// given to `found`.
    pub(crate) fn unpack(
        &mut self,
        deb: &Path,
        data: &[u8],
        wanted: impl Fn(&str) -> bool,
        found: &mut Found,
    ) -> Result<(), ImageError> {
        let files = deb::control_files(deb)?;
        let bad = |problem: &str| deb::bad(deb, problem.to_owned());
        let text = |wanted: &str| {
            let file = files.iter().find(|(name, _)| name == wanted);
            file.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
        };
        let control = text("control")
            .and_then(|text| Control::parse(&text))
            .ok_or_else(|| bad("it does not say what it is"))?;
        let conffiles = conffiles(&text("conffiles").unwrap_or_default());
        let mut list = String::new();
        let mut entries = tar::Archive::new(data);
        let damaged = |e: io::Error| deb::bad(deb, e.to_string());
        for entry in entries.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = relative(&path).trim_end_matches('/');
            // Writing to a string cannot fail.
            let _ = writeln!(list, "/{}", if path.is_empty() { "." } else { path });
            let is_conffile = conffiles.contains(&format!("/{path}"));
            let place = if is_conffile {
                format!("{path}{NEW}")
            } else {
                path.to_owned()
            };
            let header = Header::of(&entry).map_err(damaged)?;
            if wanted(path) && matches!(header.kind, Kind::File) {
                let bytes = deb::read(path, &mut entry).map_err(damaged)?;
                self.add(&place, &header, &mut bytes.as_slice())?;
                found.push((path.to_owned(), bytes));
            } else {
                self.add(&place, &header, &mut entry)?;
            }
        }
        self.remember(control, &files, &list, &conffiles)
    }

    fn add(
        &mut self,
        place: &str,
        header: &Header,
        contents: &mut dyn Read,
    ) -> Result<(), ImageError> {
        let attributes = header.attributes;
        match &header.kind {
            Kind::Directory => self.disk.directory(place, attributes),
            Kind::File => self.disk.file(place, attributes, header.len, contents),
            Kind::Symlink(target) => self.disk.symlink(place, target, attributes),
            Kind::HardLink(target) => self.disk.hard_link(place, target),
            Kind::Special(special) => self.disk.special(place, *special, attributes),
        }
    }

    /// Puts into the database what dpkg knows of an unpacked package.
    fn remember(
        &mut self,
        control: Control,
        files: &[(String, Vec<u8>)],
        list: &str,
        conffiles: &BTreeSet<String>,
    ) -> Result<(), ImageError> {
        let name = control.qualified();
        self.database_file(&format!("info/{name}.list"), 0o644, list.as_bytes())?;
        for (file, bytes) in files.iter().filter(|(file, _)| file != "control") {
            let is_script = matches!(
                file.as_str(),
                "preinst" | "postinst" | "prerm" | "postrm" | "config"
            );
            let permissions = if is_script { 0o755 } else { 0o644 };
            self.database_file(&format!("info/{name}.{file}"), permissions, bytes)?;
            match file.as_str() {
                "preinst" => self.preinst.push(name.clone()),
                "triggers" => self.interests(&name, &String::from_utf8_lossy(bytes)),
                _ => {}
            }
        }
        let conffiles = conffiles.iter().map(String::as_str);
        self.status.push_str(&control.unpacked_status(conffiles));
        self.packages.push(control);
        Ok(())
    }

    /// Remembers what a package's file of triggers is interested in. deb-triggers(5).
    fn interests(&mut self, package: &str, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else {
                continue;
            };
            let package = match directive {
                "interest" | "interest-await" => package.to_owned(),
                "interest-noawait" => format!("{package}/noawait"),
                _ => continue,
            };
            if trigger.starts_with('/') {
                let line = format!("{trigger} {package}\n");
                self.file_triggers.push_str(&line);
            } else if !trigger.contains('/') && !trigger.starts_with('.') {
                self.triggers.push((trigger.to_owned(), package));
            }
        }
    }

    fn database_file(
        &mut self,
        name: &str,
        permissions: u16,
        contents: &[u8],
    ) -> Result<(), ImageError> {
        let attributes = Attributes {
            permissions,
            ..self.attributes
        };
        let path = format!("{DATABASE}/{name}");
        self.disk.small_file(&path, attributes, contents)
    }

    /// Writes the rest of the database. Those of the packages that are not `wanted` by name count as
    /// installed for the others' sake. Returns the packages and those that have a preinst script.
    pub(crate) fn finish(
        mut self,
        wanted: &BTreeSet<String>,
    ) -> Result<(Vec<Control>, Vec<String>), ImageError> {
        let mut triggers: Vec<_> = std::mem::take(&mut self.triggers);
        triggers.sort();
        for group in triggers.chunk_by(|a, b| a.0 == b.0) {
            let lines: String = group.iter().flat_map(|(_, p)| [p.as_str(), "\n"]).collect();
            let name = format!("triggers/{}", group[0].0);
            self.database_file(&name, 0o644, lines.as_bytes())?;
        }
        let (status, file_triggers) = (
            std::mem::take(&mut self.status),
            std::mem::take(&mut self.file_triggers),
        );
        for (name, contents) in [
            ("status", status.as_str()),
            ("available", ""),
            ("diversions", ""),
            ("statoverride", ""),
            ("info/format", "1\n"),
            ("triggers/File", &file_triggers),
        ] {
            self.database_file(name, 0o644, contents.as_bytes())?;
        }
        let mut automatic = String::new();
        for package in &self.packages {
            let name = package.package();
            if !wanted.contains(name) {
                let architecture = package.field("architecture").filter(|a| *a != "all");
                let architecture = architecture.unwrap_or("amd64");
                // Writing to a string cannot fail.
                let _ = write!(
                    automatic,
                    "Package: {name}\nArchitecture: {architecture}\nAuto-Installed: 1\n\n"
                );
            }
        }
        self.disk.small_file(
            "var/lib/apt/extended_states",
            self.attributes,
            automatic.as_bytes(),
        )?;
        Ok((self.packages, self.preinst))
    }
}

/// The files of a control file `conffiles`, which begin with a slash.
fn conffiles(text: &str) -> BTreeSet<String> {
    let files = text.lines().map(str::trim_end);
    // A line with a flag names a file that is to go.
    files
        .filter(|line| line.starts_with('/') && !line.contains(' '))
        .map(str::to_owned)
        .collect()
}

enum Kind {
    Directory,
    File,
    Symlink(String),
    HardLink(String),
    Special(Special),
}

/// What a tar says of one of its entries.
struct Header {
    kind: Kind,
    attributes: Attributes,
    len: u64,
}

impl Header {
    fn of(entry: &tar::Entry<'_, impl Read>) -> io::Result<Self> {
        let header = entry.header();
        let target = || {
            let target = entry.link_name_bytes().unwrap_or_default();
            String::from_utf8_lossy(&target).into_owned()
        };
        let device = || -> io::Result<(u32, u32)> {
            let (major, minor) = (header.device_major()?, header.device_minor()?);
            Ok((major.unwrap_or(0), minor.unwrap_or(0)))
        };
        let kind = match header.entry_type() {
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => Kind::Symlink(target()),
            tar::EntryType::Link => Kind::HardLink(relative(&target()).to_owned()),
            tar::EntryType::Fifo => Kind::Special(Special::Fifo),
            tar::EntryType::Char => {
                let (major, minor) = device()?;
                Kind::Special(Special::Character(major, minor))
            }
            tar::EntryType::Block => {
                let (major, minor) = device()?;
                Kind::Special(Special::Block(major, minor))
            }
            kind if kind.is_file() => Kind::File,
            other => {
                return Err(io::Error::other(format!(
                    "it has an entry of the unknown kind {other:?}"
                )));
            }
        };
        Ok(Self {
            kind,
            attributes: Attributes {
                permissions: header.mode()? as u16 & 0o7777,
                user: header.uid()? as u32,
                group: header.gid()? as u32,
                modified: header.mtime()? as u32,
            },
            len: entry.size(),
        })
    }
}

/// The tars of packages in their order, decompressed by as many threads as there are processors.
pub(crate) fn each_data(
    packages: &[PathBuf],
    mut each: impl FnMut(usize, &Path, Vec<u8>) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(threads);
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, package)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    packages.get(index).map(|package| (index, package))
                } {
                    // Nobody listens any more after an error.
                    if sender.send((index, deb::data_tar(package))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        // What is ready before its turn waits here.
        let mut early = BTreeMap::new();
        for (index, package) in packages.iter().enumerate() {
            let data = loop {
                if let Some(data) = early.remove(&index) {
                    break data;
                }
                match receiver.recv() {
                    Ok((ready, data)) => drop(early.insert(ready, data)),
                    Err(_) => return Ok(()),
                }
            };
            each(index, package, data?)?;
        }
        Ok(())
    })
}

//! Where the host's apt gets Debian's packages: sources.list(5), in both of its formats.
//!
//! Only Debian's own archive is taken from the host's configuration, with its keyring: its main
//! component, for amd64, nothing but the package index.

use crate::ImageError;
use std::path::{Path, PathBuf};

/// Where apt's configuration lies.
pub(crate) const APT_DIRECTORY: &str = "/etc/apt";
/// Where Debian's own package of keys has them.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An entry of the host's configuration that provides binary packages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// `Signed-By`: a keyring, fingerprints, or a key in the field's own further lines.
    signed_by: Option<String>,
    /// `Check-Valid-Until`: off for mirrors of the past.
    check_valid_until: Option<String>,
}

/// The sources for a guest, ready for a private apt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The suite.
    pub(crate) suite: String,
    /// The contents of a `.sources` file.
    pub(crate) text: String,
}

/// `suite`, or the suite that the sources below `directory` name first: a name that may stand in a
/// path and in apt's configuration.
pub(crate) fn suite(directory: &Path, suite: Option<&str>) -> Result<String, ImageError> {
    let suite = match suite {
        Some(suite) => suite.to_owned(),
        None => select(directory, None)?.suite,
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if suite.starts_with(|c: char| c.is_ascii_alphanumeric()) && suite.chars().all(allowed) {
        Ok(suite)
    } else {
        Err(ImageError::BadSuite(suite))
    }
}

/// Chooses from the sources below `directory` those for `suite`, or for the suite that they name
/// first.
pub(crate) fn select(directory: &Path, suite: Option<&str>) -> Result<Selection, ImageError> {
    select_from(&read(directory)?, suite).ok_or_else(|| ImageError::NoDebianSource {
        directory: directory.to_owned(),
    })
}

/// Chooses from the sources below `directory` those for a whole system of `suite`, also as the system
/// itself is to have them: with the `updates`, if they are wanted, that the host takes for its own
/// suite.
pub(crate) fn select_for_system(
    directory: &Path,
    suite: &str,
    updates: bool,
) -> Result<(Selection, SystemSources), ImageError> {
    let sources = read(directory)?;
    system_from(&sources, suite, updates).ok_or_else(|| ImageError::NoDebianSource {
        directory: directory.to_owned(),
    })
}

/// What a system is to have in its own configuration of apt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SystemSources {
    /// The contents of a `.sources` file.
    pub(crate) text: String,
    /// Keyrings that the sources name and Debian's own package does not have.
    pub(crate) keyrings: Vec<PathBuf>,
}

/// Suites that get no updates beside themselves.
const UNRELEASED: [&str; 4] = ["sid", "unstable", "experimental", "rc-buggy"];

fn system_from(
    sources: &[Source],
    suite: &str,
    updates: bool,
) -> Option<(Selection, SystemSources)> {
    let debian = || sources.iter().filter(|s| s.is_debian());
    let (main, host_suite) = debian().find_map(|s| Some((s, s.base_suite()?)))?;
    let mut chosen = vec![(main, suite.to_owned())];
    let updates = updates && !UNRELEASED.contains(&suite);
    for source in debian().filter(|_| updates) {
        for name in &source.suites {
            let addition = name.strip_prefix(host_suite).unwrap_or_default();
            if matches!(addition, "-updates" | "-security" | "/updates") {
                chosen.push((source, format!("{suite}{addition}")));
            }
        }
    }
    let mut selection = Selection {
        suite: suite.to_owned(),
        text: String::new(),
    };
    let mut system = SystemSources::default();
    for (source, name) in chosen {
        selection.text.push_str(&source.stanza(&name));
        let mut source = source.clone();
        let keyring = source.signed_by.as_deref().map(str::trim);
        if let Some(path) = keyring.filter(|k| k.starts_with('/')) {
            if path.contains("debian-archive") {
                source.signed_by = Some(DEBIAN_KEYRING.to_owned());
            } else {
                system.keyrings.push(PathBuf::from(path));
            }
        }
        system.text.push_str(&source.system_stanza(&name));
    }
    system.keyrings.sort();
    system.keyrings.dedup();
    Some((selection, system))
}

fn select_from(sources: &[Source], suite: Option<&str>) -> Option<Selection> {
    let debian = || sources.iter().filter(|s| s.is_debian());
    let (main, host_suite) = debian().find_map(|s| Some((s, s.base_suite()?)))?;
    let suite = suite.unwrap_or(host_suite);
    let mut text = main.stanza(suite);
    if suite == host_suite {
        // The host's own suite comes with the updates that the host takes.
        let updates = ["-updates", "-security", "/updates"].map(|u| format!("{suite}{u}"));
        for source in debian() {
            for name in source.suites.iter().filter(|s| updates.contains(s)) {
                text.push_str(&source.stanza(name));
            }
        }
    }
    Some(Selection {
        suite: suite.to_owned(),
        text,
    })
}

impl Source {
    /// Whether this is Debian's archive or a mirror of it, as far as its name or keyring tells.
    fn is_debian(&self) -> bool {
        let by_key = self
            .signed_by
            .as_ref()
            .is_some_and(|key| key.contains("debian-archive"));
        let by_name = self.uris.iter().any(|uri| {
            let last = uri.trim_end_matches('/').rsplit('/').next();
            matches!(last, Some("debian" | "debian-security"))
        });
        let on_medium = self.uris.iter().any(|uri| uri.starts_with("cdrom:"));
        (by_key || by_name) && !on_medium && self.components.iter().any(|c| c == "main")
    }

    /// The first suite that is no addition to another one.
    fn base_suite(&self) -> Option<&str> {
        self.suites
            .iter()
            .map(String::as_str)
            .find(|s| !s.contains(['-', '/']))
    }

    /// The entry for one suite, as small as it can be.
    fn stanza(&self, suite: &str) -> String {
        self.stanza_with(suite, "Architectures: amd64\nTargets: Packages\n")
    }

    /// The entry for one suite, for a system of its own.
    fn system_stanza(&self, suite: &str) -> String {
        self.stanza_with(suite, "")
    }

    fn stanza_with(&self, suite: &str, fields: &str) -> String {
        use std::fmt::Write;
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{fields}",
            self.uris.join(" ")
        );
        for (name, value) in [
            ("Signed-By", &self.signed_by),
            ("Check-Valid-Until", &self.check_valid_until),
        ] {
            if let Some(value) = value {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name}: {value}");
            }
        }
        text.push('\n');
        text
    }
}

/// All sources below `directory`, in apt's order: `sources.list`, then the parts by name.
fn read(directory: &Path) -> Result<Vec<Source>, ImageError> {
    let parts = directory.join("sources.list.d");
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&parts) {
        Ok(entries) => entries
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(ImageError::io("list", &parts))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(ImageError::io("list", &parts)(e)),
    };
    files.sort();
    files.insert(0, directory.join("sources.list"));
    let mut sources = Vec::new();
    for file in files {
        let parse = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => parse_lines,
            Some("sources") => parse_stanzas,
            _ => continue,
        };
        match std::fs::read(&file) {
            Ok(text) => sources.extend(parse(&String::from_utf8_lossy(&text))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ImageError::io("read", &file)(e)),
        }
    }
    Ok(sources)
}

/// The one-line format: `deb [option=value …] uri suite component …`.
fn parse_lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let option = |name: &str| {
        options.split_whitespace().find_map(|option| {
            let (key, value) = option.split_once('=')?;
            (key == name).then(|| value.to_owned())
        })
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: option("signed-by"),
        check_valid_until: option("check-valid-until"),
    })
}

/// The deb822 format: stanzas of fields, whose further lines begin with a space.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            sources.extend(source_of(&std::mem::take(&mut fields)));
        } else if line.starts_with('#') {
            // A comment, even between the lines of a field.
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn source_of(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| {
        fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
    };
    let words = |name: &str| -> Vec<String> {
        let value = field(name).unwrap_or_default();
        value.split_whitespace().map(str::to_owned).collect()
    };
    let off = field("enabled").is_some_and(|v| ["no", "false", "0", "off"].contains(&v.as_str()));
    if off || !words("types").contains(&"deb".to_owned()) {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by"),
        check_valid_until: field("check-valid-until"),
    })
}

#[cfg(test)]
mod tests;

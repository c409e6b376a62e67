//! What a package says about itself: stanzas of fields. deb-control(5).

use std::collections::{BTreeMap, BTreeSet};

/// A package's control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    text: String,
    fields: BTreeMap<String, String>,
}

impl Control {
    /// Parses a stanza; `None` if it lacks a name, a version or an architecture that could stand in
    /// a path.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        let mut last = None;
        for line in text.lines() {
            if line.starts_with([' ', '\t']) {
                let value: &mut String = fields.get_mut(last.as_ref()?)?;
                value.push('\n');
                value.push_str(line);
            } else if let Some((name, value)) = line.split_once(':') {
                let name = name.to_ascii_lowercase();
                last = Some(name.clone());
                fields.insert(name, value.trim().to_owned());
            }
        }
        let control = Self {
            text: text.trim_end().to_owned(),
            fields,
        };
        let is_name = |field: &str| {
            let value = control.field(field)?;
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "+-.~:".contains(c);
            let first = value.chars().next()?;
            (first.is_ascii_alphanumeric() && value.chars().all(is_allowed)).then_some(())
        };
        ["package", "version", "architecture"]
            .into_iter()
            .try_for_each(is_name)?;
        Some(control)
    }

    /// A field, by its name in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The package's name.
    pub(crate) fn package(&self) -> &str {
        self.field("package").unwrap_or_default()
    }

    /// The package's version.
    pub(crate) fn version(&self) -> &str {
        self.field("version").unwrap_or_default()
    }

    /// Whether every system needs it before anything else.
    pub(crate) fn is_essential(&self) -> bool {
        self.field("essential") == Some("yes")
    }

    /// Its name in dpkg's database: with the architecture if it may be installed for several.
    pub(crate) fn qualified(&self) -> String {
        let package = self.package();
        match (self.field("multi-arch"), self.field("architecture")) {
            (Some("same"), Some(architecture)) => format!("{package}:{architecture}"),
            _ => package.to_owned(),
        }
    }

    /// The packages that it needs, each with its alternatives.
    fn needs(&self) -> Vec<Vec<&str>> {
        let relations = |field| self.field(field).unwrap_or_default().split(',');
        relations("pre-depends")
            .chain(relations("depends"))
            .map(|relation| relation.split('|').map(name_of).collect())
            .collect()
    }

    fn provides(&self) -> impl Iterator<Item = &str> {
        let provides = self.field("provides").unwrap_or_default();
        provides.split(',').map(name_of)
    }

    /// The entry of dpkg's status file of a package that is unpacked, whose configuration files are
    /// `conffiles`.
    pub(crate) fn unpacked_status<'c>(
        &self,
        conffiles: impl IntoIterator<Item = &'c str>,
    ) -> String {
        let mut lines = self.text.lines();
        let mut text = String::new();
        let mut put = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        for line in lines.by_ref() {
            put(line);
            if line.to_ascii_lowercase().starts_with("package:") {
                put("Status: install ok unpacked");
            }
        }
        let mut conffiles = conffiles.into_iter().peekable();
        if conffiles.peek().is_some() {
            put("Conffiles:");
            for file in conffiles {
                put(&format!(" {file} newconffile"));
            }
        }
        put("");
        text
    }
}

/// The name in a relation, without versions and architectures.
fn name_of(relation: &str) -> &str {
    let name = relation.split(['(', '[', ':', '<']).next();
    name.unwrap_or_default().trim()
}

/// The names of the essential packages and of all that they need, as dpkg knows them.
pub(crate) fn closure(packages: &[Control]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, package) in packages.iter().enumerate() {
        // The package of a name comes before those that provide it.
        by_name
            .entry(package.package())
            .or_default()
            .insert(0, index);
        for name in package.provides().filter(|name| !name.is_empty()) {
            by_name.entry(name).or_default().push(index);
        }
    }
    let mut open: Vec<usize> = (0..packages.len())
        .filter(|index| packages[*index].is_essential())
        .collect();
    let mut found: BTreeSet<usize> = open.iter().copied().collect();
    while let Some(index) = open.pop() {
        for alternatives in packages[index].needs() {
            let known = alternatives.iter().find_map(|name| by_name.get(name));
            if let Some(needed) = known.and_then(|indices| indices.first())
                && found.insert(*needed)
            {
                open.push(*needed);
            }
        }
    }
    found
        .iter()
        .map(|index| packages[*index].qualified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASH: &str = "Package: bash\nEssential: yes\nVersion: 5.2-2+b8\nArchitecture: amd64\n\
        Pre-Depends: libc6 (>= 2.38), libtinfo6 (>= 6)\nDepends: base-files, debianutils (>= 5)\n\
        Description: the shell\n of GNU\n";

    fn control(name: &str, fields: &str) -> Control {
        let text = format!("Package: {name}\nVersion: 1\nArchitecture: amd64\n{fields}");
        Control::parse(&text).unwrap()
    }

    #[test]
    fn fields_are_read_with_their_further_lines() {
        let bash = Control::parse(BASH).unwrap();
        assert_eq!((bash.package(), bash.version()), ("bash", "5.2-2+b8"));
        assert_eq!(bash.field("description"), Some("the shell\n of GNU"));
        assert!(bash.is_essential());
        assert_eq!(bash.qualified(), "bash");
        assert_eq!(
            control("libc6", "Multi-Arch: same\n").qualified(),
            "libc6:amd64"
        );
    }

    #[test]
    fn the_status_is_as_dpkg_writes_it() {
        let bash = Control::parse(BASH).unwrap();
        let status = bash.unpacked_status(["/etc/bash.bashrc"]);
        assert!(status.starts_with("Package: bash\nStatus: install ok unpacked\nEssential: yes\n"));
        assert!(status.ends_with(" of GNU\nConffiles:\n /etc/bash.bashrc newconffile\n\n"));
        assert!(!bash.unpacked_status([]).contains("Conffiles"));
    }

    #[test]
    fn the_closure_follows_alternatives_and_what_is_provided() {
        let packages = [
            control("a", "Essential: yes\nDepends: b (>= 1) | x, awk\n"),
            control("x", "Depends: y:any\n"),
            control("mawk", "Provides: awk (= 1)\n"),
            control("y", "Depends: a\n"),
            control("z", "Depends: a\n"),
        ];
        assert_eq!(closure(&packages), ["a", "x", "mawk", "y"]);
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for text in [
            "Package: ../x\nVersion: 1\nArchitecture: amd64\n",
            "Package: x\nVersion: 1\nArchitecture: a/b\n",
            "Package: x\nVersion:\nArchitecture: amd64\n",
            " x\n",
            "",
        ] {
            assert_eq!(Control::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "([A-Za-z-]{0,8}:? ?[ -~]{0,12}\n){0,8}") {
            if let Some(control) = Control::parse(&text) {
                let _ = closure(&[control]);
            }
        }
    }
}

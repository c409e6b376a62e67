//! What is said of a share: `DIR,tag=NAME,readonly`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// The longest tag, in bytes. Virtio 1.2, 5.11.4.
pub const LONGEST_TAG: usize = 36;
/// The tag of a directory whose name does not do as one.
const DEFAULT_TAG: &str = "share";

/// A shared directory, as a user describes it. A comma in its name is written twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareConfig {
    /// The directory.
    pub directory: PathBuf,
    /// What the guest mounts it by, if said; see [`tag`](Self::tag).
    pub tag: Option<String>,
    /// Whether the guest can only read.
    pub read_only: bool,
}

/// A text that describes no share.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadShare {
    /// There is no directory.
    #[error("a share needs a directory: DIR[,OPTION...]")]
    NoDirectory,
    /// An option that there is not.
    #[error(
        "{0:?} is no option of a share (tag=, readonly; a comma in a directory's name is written \
         twice)"
    )]
    Option(String),
    /// An option that was given before.
    #[error("the option {0} of a share is given twice")]
    Twice(&'static str),
    /// A tag that a guest could not mount by.
    #[error(
        "{0:?} is no tag for a share (1 to {LONGEST_TAG} bytes, neither spaces nor commas nor \
         control characters)"
    )]
    Tag(String),
}

impl ShareConfig {
    /// The share of `directory`, with nothing else said.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            tag: None,
            read_only: false,
        }
    }

    /// The tag: as said, or else the directory's own name, or `share` if that does not do.
    pub fn tag(&self) -> &str {
        let name = self.directory.file_name().and_then(|name| name.to_str());
        let own = self.tag.as_deref().or(name);
        own.filter(|tag| is_tag(tag)).unwrap_or(DEFAULT_TAG)
    }

    fn set(&mut self, option: &str) -> Result<(), BadShare> {
        match option.split_once('=') {
            None if option == "readonly" && self.read_only => Err(BadShare::Twice("readonly")),
            None if option == "readonly" => {
                self.read_only = true;
                Ok(())
            }
            Some(("tag", _)) if self.tag.is_some() => Err(BadShare::Twice("tag")),
            Some(("tag", tag)) if !is_tag(tag) => Err(BadShare::Tag(tag.to_owned())),
            Some(("tag", tag)) => {
                self.tag = Some(tag.to_owned());
                Ok(())
            }
            _ => Err(BadShare::Option(option.to_owned())),
        }
    }
}

fn is_tag(text: &str) -> bool {
    (1..=LONGEST_TAG).contains(&text.len())
        && !text.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control())
}

impl FromStr for ShareConfig {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<Self, BadShare> {
        // A double comma stands for one; what stands in for it meanwhile is in no path.
        let text = text.replace(",,", "\0");
        let mut parts = text.split(',').map(|part| part.replace('\0', ","));
        let directory = parts.next().filter(|directory| !directory.is_empty());
        let mut share = Self::new(directory.ok_or(BadShare::NoDirectory)?);
        for option in parts {
            share.set(&option)?;
        }
        Ok(share)
    }
}

impl fmt::Display for ShareConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.directory.to_string_lossy().replace(',', ",,"))?;
        if let Some(tag) = &self.tag {
            write!(f, ",tag={tag}")?;
        }
        if self.read_only {
            f.write_str(",readonly")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for ShareConfig {
    type Error = BadShare;

    fn try_from(text: String) -> Result<Self, BadShare> {
        text.parse()
    }
}

impl From<ShareConfig> for String {
    fn from(share: ShareConfig) -> Self {
        share.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_understood() {
        let share: ShareConfig = "/a,,b,tag=data,readonly".parse().unwrap();
        assert_eq!(share.directory, PathBuf::from("/a,b"));
        assert_eq!((share.tag(), share.read_only), ("data", true));
    }

    #[test]
    fn a_share_without_a_tag_is_named_like_its_directory() {
        for (text, tag) in [
            ("/home/me/work", "work"),
            ("work/", "work"),
            ("/", "share"),
            ("..", "share"),
            ("/my files", "share"),
        ] {
            assert_eq!(text.parse::<ShareConfig>().unwrap().tag(), tag, "{text}");
        }
    }

    #[test]
    fn what_describes_no_share_is_refused() {
        let long = format!("/a,tag={}", "x".repeat(LONGEST_TAG + 1));
        for text in [
            "",
            ",readonly",
            "/a,rw",
            "/a,",
            "/a,tag=",
            "/a,tag=b c",
            "/a,tag=b,tag=c",
            "/a,readonly,readonly",
            "/a,readonly=yes",
            &long,
        ] {
            assert!(text.parse::<ShareConfig>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_share_survives_being_written(
            directory in "/[a-z,./ ]{1,20}", tag in proptest::option::of("[a-z]{1,36}"), read_only: bool
        ) {
            let share = ShareConfig { directory: directory.into(), tag, read_only };
            prop_assert_eq!(share.to_string().parse::<ShareConfig>().unwrap(), share);
        }
    }
}

//! The names of images: `debian:trixie` for what can be built, and any like it for what was.

use crate::ImageError;

/// The distribution that can be built.
const DEBIAN: &str = "debian";

/// The suite of an image that can be built.
///
/// # Errors
/// [`ImageError::UnknownImage`].
pub fn suite_of(image: &str) -> Result<&str, ImageError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match image.split_once(':') {
        Some((DEBIAN, suite))
            if suite.starts_with(|c: char| c.is_ascii_alphanumeric())
                && suite.chars().all(allowed) =>
        {
            Ok(suite)
        }
        _ => Err(ImageError::UnknownImage(image.to_owned())),
    }
}

/// Whether an image may have this name.
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":._-".contains(c);
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
}

/// The name of the machine that runs an image if the user gives none.
pub fn machine_name(image: &str) -> String {
    image.replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_suites_can_be_built() {
        assert_eq!(suite_of("debian:trixie").unwrap(), "trixie");
        for name in [
            "debian",
            "debian:",
            "debian:../x",
            "fedora:41",
            "debian:a b",
            "debian:-x",
        ] {
            assert!(suite_of(name).is_err(), "{name}");
        }
    }

    #[test]
    fn names_can_stand_in_a_path() {
        assert!(is_name("debian:trixie") && is_name("my-web.1"));
        for name in ["", ".", "..", "a/b", "-x", "a b", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(machine_name("debian:trixie"), "debian-trixie");
    }
}

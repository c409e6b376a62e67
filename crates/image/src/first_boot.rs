//! What happens when a machine boots an image for the first time: settings in the NoCloud style.
//!
//! The settings lie in the image where cloud-init looks for a NoCloud seed, as `meta-data` and
//! `user-data`. Images have a small reader of their own that understands the part of cloud-config
//! that is written here and, in docs/images.md, promised; it also reads a seed from a disk with the
//! label `cidata`. If cloud-init is among the image's packages, that reads the seed instead.

use crate::ImageError;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Where cloud-init looks for a seed in the file system.
pub(crate) const SEED: &str = "var/lib/cloud/seed/nocloud";
/// The reader, which the unit starts.
pub(crate) const READER: &str = include_str!("guest/first-boot.pl");
/// The units that start it: before anybody can log in, and when the system is up.
pub(crate) const UNITS: [(&str, &str); 2] = [
    (
        "belljar-first-boot.service",
        include_str!("guest/first-boot.service"),
    ),
    (
        "belljar-first-boot-script.service",
        include_str!("guest/first-boot-script.service"),
    ),
];
/// The user that `--ssh-key` and `--password` are for if none is named.
const ROOT: &str = "root";

/// The first-boot settings of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirstBoot {
    /// The host's name; that of the suite if there is none.
    pub hostname: Option<String>,
    /// A user who may become root. Without one the settings are root's.
    pub user: Option<String>,
    /// The hash of the user's password, as crypt(5) describes.
    pub password_hash: Option<String>,
    /// The public keys with which the user may log in.
    pub ssh_keys: Vec<String>,
    /// A script that is run at the end of the first boot.
    pub script: Option<String>,
    /// A seed's `user-data` that takes the place of what is made of the settings above.
    pub user_data: Option<String>,
    /// A seed's `meta-data`.
    pub meta_data: Option<String>,
}

impl FirstBoot {
    /// Checks that everything can be written as a seed.
    ///
    /// # Errors
    /// [`ImageError::BadSetting`].
    pub fn validate(&self) -> Result<(), ImageError> {
        let bad = |setting, value: &str| {
            Err(ImageError::BadSetting {
                setting,
                value: value.to_owned(),
            })
        };
        if let Some(name) = &self.hostname
            && !is_hostname(name)
        {
            return bad("host name", name);
        }
        if let Some(name) = &self.user
            && !is_user(name)
        {
            return bad("user", name);
        }
        if let Some(key) = self.ssh_keys.iter().find(|key| !is_key(key)) {
            return bad("SSH key", key);
        }
        if self.user_data.is_some() && *self != self.only_seed() {
            return bad("seed", "user-data together with settings of its kind");
        }
        if let Some(script) = &self.script
            && !script.starts_with("#!")
        {
            return bad("script", "one that does not begin with #!");
        }
        Ok(())
    }

    /// The settings without those that `user-data` replaces.
    fn only_seed(&self) -> Self {
        Self {
            user_data: self.user_data.clone(),
            meta_data: self.meta_data.clone(),
            ..Self::default()
        }
    }

    /// Takes the hash of a password, made with `salt`.
    ///
    /// # Errors
    /// [`ImageError::BadSetting`] if it is empty or cannot be typed on one line.
    pub fn set_password(&mut self, password: &str, salt: &str) -> Result<(), ImageError> {
        let bad = || ImageError::BadSetting {
            setting: "password",
            value: "an empty one, or one of several lines".to_owned(),
        };
        if password.is_empty() || password.contains(['\n', '\r', '\0']) {
            return Err(bad());
        }
        let parameters = sha_crypt::Sha512Params::new(sha_crypt::ROUNDS_DEFAULT);
        let hash = parameters.and_then(|parameters| {
            sha_crypt::sha512_crypt_b64(password.as_bytes(), salt.as_bytes(), &parameters)
        });
        self.password_hash = Some(format!("$6${salt}${}", hash.map_err(|_| bad())?));
        Ok(())
    }

    /// The host's name, or `default`.
    pub(crate) fn hostname<'a>(&'a self, default: &'a str) -> &'a str {
        self.hostname.as_deref().unwrap_or(default)
    }

    /// The seed's `meta-data`; `instance` tells one image's settings from another's.
    pub(crate) fn meta_data(&self, instance: &str, hostname: &str) -> String {
        self.meta_data
            .clone()
            .unwrap_or_else(|| format!("instance-id: {instance}\nlocal-hostname: {hostname}\n"))
    }

    /// The seed's `user-data`.
    pub(crate) fn user_data(&self) -> String {
        if let Some(text) = &self.user_data {
            return text.clone();
        }
        let mut text = "#cloud-config\n".to_owned();
        let name = self.user.as_deref().unwrap_or(ROOT);
        if self.user.is_some() || self.password_hash.is_some() || !self.ssh_keys.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "users:\n  - name: {name}");
            if self.user.is_some() {
                text.push_str("    shell: /bin/bash\n    sudo: ALL=(ALL) NOPASSWD:ALL\n");
            }
            if let Some(hash) = &self.password_hash {
                let _ = writeln!(text, "    lock_passwd: false\n    passwd: {hash}");
            }
            if !self.ssh_keys.is_empty() {
                text.push_str("    ssh_authorized_keys:\n");
                for key in &self.ssh_keys {
                    let _ = writeln!(text, "      - {}", key.trim());
                }
            }
        }
        if let Some(script) = &self.script {
            text.push_str("script: |\n");
            for line in script.lines() {
                let _ = writeln!(text, "  {line}");
            }
        }
        text
    }
}

fn is_hostname(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_user(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
}

/// Whether this is a line of authorized_keys(5): a type, a key, perhaps a comment.
fn is_key(key: &str) -> bool {
    let mut words = key.split_whitespace();
    let is_type = |word: &str| {
        ["ssh-", "ecdsa-", "sk-"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
    };
    let is_base64 = |word: &str| {
        word.len() > 40
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c))
    };
    !key.trim().contains(['\n', '\r', '\0', '#'])
        && words.next().is_some_and(is_type)
        && words.next().is_some_and(is_base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFake me@here";

    #[test]
    fn settings_become_a_cloud_config() {
        let mut settings = FirstBoot {
            user: Some("ada".to_owned()),
            ssh_keys: vec![KEY.to_owned()],
            ..FirstBoot::default()
        };
        settings.set_password("secret", "saltsalt").unwrap();
        settings.validate().unwrap();
        let text = settings.user_data();
        assert!(
            text.starts_with("#cloud-config\nusers:\n  - name: ada\n"),
            "{text}"
        );
        // As `openssl passwd -6 -salt saltsalt secret` prints it.
        assert!(text.contains("    passwd: $6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1\n"), "{text}");
        assert!(text.contains(&format!("      - {KEY}\n")), "{text}");
        assert!(!text.contains("secret"));
        assert_eq!(
            settings.meta_data("1", "trixie"),
            "instance-id: 1\nlocal-hostname: trixie\n"
        );
    }

    /// What the reader makes of user-data; `None`, said aloud, where this host lacks Perl.
    fn explained(user_data: &str) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let (reader, seed) = (directory.path().join("r"), directory.path().join("s"));
        std::fs::write(&reader, READER).unwrap();
        std::fs::write(&seed, user_data).unwrap();
        let output = std::process::Command::new("perl")
            .arg(&reader)
            .arg("explain")
            .arg(&seed)
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: this host has no perl");
            return None;
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn the_reader_understands_what_is_written_here() {
        let mut settings = FirstBoot {
            user: Some("ada".to_owned()),
            ssh_keys: vec![KEY.to_owned(), KEY.replace("me@", "you@")],
            script: Some("#!/bin/sh\n# a comment\n\nif true; then\n  echo: x\nfi\n".to_owned()),
            ..FirstBoot::default()
        };
        settings.set_password("secret", "saltsalt").unwrap();
        let Some(read) = explained(&settings.user_data()) else {
            return;
        };
        let lines: Vec<&str> = read.lines().collect();
        assert_eq!(
            lines[0],
            ".script = #!/bin/sh\\n# a comment\\n\\nif true; then\\n  echo: x\\nfi\\n"
        );
        for line in [
            ".users[0].name = ada".to_owned(),
            ".users[0].sudo = ALL=(ALL) NOPASSWD:ALL".to_owned(),
            format!(".users[0].ssh_authorized_keys[0] = {KEY}"),
            format!(
                ".users[0].passwd = {}",
                settings.password_hash.as_deref().unwrap()
            ),
        ] {
            assert!(lines.contains(&line.as_str()), "{line} in {read}");
        }
    }

    #[test]
    fn the_reader_understands_what_people_write() {
        let seed = "#cloud-config\n\n# Comment\nhostname: 'web'\npackages: [vim, \"git\"]\n\
            runcmd:\n- [ls, -l]\n- echo a: b\n- - touch\n  - /x\nusers:\n- default\n\
            - name: ada\n  groups: adm, sudo\ntimezone:\n";
        let Some(read) = explained(seed) else { return };
        for line in [
            ".hostname = web",
            ".packages[1] = git",
            ".runcmd[0][1] = -l",
            ".runcmd[1] = echo a: b",
            ".runcmd[2][1] = /x",
            ".users[0] = default",
            ".users[1].groups = adm, sudo",
            ".timezone = ",
        ] {
            assert!(read.lines().any(|l| l == line), "{line:?} in {read}");
        }
        assert_eq!(explained("#cloud-config\n").as_deref(), Some(" = \n"));
    }

    #[test]
    fn a_seed_is_taken_as_it_is_but_not_together_with_settings() {
        let mut settings = FirstBoot {
            user_data: Some("#!/bin/sh\n".to_owned()),
            ..FirstBoot::default()
        };
        settings.validate().unwrap();
        assert_eq!(settings.user_data(), "#!/bin/sh\n");
        settings.user = Some("ada".to_owned());
        assert!(settings.validate().is_err());
    }

    #[test]
    fn what_could_break_out_of_its_line_is_refused() {
        let with = |change: fn(&mut FirstBoot)| {
            let mut settings = FirstBoot::default();
            change(&mut settings);
            settings.validate()
        };
        assert!(with(|s| s.hostname = Some("a b".to_owned())).is_err());
        assert!(with(|s| s.hostname = Some("a\nb".to_owned())).is_err());
        assert!(with(|s| s.user = Some("Root:".to_owned())).is_err());
        assert!(with(|s| s.ssh_keys = vec![format!("{KEY}\nruncmd:")]).is_err());
        assert!(with(|s| s.script = Some("echo".to_owned())).is_err());
        assert!(FirstBoot::default().set_password("a\nb", "s").is_err());
        assert!(FirstBoot::default().set_password("", "s").is_err());
        assert!(with(|_| ()).is_ok());
    }
}

//! The flags of `belljar image`.

use anyhow::{Context, Result};
use belljar_image::{FirstBoot, Images, Recipe, names};
use belljar_machine::Size;
use clap::{Args, Subcommand};
use std::fs;
use std::path::{Path, PathBuf};

const BUILD_AFTER_HELP: &str = "\
The packages come from the mirror that the host's apt is configured for, with its checks of
signatures; nothing is installed on the host, and no privileges are needed. A build that was cut short
goes on where it was. The same packages and settings give the same image, which is not built again.

At the console, root logs in without a password unless --user or --password is given. Over the
network nobody can log in without a key or a password.";

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build a bootable disk from Debian's packages, for example of debian:trixie
    #[command(after_help = BUILD_AFTER_HELP)]
    Build(Box<BuildOptions>),
    /// List the images that are there
    List {
        /// Print everything that is known of them, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an image was made of and where its files are, as JSON
    Inspect {
        /// Its name, or the beginning of its identifier
        image: String,
    },
    /// Remove images; machines that were made from them keep their disks
    Remove {
        /// Their names, or the beginnings of their identifiers
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// The flags of `belljar image build`.
#[derive(Debug, Args)]
pub struct BuildOptions {
    /// What to build: debian:SUITE, with a suite such as trixie, bookworm, bullseye or sid
    pub image: String,
    /// Size of the disk in bytes, or with M, G or T; what is not used takes no space
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    size: Size,
    /// Packages to install, beside those of a small system
    #[arg(long = "package", value_name = "NAME,…", value_delimiter = ',')]
    packages: Vec<String>,
    /// Take the suite as it was released, without the updates that the host takes for its own
    #[arg(long)]
    no_updates: bool,
    /// Name of the image [default: what is built, for example debian:trixie]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Name of the host [default: the suite]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A user who may become root with sudo; root itself cannot log in then
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File with the password of the user, or of root, on its first line
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Password of the user, or of root; other users of this host may see it while the command runs
    #[arg(long, value_name = "TEXT", conflicts_with = "password_file")]
    password: Option<String>,
    /// File with public keys with which the user, or root, logs in over SSH
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// Script to run at the end of the first boot
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Directory of a NoCloud seed, user-data and perhaps meta-data, in place of the settings above
    #[arg(
        long,
        value_name = "DIRECTORY",
        conflicts_with_all = ["user", "password", "password_file", "ssh_keys", "script"]
    )]
    seed: Option<PathBuf>,
}

impl BuildOptions {
    /// The name that the image is to have.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.image)
    }

    /// What is to be built.
    ///
    /// # Errors
    /// Files that cannot be read, and settings that cannot be.
    pub fn recipe(&self) -> Result<Recipe> {
        let mut packages = self.packages.clone();
        packages.sort();
        packages.dedup();
        let recipe = Recipe {
            suite: names::suite_of(&self.image)?.to_owned(),
            size: self.size.bytes(),
            updates: !self.no_updates,
            packages,
            first_boot: self.first_boot()?,
        };
        recipe.validate()?;
        Ok(recipe)
    }

    fn first_boot(&self) -> Result<FirstBoot> {
        let mut settings = FirstBoot {
            hostname: self.hostname.clone(),
            user: self.user.clone(),
            script: self.script.as_deref().map(read).transpose()?,
            ..FirstBoot::default()
        };
        for path in &self.ssh_keys {
            let text = read(path)?;
            let keys = text.lines().map(str::trim);
            let keys = keys.filter(|line| !line.is_empty() && !line.starts_with('#'));
            settings.ssh_keys.extend(keys.map(str::to_owned));
        }
        if let Some(path) = &self.password_file {
            let text = read(path)?;
            settings.set_password(text.lines().next().unwrap_or_default(), &salt()?)?;
        }
        if let Some(password) = &self.password {
            settings.set_password(password, &salt()?)?;
        }
        if let Some(directory) = &self.seed {
            settings.user_data = Some(read(&directory.join("user-data"))?);
            let meta_data = directory.join("meta-data");
            if meta_data.exists() {
                settings.meta_data = Some(read(&meta_data)?);
            }
        }
        Ok(settings)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn salt() -> Result<String> {
    Ok(Images::of_user()?.salt()?)
}

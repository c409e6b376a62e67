//! Images of Debian that chores boot: built once, and a copy of the disk for each run.

use crate::run;
use anyhow::{Context, Result};
use belljar_image::{Image, Images};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// The image `name` of a suite with `packages`, which `belljar` builds if it is not there.
pub fn image(belljar: &Path, suite: &str, name: &str, packages: &str) -> Result<Image> {
    let (what, name) = (format!("debian:{suite}"), format!("{name}-{suite}"));
    run(Command::new(belljar)
        .args(["image", "build", &what, "--name", &name])
        .args(["--package", packages]))?;
    let image = Images::of_user()?.find(&name)?;
    image.with_context(|| format!("there is no image {name}"))
}

/// Copies the disk of `image`, holes as holes.
pub fn copy_disk(image: &Image, to: &Path) -> Result<()> {
    // Not fs::copy, which fills the holes.
    run(Command::new("cp")
        .args(["--sparse=always", "--"])
        .arg(image.disk())
        .arg(to))
}

/// A file's name in an option of a disk, Belljar's or QEMU's: a comma is written twice.
pub fn file(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A port of the host's loopback that is free. Nobody else is likely to get it before the machine
/// does.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

//! `belljar run IMAGE`: the image, which is built at its first use, and the machine's own disk.

use super::runner::{MachineRunner, raw_disk};
use crate::guest;
use crate::terminal::message;
use anyhow::{Context, Result};
use belljar_image::{FirstBoot, Image, Images, MachineDisks, Recipe, names};
use belljar_machine::{CardConfig, DiskConfig, MachineConfig};

/// The size of the disk of an image that is built at its first use.
const SIZE: u64 = 4 << 30;

/// Names the machine of an image that the user has given no name.
pub fn name(config: &mut MachineConfig) {
    if let (Some(image), None) = (&config.image, &config.name) {
        config.name = Some(names::machine_name(image));
    }
}

/// Fills in the kernel, its initial RAM filesystem and its command line, and puts the machine's disk
/// before all others; a command line that was given follows the image's. If nothing was said of network
/// cards, it has one with user networking. Tells what the guest is.
pub fn provide(config: &mut MachineConfig, image: &str) -> Result<String> {
    let machine = match &config.name {
        Some(name) => name.clone(),
        None => names::machine_name(image),
    };
    let disks = MachineDisks::of_user()?;
    if config.fresh {
        disks.remove(&machine)?;
    }
    let disk = match disks.find(&machine, image)? {
        Some(disk) => disk,
        None => disks.make(&machine, &find_or_build(image)?, image)?,
    };
    let age = if disk.is_new { "new" } else { "from before" };
    message(&format!(
        "guest: {image}; disk ({age}): {}",
        disk.disk.display()
    ));
    config.kernel = Some(disk.kernel);
    config.initrd = Some(disk.initrd);
    let cmdline = guest::on_console(&disk.cmdline, config.console_device);
    config.cmdline = Some(match config.cmdline.take() {
        Some(more) => format!("{cmdline} {more}"),
        None => cmdline,
    });
    config.net.get_or_insert_with(|| vec![CardConfig::user()]);
    let root = DiskConfig {
        interface: config.root_interface.take().unwrap_or_default(),
        ..raw_disk(disk.disk)
    };
    config.disk.insert(0, root);
    Ok(image.to_owned())
}

fn find_or_build(name: &str) -> Result<Image> {
    let images = Images::of_user()?;
    if let Some(image) = images.find(name)? {
        return Ok(image);
    }
    let recipe = Recipe {
        suite: names::suite_of(name)?.to_owned(),
        size: SIZE,
        updates: true,
        packages: Vec::new(),
        first_boot: FirstBoot::default(),
    };
    images
        .build(&recipe, name, &MachineRunner)
        .with_context(|| format!("cannot build the image {name}"))
}

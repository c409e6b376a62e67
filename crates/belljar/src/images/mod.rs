//! `belljar image`: building, listing and removing images.

mod dates;
pub mod machine;
mod options;
mod runner;

use crate::terminal::message;
use anyhow::{Context, Result};
use belljar_image::{Image, Images};
use options::BuildOptions;
pub use options::ImageCommand;
use runner::MachineRunner;
use std::io::{self, Write};

/// Carries out a command about images.
pub fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build(options) => build(&options),
        ImageCommand::List { json } => list(json),
        ImageCommand::Inspect { image } => inspect(&image),
        ImageCommand::Remove { images } => remove(&images),
    }
}

fn build(options: &BuildOptions) -> Result<()> {
    let recipe = options.recipe()?;
    let image = Images::of_user()?.build(&recipe, options.name(), &MachineRunner)?;
    message(&format!(
        "the image {} is {}",
        options.name(),
        image.metadata.id
    ));
    Ok(())
}

fn list(json: bool) -> Result<()> {
    let images = Images::of_user()?.list()?;
    let mut out = io::stdout().lock();
    if json {
        let all: Vec<_> = images.iter().map(description).collect();
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<24} {:<18} {:>7} {:>7} {:<17} PACKAGES",
        "NAME", "ID", "SIZE", "USED", "MADE (UTC)"
    )?;
    for image in &images {
        let metadata = &image.metadata;
        let name = match image.names.as_slice() {
            [] => "-".to_owned(),
            names => names.join(","),
        };
        writeln!(
            out,
            "{name:<24} {:<18} {:>7} {:>7} {:<17} {}",
            metadata.id,
            bytes(metadata.recipe.size),
            bytes(image.used()?),
            dates::minute(metadata.made),
            metadata.packages.len(),
        )?;
    }
    Ok(())
}

fn inspect(name: &str) -> Result<()> {
    let image = find(name)?;
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &description(&image))?;
    writeln!(out)?;
    Ok(())
}

fn remove(names: &[String]) -> Result<()> {
    let images = Images::of_user()?;
    for name in names {
        let image = images.remove(name)?;
        message(&format!("removed the image {} ({name})", image.metadata.id));
    }
    Ok(())
}

fn find(name: &str) -> Result<Image> {
    let image = Images::of_user()?.find(name)?;
    image.with_context(|| format!("there is no image {name:?}; see belljar image list"))
}

/// All that is known of an image, and where its files are.
fn description(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "names": image.names,
        "disk": image.disk(),
        "kernel": image.kernel(),
        "initrd": image.initrd(),
        "metadata": image.metadata,
    })
}

/// A number of bytes as people read it, rounded up to a tenth.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("T", 40), ("G", 30), ("M", 20)];
    for (unit, shift) in UNITS {
        if count >> shift > 0 {
            let tenths = u128::from(count) * 10;
            let tenths = tenths.div_ceil(1 << shift);
            return match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole}{unit}"),
                (whole, tenth) => format!("{whole}.{tenth}{unit}"),
            };
        }
    }
    format!("{}K", count.div_ceil(1 << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (count, text) in [
            (4 << 30, "4G"),
            (700 << 20, "700M"),
            ((1 << 30) + (1 << 29), "1.5G"),
            (4096, "4K"),
            (u64::MAX, "16777216T"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}

//! The guest of a machine for which no kernel was given.

use crate::images;
use crate::terminal::message;
use anyhow::{Context, Result};
use belljar_machine::MachineConfig;

/// Fills in the kernel, its initial RAM filesystem and its command line, in the suite's place; a
/// command line that was given stays. Tells what the guest is.
pub fn provide(config: &mut MachineConfig) -> Result<String> {
    if let Some(image) = config.image.take() {
        return images::machine::provide(config, &image);
    }
    let suite = config.suite.take();
    let guest = belljar_image::default_guest(suite.as_deref())
        .context("cannot make a guest; to run your own, give --kernel and --initrd")?;
    message(&format!("guest: Debian {}", guest.suite));
    config.kernel = Some(guest.kernel);
    config.initrd = Some(guest.initrd);
    config.cmdline.get_or_insert(guest.cmdline);
    Ok(format!("Debian {}", guest.suite))
}

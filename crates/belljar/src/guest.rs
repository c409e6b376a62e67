//! The guest of a machine for which no kernel was given.

use crate::images;
use crate::terminal::message;
use anyhow::{Context, Result};
use belljar_machine::{ConsoleDevice, MachineConfig};

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
    let cmdline = on_console(&guest.cmdline, config.console_device);
    config.cmdline.get_or_insert(cmdline);
    Ok(format!("Debian {}", guest.suite))
}

/// A command line that Belljar has for a guest, whose console is `device`.
pub fn on_console(cmdline: &str, device: ConsoleDevice) -> String {
    cmdline.replace(ConsoleDevice::Serial.parameter(), device.parameter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_names_the_console_that_the_guest_has() {
        let line = "root=/dev/vda1 console=ttyS0 quiet";
        assert_eq!(on_console(line, ConsoleDevice::Serial), line);
        let by_virtio = "root=/dev/vda1 console=hvc0 quiet";
        assert_eq!(on_console(line, ConsoleDevice::Virtio), by_virtio);
    }
}

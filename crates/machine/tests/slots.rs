//! A machine with as much of everything as there can be.

mod guest;

use belljar_machine::{
    CardConfig, ConsoleDevice, DiskConfig, MOST_CARDS, MOST_DISKS, MOST_SHARES, Outcome,
    ShareConfig,
};
use guest::*;
use std::fs;

/// No two devices have one slot: the machine comes about, and its guest runs.
#[test]
fn everything_has_a_slot_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: String| directory.path().join(name);
    let disk = |number: usize, options: &str| -> DiskConfig {
        let file = at(format!("disk{number}"));
        fs::write(&file, [0; 512]).unwrap();
        let text = format!("{},format=raw{options}", file.display());
        text.parse().unwrap()
    };
    let mut disks: Vec<DiskConfig> = (0..MOST_DISKS).map(|number| disk(number, "")).collect();
    disks.push(disk(MOST_DISKS, ",interface=nvme"));
    let shares: Vec<ShareConfig> = (0..MOST_SHARES)
        .map(|number| at(format!("share{number}")))
        .inspect(|share| fs::create_dir(share).unwrap())
        .map(ShareConfig::new)
        .collect();
    let machine = Running::start(image(power_off), |config| {
        config.net = Some(vec![CardConfig::user(); MOST_CARDS]);
        config.disk = disks;
        config.share = shares;
        config.console_device = ConsoleDevice::Virtio;
        config.validate().unwrap();
    });
    let (outcome, _) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
}

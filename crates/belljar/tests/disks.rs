//! Disks, as a guest and its user see them.

mod command;
mod debian;

use debian::{Guest, PROMPT};
use std::fs;
use std::path::Path;

/// Bytes of a disk: not a power of two.
const SIZE: usize = 24 << 20;

/// The bytes that the disk has before the guest writes it.
fn content() -> Vec<u8> {
    (0..SIZE as u32 / 4)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect()
}

fn disk(path: &Path, options: &str) -> String {
    format!("{}{options}", path.display())
}

/// Runs a guest that copies one part of its NVMe disks to another and checks what it reads.
fn copies(suite: &str, cpus: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (
        directory.path().join("a.img"),
        directory.path().join("b.img"),
    );
    let before = content();
    fs::write(&first, &before).unwrap();
    fs::write(&second, &before[..1 << 20]).unwrap();
    let mut guest = Guest::start(&[
        "--suite",
        suite,
        "--cpus",
        cpus,
        "--disk",
        &disk(&first, ",interface=nvme"),
        "--disk",
        &disk(&second, ",interface=nvme,readonly"),
    ]);
    guest.wait_for(PROMPT);
    // Kernels name namespaces in the order in which they come upon them.
    guest.run("block() { for d in /sys/block/nvme*; do grep -qx $1 $d/nsid && echo $d; done; }");
    let sizes = guest.run("cat $(block 1)/size $(block 2)/size");
    assert_eq!(sizes, format!("{}\n2048", SIZE / 512));
    assert_eq!(guest.run("cat $(block 2)/ro").trim(), "1");

    guest.run("mknod /tmp/d b $(sed 's/:/ /' $(block 1)/dev)");
    let sums = guest.run("md5sum < /tmp/d");
    fs::write(directory.path().join("expected"), &before).unwrap();
    let expected = std::process::Command::new("md5sum")
        .arg(directory.path().join("expected"))
        .output()
        .expect("md5sum runs");
    let expected = String::from_utf8_lossy(&expected.stdout);
    assert_eq!(
        sums.split_whitespace().next(),
        expected.split_whitespace().next()
    );

    guest.run("dd if=/tmp/d of=/tmp/d bs=1M count=4 seek=16; sync");
    guest.run("dd if=/dev/zero of=/tmp/d bs=4k count=3 seek=1; sync");
    let warnings = guest.run("dmesg -r | grep -iE '^<[0-4]>.*(nvme|pci|i/o error)'");
    assert_eq!(warnings, "");
    assert_eq!(guest.power_off().code(), Some(0));

    let mut after = before;
    let (head, tail) = after.split_at_mut(16 << 20);
    tail[..4 << 20].copy_from_slice(&head[..4 << 20]);
    after[4096..16384].fill(0);
    assert!(
        fs::read(&first).unwrap() == after,
        "the file has what the guest wrote"
    );
}

#[test]
fn debian_12_copies_on_nvme_disks() {
    copies("bookworm", "1");
}

#[test]
fn debian_13_copies_on_nvme_disks_with_two_cpus() {
    copies("trixie", "2");
}

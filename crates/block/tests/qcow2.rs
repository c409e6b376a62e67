//! qcow2 images against `qemu-img`, and images made to do harm.

use belljar_block::{BlockError, DiskConfig, Qcow2Image, SECTOR, Storage, open};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: u64 = 4 << 20;

fn memory() -> GuestMemory {
    GuestMemory::new(8 << 20).unwrap()
}

/// Where the tests keep their data: above the hole of the video card.
fn segments(memory: &GuestMemory, len: u64) -> Segments {
    Segments::new(memory, [(GuestPhysAddr(1 << 20), len)]).unwrap()
}

fn read(disk: &dyn Storage, offset: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let memory = memory();
    let part = segments(&memory, len);
    disk.read(offset, &part)?;
    let mut bytes = vec![0; len as usize];
    part.copy_to(0, &mut bytes);
    Ok(bytes)
}

fn write(disk: &dyn Storage, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let memory = memory();
    let part = segments(&memory, bytes.len() as u64);
    part.fill(0, bytes);
    disk.write(offset, &part)
}

/// Runs `qemu-img`; `false`, with a word why, where there is none.
fn qemu_img(directory: &Path, arguments: &[&str]) -> bool {
    match Command::new("qemu-img")
        .current_dir(directory)
        .args(arguments)
        .output()
    {
        Ok(output) => {
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            true
        }
        Err(error) => {
            println!("skipped: qemu-img cannot be run ({error})");
            false
        }
    }
}

/// A disk's content: data, zeroes, and more data.
fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let mut word = seed | 1;
    for (at, chunk) in bytes.chunks_mut(4096).enumerate() {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) + 1;
        if !word.is_multiple_of(4) {
            let pattern = (word ^ at as u64).to_le_bytes();
            for (byte, value) in chunk.iter_mut().zip(pattern.iter().cycle()) {
                *byte = *value;
            }
        }
    }
    bytes
}

/// Changes `disk` and `model` in the same way.
fn change(disk: &dyn Storage, model: &mut [u8], seed: u64, count: usize) {
    let mut word = seed | 1;
    let mut below = |most: u64| {
        word = word
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (word >> 33) % most
    };
    for _ in 0..count {
        let offset = below(SIZE / SECTOR) * SECTOR;
        let len = ((below(300) + 1) * SECTOR).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        match below(8) {
            0 => {
                disk.write_zeroes(offset, len, below(2) == 0).unwrap();
                model[range].fill(0);
            }
            1 => {
                disk.discard(offset, len).unwrap();
                let now = read(disk, offset, len).unwrap();
                for (byte, (new, old)) in now.iter().zip(&model[range.clone()]).enumerate() {
                    assert!(new == old || *new == 0, "byte {byte} of a discarded range");
                }
                model[range].copy_from_slice(&now);
            }
            2 => disk.flush().unwrap(),
            kind => {
                let bytes = vec![(below(255) + kind) as u8; len as usize];
                write(disk, offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
    }
}

fn assert_same(disk: &dyn Storage, model: &[u8]) {
    assert_eq!(disk.size(), model.len() as u64);
    let bytes = read(disk, 0, disk.size()).unwrap();
    let differs = bytes.iter().zip(model).position(|(a, b)| a != b);
    assert_eq!(differs, None);
}

#[test]
fn what_qemu_wrote_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let model = content(1);
    std::fs::write(directory.path().join("raw"), &model).unwrap();
    for options in [
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=65536",
        "cluster_size=2097152,refcount_bits=64",
        "compat=0.10",
    ] {
        for compressed in [&["-c"][..], &[]] {
            let mut arguments = vec!["convert", "-O", "qcow2", "-o", options];
            arguments.extend(compressed);
            arguments.extend(["-f", "raw", "raw", "image"]);
            if !qemu_img(directory.path(), &arguments) {
                return;
            }
            let disk = Qcow2Image::open(&directory.path().join("image"), true).unwrap();
            assert_same(&disk, &model);
        }
    }
}

#[test]
fn what_is_written_is_sound_for_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(directory.path().join("raw"), content(2)).unwrap();
    for (seed, options) in [
        (1, "cluster_size=4096"),
        (2, "cluster_size=65536,refcount_bits=8"),
        (3, "compat=0.10"),
    ] {
        for compressed in [&["-c"][..], &[]] {
            let mut arguments = vec!["convert", "-O", "qcow2", "-o", options];
            arguments.extend(compressed);
            arguments.extend(["-f", "raw", "raw", "image"]);
            if !qemu_img(directory.path(), &arguments) {
                return;
            }
            let mut model = content(2);
            let disk = Qcow2Image::open(&path, false).unwrap();
            change(&disk, &mut model, seed, 150);
            disk.flush().unwrap();
            drop(disk);
            qemu_img(directory.path(), &["check", "-f", "qcow2", "image"]);
            let arguments = ["convert", "-f", "qcow2", "-O", "raw", "image", "back"];
            qemu_img(directory.path(), &arguments);
            assert!(std::fs::read(directory.path().join("back")).unwrap() == model);
            assert_same(&Qcow2Image::open(&path, false).unwrap(), &model);
        }
    }
}

fn config(file: &Path, rest: &str) -> DiskConfig {
    format!("{}{rest}", file.display()).parse().unwrap()
}

#[test]
fn an_overlay_is_made_and_found_again_and_leaves_its_base() {
    let directory = tempfile::tempdir().unwrap();
    let (base, overlay) = (directory.path().join("base"), directory.path().join("over"));
    let mut model = content(3);
    std::fs::write(&base, &model).unwrap();
    let rest = format!(",overlay={}", overlay.display());
    for seed in 0..3 {
        let disk = Qcow2Image::open_overlay(&overlay, &base, belljar_block::Format::Raw).unwrap();
        assert_same(&disk, &model);
        change(&disk, &mut model, seed, 40);
        assert!(matches!(
            open(&config(&base, &rest)),
            Err(BlockError::InUse(_))
        ));
        assert!(matches!(
            open(&config(&base, "")),
            Err(BlockError::InUse(_))
        ));
    }
    assert_eq!(open(&config(&base, &rest)).unwrap().size(), SIZE);
    assert!(std::fs::read(&base).unwrap() == content(3));
    qemu_img(directory.path(), &["check", "-f", "qcow2", "over"]);
    let other = directory.path().join("other");
    std::fs::write(&other, &model).unwrap();
    assert!(matches!(
        open(&config(&other, &rest)),
        Err(BlockError::Image { .. })
    ));
}

#[test]
fn backing_files_are_followed_within_the_directory_only() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let model = content(4);
    std::fs::write(inner.join("raw"), &model).unwrap();
    std::fs::write(directory.path().join("secret"), &model).unwrap();
    std::os::unix::fs::symlink("../secret", inner.join("link")).unwrap();
    let create = |backing: &str, name: &str| {
        let arguments = [
            "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, name, "4M",
        ];
        qemu_img(&inner, &arguments)
    };
    if !create("raw", "good.qcow2") {
        return;
    }
    let mut changed = model;
    let good = Qcow2Image::open(&inner.join("good.qcow2"), false).unwrap();
    assert_same(&good, &changed);
    change(&good, &mut changed, 9, 60);
    assert_same(&good, &changed);
    let secret = directory.path().join("secret");
    for backing in [
        "../secret",
        secret.to_str().unwrap(),
        "link",
        "./../inner/raw",
        "absent",
    ] {
        create(backing, "bad.qcow2");
        let error = open(&config(&inner.join("bad.qcow2"), "")).unwrap_err();
        assert!(
            matches!(error, BlockError::Image { .. } | BlockError::Open { .. }),
            "{backing}: {error}"
        );
    }
    // Two images, each behind the other.
    for (name, backing) in [("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")] {
        let arguments = [
            "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, name, "4M",
        ];
        qemu_img(&inner, &arguments);
    }
    for rest in ["", ",readonly"] {
        open(&config(&inner.join("a.qcow2"), rest)).unwrap_err();
    }
}

#[test]
fn a_raw_disk_that_looks_like_qcow2_is_refused_until_the_format_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let mut bytes = vec![0; 65536];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    std::fs::write(&path, bytes).unwrap();
    let error = open(&config(&path, "")).unwrap_err();
    assert!(matches!(error, BlockError::Ambiguous(_)));
    open(&config(&path, ",format=raw")).unwrap();
    let error = open(&config(&path, ",format=qcow2")).unwrap_err();
    assert!(matches!(error, BlockError::Image { .. }));
}

/// An image with data, as a file that tests damage.
fn image(directory: &Path) -> Option<PathBuf> {
    let path = directory.join("image");
    std::fs::write(directory.join("raw"), &content(5)[..1 << 19]).unwrap();
    let arguments = [
        "convert",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4096",
        "-f",
        "raw",
        "raw",
        "image",
    ];
    qemu_img(directory, &arguments).then_some(path)
}

/// Uses all of a damaged image; only errors may come of it.
fn use_all(path: &Path, read_only: bool) {
    let Ok(disk) = Qcow2Image::open(path, read_only) else {
        return;
    };
    let size = disk.size().min(1 << 19);
    for offset in (0..size).step_by(4096) {
        let len = 4096.min(size - offset);
        let _ = read(&disk, offset, len);
        if !read_only && offset % 12288 == 0 {
            let _ = write(&disk, offset, &vec![3; len as usize]);
        }
        if !read_only && offset % 28672 == 0 {
            let _ = disk.discard(offset, len);
        }
    }
    let _ = read(&disk, disk.size().saturating_sub(512), 512);
    let _ = disk.flush();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 40, ..ProptestConfig::default() })]
    #[test]
    fn damaged_images_give_errors(
        // Where, within the clusters that hold header, tables and refcounts, and what.
        damage in proptest::collection::vec((0usize..8192, prop_oneof![
            any::<u64>(),
            (0u64..200).prop_map(|cluster| 1 << 63 | cluster << 12),
            (0u64..200).prop_map(|cluster| 1 << 62 | cluster << 12),
            0u64..4,
        ]), 1..6),
        cut in proptest::option::of(0u64..600_000),
        read_only: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let Some(path) = image(directory.path()) else { return Ok(()); };
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, value) in damage {
            // The header's fields, or any word of the first clusters.
            let at = if place < 1024 { place % 104 / 8 * 8 } else { place * 8 };
            if let Some(word) = bytes.get_mut(at..at + 8) {
                word.copy_from_slice(&value.to_be_bytes());
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize);
        }
        std::fs::write(&path, bytes).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| use_all(&path, read_only)));
        prop_assert!(result.is_ok(), "it panicked");
    }
}

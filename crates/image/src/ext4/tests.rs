use super::*;
use std::process::Command;
use tempfile::NamedTempFile;

const IDENTITY: Identity = Identity {
    uuid: *b"0123456789abcdef",
    label: "root",
    made: 1_700_000_000,
};
const PLAIN: Attributes = Attributes {
    permissions: 0o644,
    user: 0,
    group: 0,
    modified: 1_600_000_000,
};
const SIZE: u64 = 256 << 20;

/// A file system made by `fill`, in a file of its own.
fn made(size: u64, fill: impl FnOnce(&mut Writer<'_>)) -> NamedTempFile {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(size).unwrap();
    let mut writer = Writer::new(disk.as_file(), 0, size, IDENTITY).unwrap();
    fill(&mut writer);
    writer.finish().unwrap();
    disk
}

/// Runs a program of e2fsprogs on the disk; `None`, said aloud, where this host lacks it.
fn e2fsprogs(program: &str, arguments: &[&str], disk: &NamedTempFile) -> Option<String> {
    let run = |directory: &str| {
        Command::new(format!("{directory}{program}"))
            .args(arguments)
            .arg(disk.path())
            .output()
    };
    let Ok(output) = run("").or_else(|_| run("/sbin/")) else {
        eprintln!("skipped: this host has no {program}");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

fn is_clean(disk: &NamedTempFile) {
    e2fsprogs("e2fsck", &["-fn"], disk);
}

/// What debugfs prints for a command.
fn debugfs(disk: &NamedTempFile, command: &str) -> Option<String> {
    e2fsprogs("debugfs", &["-R", command], disk)
}

#[test]
fn an_empty_file_system_is_clean() {
    for size in [64 << 20, SIZE, (1 << 30) + 4096, 20 << 30] {
        is_clean(&made(size, |_| ()));
    }
}

#[test]
fn files_and_links_are_read_back() {
    let contents: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let disk = made(SIZE, |w| {
        w.directory("usr/bin", PLAIN).unwrap();
        w.symlink("bin", "usr/bin", PLAIN).unwrap();
        w.small_file("bin/program", PLAIN, &contents).unwrap();
        w.small_file("empty", PLAIN, &[]).unwrap();
        w.hard_link("other", "bin/program").unwrap();
        w.symlink("long", &"x/".repeat(100), PLAIN).unwrap();
        w.special("null", Special::Character(1, 3), PLAIN).unwrap();
        w.special("pipe", Special::Fifo, PLAIN).unwrap();
    });
    is_clean(&disk);
    let file = NamedTempFile::new().unwrap();
    let command = format!("dump /usr/bin/program {}", file.path().display());
    if debugfs(&disk, &command).is_some() {
        assert_eq!(std::fs::read(file.path()).unwrap(), contents);
        let stat = debugfs(&disk, "stat /other").unwrap();
        assert!(stat.contains("Links: 2"), "{stat}");
        let stat = debugfs(&disk, "stat /null").unwrap();
        assert!(stat.contains("character special"), "{stat}");
        assert!(stat.contains("01:03"), "{stat}");
    }
}

#[test]
fn owners_and_permissions_are_kept() {
    let attributes = Attributes {
        permissions: 0o4755,
        user: 70_000,
        group: 42,
        modified: 1_234_567_890,
    };
    let disk = made(SIZE, |w| w.small_file("su", attributes, b"x").unwrap());
    is_clean(&disk);
    if let Some(stat) = debugfs(&disk, "stat /su") {
        assert!(stat.contains("Mode:  04755"), "{stat}");
        assert!(stat.contains("User: 70000   Group:    42"), "{stat}");
        assert!(stat.contains("mtime: 0x499602d2"), "{stat}");
    }
}

#[test]
fn large_directories_and_files_in_many_pieces_are_clean() {
    let disk = made(2 << 30, |w| {
        for index in 0..3000 {
            let path = format!("many/{index:0>60}");
            w.small_file(&path, PLAIN, b"1").unwrap();
        }
        // Copies of the superblock lie between, so this one has more pieces than an inode holds.
        let len = 1_200 << 20;
        let mut zeroes = std::io::repeat(0);
        w.file("large", PLAIN, len, &mut zeroes).unwrap();
    });
    is_clean(&disk);
}

#[test]
fn what_is_replaced_gives_its_blocks_back() {
    let disk = made(SIZE, |w| {
        w.small_file("a", PLAIN, &vec![1; 50_000]).unwrap();
        w.small_file("a", PLAIN, &[2; 5_000]).unwrap();
        w.symlink("a", "b", PLAIN).unwrap();
        w.small_file("b", PLAIN, &[2; 5_000]).unwrap();
        w.hard_link("b", "b").unwrap();
    });
    is_clean(&disk);
}

#[test]
fn a_directory_does_not_take_the_place_of_a_link_to_one() {
    let disk = made(SIZE, |w| {
        w.directory("usr/lib", PLAIN).unwrap();
        w.symlink("lib", "usr/lib", PLAIN).unwrap();
        w.directory("lib", PLAIN).unwrap();
        w.directory("lib/x", PLAIN).unwrap();
        w.symlink("usr/lib/x", "elsewhere", PLAIN).unwrap();
        assert!(w.has("usr/lib/x"));
        assert!(!w.has("usr/lib/y"));
    });
    is_clean(&disk);
}

#[test]
fn paths_that_cannot_be_are_refused() {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(SIZE).unwrap();
    let mut writer = Writer::new(disk.as_file(), 0, SIZE, IDENTITY).unwrap();
    writer.small_file("file", PLAIN, b"").unwrap();
    writer.symlink("loop", "loop", PLAIN).unwrap();
    let long = "n".repeat(256);
    let deep = "d/".repeat(3000) + "x";
    for path in [
        "..", "a/..", ".", "a/", "file/x", "loop/x", "a\0b", &long, &deep,
    ] {
        let result = writer.small_file(path, PLAIN, b"");
        assert!(matches!(result, Err(ImageError::BadPlace(_))), "{path:?}");
    }
    writer.finish().unwrap();
    is_clean(&disk);
}

#[test]
fn a_full_disk_is_an_error() {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(SIZE).unwrap();
    let mut writer = Writer::new(disk.as_file(), 0, SIZE, IDENTITY).unwrap();
    let result = writer.file("a", PLAIN, SIZE, &mut std::io::repeat(0));
    assert!(matches!(result, Err(ImageError::DiskFull(_))));
    let small = Writer::new(disk.as_file(), 0, 1 << 20, IDENTITY);
    assert!(matches!(small, Err(ImageError::DiskTooSmall { .. })));
}

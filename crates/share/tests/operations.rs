//! What a guest does to files, and what the host sees of it.

mod guest;

use guest::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tempfile::TempDir;

fn share() -> (TempDir, Guest) {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::mount(directory.path(), false);
    (directory, guest)
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode()
}

#[test]
fn the_two_sides_agree_on_the_protocol() {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = Guest::before_mount(directory.path(), false);
    assert_eq!(
        guest.look_up(ROOT, "a"),
        Err(EIO),
        "nothing before the first message"
    );
    let terms = guest.init();
    assert_eq!(terms.len(), 64 - 16 + 16);
    assert_eq!((u32_at(&terms, 0), u32_at(&terms, 4)), (7, 31));
    assert_eq!(u32_at(&terms, 20), 1 << 20);
    assert_eq!(guest.call(INIT, 0, &u32s(&[6, 0, 0, 0])), Err(71));
    guest.call(DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.look_up(ROOT, "a"), Err(EIO));
}

#[test]
fn a_file_is_made_written_read_and_cut() {
    let (directory, mut guest) = share();
    let at = directory.path().join("a");
    let (node, handle) = guest.create(ROOT, "a", 0o664).unwrap();
    assert_eq!(mode(&at), 0o100_664, "whatever the umask of this process");
    assert_eq!(guest.write(handle, 3, b"text", 0), Ok(4));
    assert_eq!(fs::read(&at).unwrap(), b"\0\0\0text");
    assert_eq!(guest.read(handle, 2, 100).unwrap(), b"\0text");
    assert_eq!(guest.read(handle, 7, 100).unwrap(), b"");
    guest.set(node, 1 << 3, 5, 0, 0).unwrap();
    assert_eq!(guest.write(handle, 0, b"end", O_APPEND), Ok(3));
    assert_eq!(fs::read(&at).unwrap(), b"\0\0\0teend");
    guest.call(FSYNC, 0, &u64s(&[handle, 1])).unwrap();
    guest.call(SYNCFS, ROOT, &u64s(&[0])).unwrap();
    guest.release(handle).unwrap();
    assert_eq!(guest.release(handle), Err(EBADF));
    assert_eq!(guest.read(handle, 0, 1), Err(EBADF));
    let reader = guest.open(node, O_RDONLY).unwrap();
    assert_eq!(guest.write(reader, 0, b"x", 0), Err(EBADF));
    assert_eq!(guest.read(reader, u64::MAX, 1), Err(EINVAL));
    assert_eq!(guest.open(node, 3), Err(EINVAL));
}

#[test]
fn creating_what_is_there_opens_it_unless_it_must_be_new() {
    let (directory, mut guest) = share();
    fs::write(directory.path().join("a"), "old").unwrap();
    let (_, handle) = guest.create(ROOT, "a", 0o644).unwrap();
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"old");
    let body = [u32s(&[O_RDWR | O_EXCL, 0o644, 0, 0]), name("a")].concat();
    assert_eq!(guest.call(CREATE, ROOT, &body), Err(EEXIST));
}

#[test]
fn names_are_made_moved_and_removed() {
    let (directory, mut guest) = share();
    let at = |path: &str| directory.path().join(path);
    let body = [u32s(&[0o2775, 0]), name("d")].concat();
    let d = u64_at(&guest.call(MKDIR, ROOT, &body).unwrap(), 0);
    assert_eq!(mode(at("d")), 0o042_775);
    let (file, _) = guest.create(d, "a", 0o600).unwrap();
    guest.rename((d, "a"), (ROOT, "b"), 0).unwrap();
    assert!(at("b").is_file() && !at("d/a").exists());
    assert_eq!(guest.look_up(ROOT, "b"), Ok(file), "it is the same node");
    let link = [u64s(&[file]), name("c")].concat();
    guest.call(LINK, d, &link).unwrap();
    assert_eq!(fs::metadata(at("d/c")).unwrap().nlink(), 2);
    assert_eq!(guest.call(RMDIR, ROOT, &name("d")), Err(ENOTEMPTY));
    assert_eq!(guest.rename((ROOT, "b"), (d, "c"), 1), Err(EEXIST));
    fs::write(at("x"), "x").unwrap();
    guest.rename((ROOT, "x"), (d, "c"), 2).unwrap();
    assert_eq!(fs::read(at("d/c")).unwrap(), b"x");
    assert_eq!(guest.rename((ROOT, "x"), (d, "c"), 4), Err(EINVAL));
    guest.call(UNLINK, d, &name("c")).unwrap();
    guest.call(RMDIR, ROOT, &name("d")).unwrap();
    assert!(!at("d").exists());
    assert_eq!(guest.call(UNLINK, ROOT, &name("none")), Err(ENOENT));
    let old = [u64s(&[ROOT]), name("b"), name("e")].concat();
    guest.call(RENAME, ROOT, &old).unwrap();
    assert!(at("e").is_file());
}

#[test]
fn links_are_texts() {
    let (directory, mut guest) = share();
    let body = [name("l"), name("/etc/../any thing")].concat();
    guest.call(SYMLINK, ROOT, &body).unwrap();
    let at = directory.path().join("l");
    assert_eq!(fs::read_link(&at).unwrap(), Path::new("/etc/../any thing"));
    let link = guest.look_up(ROOT, "l").unwrap();
    assert_eq!(
        guest.call(READLINK, link, &[]).unwrap(),
        b"/etc/../any thing"
    );
    assert_eq!(guest.call(READLINK, ROOT, &[]), Err(EINVAL));
    guest.set(link, 1 << 5, 0, 0, 0).unwrap();
    assert_eq!(fs::symlink_metadata(&at).unwrap().mtime(), 2_000);
    assert_eq!(guest.set(link, 1, 0, 0o777, 0), Err(EOPNOTSUPP));
}

#[test]
fn attributes_are_the_hosts_and_owners_stay() {
    let (directory, mut guest) = share();
    let at = directory.path().join("a");
    let (node, _) = guest.create(ROOT, "a", 0o6755).unwrap();
    assert_eq!(mode(&at), 0o100_755, "no bits that lend rights");
    guest.set(node, 1, 0, 0o106_751, 0).unwrap();
    assert_eq!(mode(&at), 0o100_751);
    guest.set(node, 1 << 4 | 1 << 5, 0, 0, 0).unwrap();
    let host = fs::metadata(&at).unwrap();
    assert_eq!((host.atime(), host.atime_nsec()), (1_000, 1));
    assert_eq!((host.mtime(), host.mtime_nsec()), (2_000, 2));
    let attributes = guest.call(GETATTR, node, &[0; 16]).unwrap();
    assert_eq!(attributes.len(), 104);
    assert_eq!(u64_at(&attributes, 16), host.ino());
    assert_eq!(u64_at(&attributes, 16 + 32), 2_000);
    assert_eq!(u32_at(&attributes, 16 + 60), host.mode());
    assert_eq!(u32_at(&attributes, 16 + 68), host.uid());
    guest.set(node, 1 << 1 | 1 << 2, 0, 0, host.uid()).unwrap();
    assert_eq!(guest.set(node, 1 << 1, 0, 0, host.uid() + 1), Err(EPERM));
    let statistics = guest.call(STATFS, ROOT, &[]).unwrap();
    assert_eq!((statistics.len(), u32_at(&statistics, 44)), (80, 255));
}

#[test]
fn whoever_writes_a_program_takes_its_rights_away() {
    let (directory, mut guest) = share();
    let at = directory.path().join("a");
    fs::write(&at, "program").unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o6755)).unwrap();
    let node = guest.look_up(ROOT, "a").unwrap();
    let handle = guest.open(node, O_WRONLY).unwrap();
    assert_eq!(mode(&at), 0o106_755);
    guest.write(handle, 0, b"other", 0).unwrap();
    assert_eq!(mode(&at), 0o100_755);
}

#[test]
fn a_large_directory_is_listed_whole_in_pieces_of_any_size() {
    let (directory, mut guest) = share();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for number in 0..1000 {
        let name = format!("{}{number}", "x".repeat(number % 50));
        fs::write(directory.path().join(&name), "").unwrap();
        expected.push(name);
    }
    expected.sort();
    for size in [88, 500, 4096, 1 << 20] {
        let mut names = guest.list(ROOT, size).unwrap();
        names.sort();
        assert_eq!(names, expected, "{size}");
    }
    let file = guest.look_up(ROOT, &expected[2]).unwrap();
    assert_eq!(guest.list(file, 4096), Err(ENOTDIR));
}

#[test]
fn a_thousand_nodes_need_few_descriptors() {
    let (directory, mut guest) = share();
    for number in 0..1000 {
        fs::write(
            directory.path().join(number.to_string()),
            number.to_string(),
        )
        .unwrap();
    }
    let nodes: Vec<u64> = (0..1000)
        .map(|number| guest.look_up(ROOT, &number.to_string()).unwrap())
        .collect();
    for (number, node) in nodes.iter().enumerate() {
        let handle = guest.open(*node, O_RDONLY).unwrap();
        let text = number.to_string();
        assert_eq!(guest.read(handle, 0, 9).unwrap(), text.as_bytes());
        guest.release(handle).unwrap();
    }
}

#[test]
fn handles_are_bounded() {
    let (_directory, mut guest) = share();
    let (node, first) = guest.create(ROOT, "a", 0o644).unwrap();
    let mut count = 1;
    let error = loop {
        match guest.open(node, O_RDONLY) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = limit.map_or(512, |limit| (limit / 16).min(512));
    assert_eq!((count, error), (most, ENFILE));
    guest.release(first).unwrap();
    guest.open(node, O_RDONLY).unwrap();
}

#[test]
fn a_removed_file_can_be_used_as_long_as_it_is_open() {
    let (_directory, mut guest) = share();
    let (node, handle) = guest.create(ROOT, "a", 0o644).unwrap();
    guest.call(UNLINK, ROOT, &name("a")).unwrap();
    assert_eq!(guest.write(handle, 0, b"still", 0), Ok(5));
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"still");
    guest.set(node, 1 << 3 | 1 << 6, 2, 0, 0).unwrap_err();
    guest.set(node, 1 << 3, 2, 0, 0).unwrap();
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"st");
}

#[test]
fn holes_are_made_and_found() {
    let (directory, mut guest) = share();
    let (_, handle) = guest.create(ROOT, "a", 0o644).unwrap();
    let body = [u64s(&[handle, 0, 1 << 20]), u32s(&[0, 0])].concat();
    guest.call(FALLOCATE, 0, &body).unwrap();
    assert_eq!(
        fs::metadata(directory.path().join("a")).unwrap().len(),
        1 << 20
    );
    let strange = [u64s(&[handle, 0, 4096]), u32s(&[8, 0])].concat();
    assert_eq!(guest.call(FALLOCATE, 0, &strange), Err(EOPNOTSUPP));
    let seek = [u64s(&[handle, 4096]), u32s(&[4, 0])].concat();
    let hole = u64_at(&guest.call(LSEEK, 0, &seek).unwrap(), 0);
    assert!((4096..=1 << 20).contains(&hole));
    let seek = [u64s(&[handle, 0]), u32s(&[0, 0])].concat();
    assert_eq!(guest.call(LSEEK, 0, &seek), Err(EINVAL));
}

#[test]
fn a_guest_that_may_only_read_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a"), "text").unwrap();
    let mut guest = Guest::mount(directory.path(), true);
    let a = guest.look_up(ROOT, "a").unwrap();
    let handle = guest.open(a, O_RDONLY).unwrap();
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"text");
    assert_eq!(guest.list(ROOT, 4096).unwrap().len(), 3);
    for flags in [O_WRONLY, O_RDWR] {
        assert_eq!(guest.open(a, flags), Err(EROFS));
    }
    assert_eq!(guest.write(handle, 0, b"x", 0), Err(EROFS));
    assert_eq!(guest.create(ROOT, "b", 0o644), Err(EROFS));
    assert_eq!(guest.set(a, 1 << 3, 0, 0, 0), Err(EROFS));
    assert_eq!(guest.rename((ROOT, "a"), (ROOT, "b"), 0), Err(EROFS));
    assert_eq!(guest.call(UNLINK, ROOT, &name("a")), Err(EROFS));
    assert_eq!(guest.call(RMDIR, ROOT, &name("a")), Err(EROFS));
    let two = [u32s(&[0o755, 0]), name("b")].concat();
    assert_eq!(guest.call(MKDIR, ROOT, &two), Err(EROFS));
    let node = [u32s(&[0o100_644, 0, 0, 0]), name("b")].concat();
    assert_eq!(guest.call(MKNOD, ROOT, &node), Err(EROFS));
    let link = [name("b"), name("a")].concat();
    assert_eq!(guest.call(SYMLINK, ROOT, &link), Err(EROFS));
    let link = [u64s(&[a]), name("b")].concat();
    assert_eq!(guest.call(LINK, ROOT, &link), Err(EROFS));
    let allocate = [u64s(&[handle, 0, 9]), u32s(&[0, 0])].concat();
    assert_eq!(guest.call(FALLOCATE, 0, &allocate), Err(EROFS));
    assert_eq!(fs::read(directory.path().join("a")).unwrap(), b"text");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn what_there_is_not_is_refused_and_said_so() {
    let (_directory, mut guest) = share();
    assert_eq!(guest.call(GETXATTR, ROOT, &[0; 16]), Err(ENOSYS));
    assert_eq!(guest.call(9_999, ROOT, &[]), Err(ENOSYS));
}

#[test]
fn pipes_and_devices_are_seen_and_neither_made_nor_opened() {
    let (directory, mut guest) = share();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let entry = guest.call(LOOKUP, ROOT, &name("pipe")).unwrap();
    assert_eq!(u32_at(&entry, 40 + 60) & 0o170_000, 0o010_000);
    // With both ends open here, opening it would not even wait.
    let _ends = fs::File::options()
        .read(true)
        .write(true)
        .open(directory.path().join("pipe"))
        .unwrap();
    for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
        assert_eq!(guest.open(u64_at(&entry, 0), flags), Err(EACCES));
    }
    assert_eq!(guest.create(ROOT, "pipe", 0o644), Err(EACCES));
    assert_eq!(guest.set(u64_at(&entry, 0), 1 << 3, 0, 0, 0), Err(EACCES));
    for kind in [0o010_000, 0o020_000, 0o060_000, 0o140_000] {
        let body = [u32s(&[kind | 0o644, 0x103, 0, 0]), name("new")].concat();
        assert_eq!(guest.call(MKNOD, ROOT, &body), Err(EPERM));
    }
    let pipe = fs::symlink_metadata(directory.path().join("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    let body = [u32s(&[0o100_640, 0, 0, 0]), name("file")].concat();
    guest.call(MKNOD, ROOT, &body).unwrap();
    assert_eq!(mode(directory.path().join("file")), 0o100_640);
}

#[test]
fn a_saved_server_goes_on_where_it_was() {
    let (directory, mut guest) = share();
    fs::create_dir(directory.path().join("d")).unwrap();
    let d = guest.look_up(ROOT, "d").unwrap();
    let (file, handle) = guest.create(d, "a", 0o644).unwrap();
    guest.write(handle, 0, b"before", 0).unwrap();
    let (_, lost) = guest.create(ROOT, "lost", 0o644).unwrap();
    guest.call(UNLINK, ROOT, &name("lost")).unwrap();
    symlink("/", directory.path().join("l")).unwrap();
    let link = guest.look_up(ROOT, "l").unwrap();
    let state = guest.server.save();
    let config = belljar_share::ShareConfig::new(directory.path());
    guest.server = belljar_share::FileServer::restore(&config, state.clone()).unwrap();
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"before");
    assert_eq!(guest.write(handle, 6, b"!", 0), Ok(1));
    assert_eq!(guest.read(lost, 0, 9), Err(EBADF));
    assert_eq!(guest.look_up(d, "a"), Ok(file));
    assert_eq!(guest.call(READLINK, link, &[]).unwrap(), b"/");
    let (new, handle) = guest.create(d, "new", 0o644).unwrap();
    assert!(new > link && handle > lost);
    assert_eq!(guest.server.save().clone(), guest.server.save());
}

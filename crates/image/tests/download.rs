//! Makes the default guest and a tree of packages for real: needs apt, a source of Debian's packages and the network.

use belljar_image::{Store, Tree, packages};
use std::fs;
use std::process::Command;

/// Whether `bytes` has the signatures of a Linux bzImage.
fn is_linux(bytes: &[u8]) -> bool {
    bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && bytes.get(0x202..0x206) == Some(b"HdrS")
}

#[test]
fn the_guest_of_the_hosts_suite_is_fetched_once_and_then_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path());

    let guest = store.guest(None).unwrap();
    let initrd = fs::read(&guest.initrd).unwrap();
    assert!(is_linux(&fs::read(&guest.kernel).unwrap()));
    assert!(initrd.starts_with(b"070701"));
    assert!(initrd.windows(4).any(|w| w == b"\x7fELF"), "busybox");

    let fetched = fs::metadata(&guest.kernel).unwrap().modified().unwrap();
    let again = store.guest(Some(&guest.suite)).unwrap();
    assert_eq!(again, guest);
    let kept = fs::metadata(&again.kernel).unwrap().modified().unwrap();
    assert_eq!(kept, fetched);

    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let lock = format!("{}.lock", guest.suite);
    assert_eq!(names, [guest.suite, lock], "nothing else is left");
}

#[test]
fn a_suite_that_the_mirror_lacks_is_refused_with_apts_reason() {
    let directory = tempfile::tempdir().unwrap();
    let error = Store::at(directory.path())
        .guest(Some("nosuchsuite"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("nosuchsuite Release"), "{error}");
    assert!(error.contains("--kernel"), "{error}");
}

#[test]
fn a_tree_of_packages_holds_what_a_program_needs_to_run() {
    let directory = tempfile::tempdir().unwrap();
    let debs = packages(directory.path(), None, &["dash"]).unwrap();
    let mut tree = Tree::of_packages(&debs, |path| path.starts_with("usr/")).unwrap();
    tree.keep(|path| path == "usr/bin/sh").unwrap();
    assert!(!tree.has(|path| path.starts_with("usr/share/doc/")));

    let root = directory.path().join("root");
    tree.write_to(&root).unwrap();
    let libraries = root.join("lib/x86_64-linux-gnu");
    let output = Command::new(libraries.join("ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(&libraries)
        .arg(root.join("bin/sh"))
        .args(["-c", "echo it runs"])
        .output();
    assert_eq!(output.unwrap().stdout, b"it runs\n");
}

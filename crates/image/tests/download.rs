//! Makes the default guest for real: needs apt, a source of Debian's packages and the network.

use belljar_image::Store;
use std::fs;

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

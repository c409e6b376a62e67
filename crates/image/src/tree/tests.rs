use super::*;
use crate::cpio;
use std::os::unix::fs::PermissionsExt;

fn link(tree: &mut Tree, path: &str, target: &str) {
    tree.add(path, Node::Symlink(target.to_owned())).unwrap();
}

/// A dynamic program: this one.
fn program() -> Vec<u8> {
    fs::read(std::env::current_exe().unwrap()).unwrap()
}

/// A tree with a dynamic program and empty files for all that it needs, but for the C library.
fn tree_without_libc() -> Tree {
    let mut tree = Tree::new();
    let needs = elf::needs(&program()).unwrap();
    tree.file("usr/bin/program", true, &program()).unwrap();
    for name in needs.libraries.iter().filter(|name| *name != "libc.so.6") {
        let path = format!("usr/lib/x86_64-linux-gnu/{name}");
        tree.file(&path, false, b"").unwrap();
    }
    link(
        &mut tree,
        "usr/lib64/ld-linux-x86-64.so.2",
        "/lib/x86_64-linux-gnu/ld.so",
    );
    tree.file("usr/lib/x86_64-linux-gnu/ld.so", true, b"")
        .unwrap();
    tree
}

#[test]
fn a_program_keeps_its_linker_and_libraries_and_nothing_else() {
    let mut tree = tree_without_libc();
    tree.file("usr/lib/libc.so.6", false, b"").unwrap();
    tree.file("usr/lib/libother.so.1", false, b"").unwrap();
    tree.file("usr/share/doc/program", false, b"").unwrap();
    tree.keep(|path| path == "usr/bin/program").unwrap();
    assert!(tree.has(|path| path == "usr/bin/program"));
    assert!(tree.has(|path| path == "usr/lib/libc.so.6"));
    assert!(tree.has(|path| path == "usr/lib/x86_64-linux-gnu/ld.so"));
    assert!(!tree.has(|path| path.contains("other") || path.contains("share")));
}

#[test]
fn a_missing_library_is_named_with_the_program() {
    let mut tree = tree_without_libc();
    let error = tree.keep(|path| path == "usr/bin/program").unwrap_err();
    assert_eq!(
        error.to_string(),
        "usr/bin/program needs libc.so.6, which no package has"
    );
}

#[test]
fn scripts_and_links_keep_what_they_lead_to() {
    let mut tree = Tree::new();
    tree.file("usr/bin/run", true, b"#! /bin/sh -e\n").unwrap();
    link(&mut tree, "usr/bin/sh", "dash");
    link(&mut tree, "usr/bin/dash", "../share/current/dash");
    link(&mut tree, "usr/share/current", "v1");
    tree.file("usr/share/v1/dash", true, b"").unwrap();
    tree.file("usr/share/v1/other", true, b"").unwrap();
    tree.keep(|path| path == "usr/bin/run").unwrap();
    assert!(tree.has(|path| path == "usr/share/v1/dash"));
    assert!(tree.nodes.contains_key("usr/share/current"));
    assert!(!tree.has(|path| path == "usr/share/v1/other"));
}

#[test]
fn links_in_a_circle_are_refused() {
    let mut tree = Tree::new();
    link(&mut tree, "usr/a", "b/x");
    link(&mut tree, "usr/b", "b/y");
    let result = tree.keep(|path| path == "usr/a");
    assert!(matches!(result, Err(ImageError::Incomplete { .. })));
}

#[test]
fn names_that_lead_out_of_the_tree_and_files_as_directories_are_refused() {
    let mut tree = Tree::new();
    tree.file("etc/passwd", false, b"").unwrap();
    link(&mut tree, "usr/share/link", "/etc");
    for path in [
        "",
        "/etc/x",
        "a/../../x",
        "a//b",
        "etc/passwd/x",
        "usr/share/link/x",
        "etc",
    ] {
        let result = tree.file(path, false, b"");
        assert!(matches!(result, Err(ImageError::BadPlace(_))), "{path:?}");
    }
    assert!(tree.directory("etc/passwd").is_err());
}

#[test]
fn a_tree_is_the_same_on_the_disk_and_in_an_archive() {
    let mut tree = Tree::new();
    tree.file("bench/run", true, b"#!/bin/sh\n").unwrap();
    tree.file("bench/data", false, b"data").unwrap();
    tree.directory("tmp").unwrap();
    link(&mut tree, "usr/bin/sh", "dash");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    tree.write_to(&root).unwrap();
    let entries = cpio::tests::read(&tree.archive().unwrap().finish());
    for entry in &entries {
        let place = root.join(&entry.name);
        let metadata = fs::symlink_metadata(&place).unwrap();
        assert_eq!(
            metadata.permissions().mode() & 0o170_111,
            entry.mode & 0o170_111
        );
        if metadata.is_file() {
            assert_eq!(fs::read(&place).unwrap(), entry.data);
        }
        if metadata.is_symlink() {
            let target = fs::read_link(&place).unwrap();
            assert_eq!(target.to_str().unwrap().as_bytes(), entry.data);
        }
    }
    assert!(entries.iter().any(|entry| entry.name == "bench/run"));
    assert!(tree.write_to(&root).is_err(), "it is there already");
}

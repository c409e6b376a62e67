//! Shared directories in guests whose kernels are Debian's.

mod command;
mod started;

use started::Guest;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Starts the guest of `suite` with shares, and mounts each at `/` and its tag.
fn start(suite: &str, shares: &[(&Path, &str)]) -> Guest {
    let options = shares
        .iter()
        .map(|(directory, options)| format!("{},tag={options}", directory.display()));
    let flags: Vec<String> = options
        .flat_map(|share| ["--share".to_owned(), share])
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let guest = Guest::start(suite, &flags);
    for (_, options) in shares {
        let tag = options.split(',').next().unwrap();
        succeed(
            &guest,
            &format!("mkdir /{tag} && mount -t virtiofs {tag} /{tag}"),
        );
    }
    guest
}

/// Runs a script that must succeed, and gives what it prints.
fn succeed(guest: &Guest, script: &str) -> String {
    let (status, output, errors) = guest.shell(script);
    assert_eq!(status, Some(0), "{script}: {output}{errors}");
    output
}

/// Runs a command that must fail and say `error`.
fn refused(guest: &Guest, command: &str, error: &str) {
    let (status, output, errors) = guest.shell(command);
    assert_ne!(status, Some(0), "{command}: {output}");
    assert!(errors.contains(error), "{command}: {errors}");
}

#[test]
fn a_guest_and_its_host_see_the_same_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let large: Vec<u8> = (0..2_u32 << 20).flat_map(u32::to_le_bytes).collect();
    fs::write(at("host"), "from the host\n").unwrap();
    fs::write(at("large"), &large).unwrap();
    let guest = start("bookworm", &[(directory.path(), "work")]);

    assert_eq!(succeed(&guest, "cat /work/host"), "from the host\n");
    succeed(
        &guest,
        "cd /work && echo from the guest > new && mkdir -p a/b && mv new a/b/moved && \
         cp large copy && echo more >> host && ln host hard && ln -s a/b/moved soft && \
         cp /bin/busybox . && ./busybox true && truncate -s 5 a/b/moved",
    );
    let text = |name: &str| fs::read_to_string(at(name)).unwrap();
    assert!(!at("new").exists());
    assert_eq!(text("a/b/moved"), "from ");
    assert_eq!(fs::read_link(at("soft")).unwrap(), Path::new("a/b/moved"));
    assert_eq!(text("hard"), "from the host\nmore\n");
    assert!(fs::read(at("copy")).unwrap() == large);
    assert_eq!(succeed(&guest, "cat /work/soft"), "from ");

    // What the host changes the guest sees, too.
    fs::write(at("host"), "changed, and longer than before it was\n").unwrap();
    fs::rename(at("a/b"), at("a/c")).unwrap();
    assert_eq!(
        succeed(&guest, "cat /work/host"),
        "changed, and longer than before it was\n"
    );
    assert_eq!(
        succeed(&guest, "cd /work/a && ls && cat c/moved"),
        "c\nfrom "
    );

    succeed(
        &guest,
        "mkdir /work/many && cd /work/many && i=0 && \
         while [ $i -lt 1000 ]; do echo $i > file$i; i=$((i + 1)); done",
    );
    let mut numbers: Vec<u32> = fs::read_dir(at("many"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .map(|text| text.trim().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<u32>>());
    let script = "echo 3 > /proc/sys/vm/drop_caches; cd /work/many; ls | wc -l; cat file* | \
                  sort -n | tail -n 1";
    assert_eq!(succeed(&guest, script), "1000\n999\n");

    succeed(
        &guest,
        "cd /work && rm -r many a copy hard soft busybox large",
    );
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    succeed(&guest, "umount /work");
}

#[test]
fn a_guest_reaches_nothing_else_and_changes_nothing_that_it_may_only_read() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().to_str().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("secret"), "the host's").unwrap();
    for share in ["work", "data"] {
        fs::create_dir(at(share)).unwrap();
        fs::write(at(share).join("file"), "here").unwrap();
        symlink(at("secret"), at(share).join("absolute")).unwrap();
        symlink("../secret", at(share).join("relative")).unwrap();
        symlink("..", at(share).join("up")).unwrap();
    }
    let guest = start(
        "trixie",
        &[(&at("work"), "work"), (&at("data"), "data,readonly")],
    );

    // Links lead to files of the guest, if anywhere.
    for share in ["work", "data"] {
        for path in ["relative", "absolute", "up/secret", "../secret"] {
            refused(&guest, &format!("cat /{share}/{path}"), "No such file");
        }
    }
    let script = format!(
        "mkdir -p {outside} && echo the guests > {outside}/secret && cat /work/absolute && \
         cp {outside}/secret /secret && cat /data/relative /work/up/secret && \
         echo changed > /work/relative && rm /work/relative && \
         ln -s {outside}/secret /work/made && echo changed > /work/made"
    );
    assert_eq!(succeed(&guest, &script), "the guests\n".repeat(3));
    assert_eq!(fs::read_to_string(at("secret")).unwrap(), "the host's");
    assert_eq!(fs::read_link(at("work/made")).unwrap(), at("secret"));

    // No devices, and no programs with the rights of the host's user.
    refused(&guest, "mknod /work/null c 1 3", "not permitted");
    refused(&guest, "mknod /work/pipe p", "not permitted");
    succeed(&guest, "cp /bin/busybox /work/su && chmod 6755 /work/su");
    let mode = fs::metadata(at("work/su")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);

    assert_eq!(succeed(&guest, "cat /data/file"), "here");
    for command in [
        "echo x > /data/new",
        "echo x >> /data/file",
        "truncate -s 0 /data/file",
        "rm /data/file",
        "mv /data/file /data/moved",
        "mkdir /data/new",
        "ln /data/file /data/new",
        "ln -s x /data/new",
        "chmod 777 /data/file",
        "touch -d 2000-01-01 /data/file",
    ] {
        refused(&guest, command, "Read-only");
    }
    assert_eq!(fs::read_dir(at("data")).unwrap().count(), 4);
    assert_eq!(fs::read_to_string(at("data/file")).unwrap(), "here");
}

//! A guest that wants out.

mod guest;

use guest::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

const SECRET: &[u8] = b"nobody's business";

/// A directory that is shared, beside one that is not.
struct House {
    directory: TempDir,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let house = Self { directory };
        fs::create_dir(house.shared()).unwrap();
        fs::create_dir(house.private()).unwrap();
        fs::write(house.private().join("secret"), SECRET).unwrap();
        house
    }

    fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    fn private(&self) -> PathBuf {
        self.directory.path().join("private")
    }

    /// Whether all outside the shared directory is as it was.
    fn check(&self) {
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.directory.path()), ["private", "shared"]);
        assert_eq!(names(&self.private()), ["secret"]);
        assert_eq!(fs::read(self.private().join("secret")).unwrap(), SECRET);
    }
}

#[test]
fn a_name_is_no_path() {
    let house = House::new();
    let mut guest = Guest::mount(&house.shared(), false);
    fs::create_dir(house.shared().join("d")).unwrap();
    let d = guest.look_up(ROOT, "d").unwrap();
    for bad in [
        "..",
        ".",
        "",
        "/",
        "../private",
        "/etc/passwd",
        "d/../../private/secret",
        "d/",
    ] {
        for node in [ROOT, d] {
            assert_eq!(guest.look_up(node, bad), Err(EINVAL), "{bad}");
            assert_eq!(guest.create(node, bad, 0o644), Err(EINVAL), "{bad}");
            assert_eq!(guest.call(UNLINK, node, &name(bad)), Err(EINVAL), "{bad}");
            assert_eq!(
                guest.rename((ROOT, "d"), (node, bad), 0),
                Err(EINVAL),
                "{bad}"
            );
            assert_eq!(
                guest.rename((node, bad), (ROOT, "x"), 0),
                Err(EINVAL),
                "{bad}"
            );
            let link = [name(bad), name("x")].concat();
            assert_eq!(guest.call(SYMLINK, node, &link), Err(EINVAL), "{bad}");
            let link = [u64s(&[d]), name(bad)].concat();
            assert_eq!(guest.call(LINK, node, &link), Err(EINVAL), "{bad}");
            for opcode in [MKDIR, RMDIR] {
                let head = if opcode == MKDIR {
                    u32s(&[0o755, 0])
                } else {
                    Vec::new()
                };
                let body = [head, name(bad)].concat();
                assert_eq!(guest.call(opcode, node, &body), Err(EINVAL), "{bad}");
            }
        }
    }
    house.check();
}

#[test]
fn links_lead_nowhere() {
    let house = House::new();
    symlink(house.private(), house.shared().join("absolute")).unwrap();
    symlink("../private", house.shared().join("relative")).unwrap();
    symlink("../private/secret", house.shared().join("file")).unwrap();
    symlink("../private/new", house.shared().join("dangling")).unwrap();
    symlink("/proc/self/root", house.shared().join("magic")).unwrap();
    let mut guest = Guest::mount(&house.shared(), false);
    for link in ["absolute", "relative", "magic", "file", "dangling"] {
        let node = guest.look_up(ROOT, link).unwrap();
        assert_eq!(guest.look_up(node, "secret"), Err(ENOTDIR), "{link}");
        assert_eq!(guest.create(node, "new", 0o644), Err(ENOTDIR), "{link}");
        assert_eq!(guest.call(UNLINK, node, &name("secret")), Err(ENOTDIR));
        assert_eq!(guest.list(node, 4096), Err(ENOTDIR), "{link}");
        assert_eq!(guest.open(node, O_RDONLY), Err(ELOOP), "{link}");
        assert_eq!(guest.create(ROOT, link, 0o644), Err(ELOOP), "{link}");
        assert_eq!(guest.set(node, 1 << 3, 0, 0, 0), Err(ELOOP), "{link}");
        let hard = [u64s(&[node]), name("hard")].concat();
        guest.call(LINK, ROOT, &hard).unwrap();
        let hard = guest.look_up(ROOT, "hard").unwrap();
        assert_eq!(guest.open(hard, O_RDONLY), Err(ELOOP), "{link}");
        guest.call(UNLINK, ROOT, &name("hard")).unwrap();
    }
    house.check();
}

/// Says that something has ended, however it does.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The host, or another machine of the guest, changes a directory for a link all the time.
#[test]
fn who_renames_meanwhile_opens_no_way_out() {
    let house = House::new();
    let (inside, link) = (house.shared().join("d"), house.shared().join("l"));
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("secret"), "harmless").unwrap();
    symlink(house.private(), &link).unwrap();
    let ended = AtomicBool::new(false);
    let mut opened = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cwd = rustix::fs::CWD;
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !ended.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(cwd, &inside, cwd, &link, exchange).unwrap();
            }
        });
        let _end = End(&ended);
        let mut guest = Guest::mount(&house.shared(), false);
        for round in 0..5_000 {
            let Ok(directory) = guest.look_up(ROOT, "d") else {
                continue;
            };
            if let Ok(node) = guest.look_up(directory, "secret")
                && let Ok(handle) = guest.open(node, O_RDWR)
            {
                assert_eq!(guest.read(handle, 0, 99).unwrap(), b"harmless");
                guest.release(handle).unwrap();
                opened += 1;
            }
            if let Ok((_, handle)) = guest.create(directory, "new", 0o644) {
                guest.release(handle).unwrap();
            }
            // Without a descriptor the node has to be found again by its place.
            if round % 7 == 0 {
                let state = guest.server.save();
                let config = belljar_share::ShareConfig::new(house.shared());
                guest.server = belljar_share::FileServer::restore(&config, state).unwrap();
            }
        }
    });
    assert!(opened > 0, "the right one is found now and then");
    house.check();
}

/// What a hostile guest sends: often nearly right.
#[derive(Clone, Debug)]
struct Wild {
    opcode: u32,
    node: u64,
    body: Vec<u8>,
    /// What the header says too much, and what of the message is not there.
    lies: u32,
    cut: usize,
    room: usize,
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "a",
        "b",
        "d",
        "l",
        "..",
        ".",
        "../private",
        "../private/secret",
        "secret",
        "",
        "x",
    ];
    prop_oneof![
        8 => proptest::sample::select(names.to_vec()).prop_map(name),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ]
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..9, 1 => any::<u64>(), 1 => Just(1 << 40)]
}

/// Operations that name something, with how many times eight bytes come before the name.
const NAMING: [(u32, usize); 9] = [
    (LOOKUP, 0),
    (UNLINK, 0),
    (RMDIR, 0),
    (SYMLINK, 0),
    (MKDIR, 1),
    (RENAME, 1),
    (LINK, 1),
    (RENAME2, 2),
    (CREATE, 2),
];

fn nodes() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(ROOT), 8 => 0_u64..9, 1 => any::<u64>()]
}

fn wild() -> impl Strategy<Value = Wild> {
    let parts = (
        proptest::collection::vec(numbers(), 0..6),
        names(),
        names(),
        proptest::collection::vec(any::<u8>(), 0..64),
    );
    let any_operation = prop_oneof![20 => 1_u32..53, 1 => any::<u32>()];
    let operation = prop_oneof![
        any_operation.prop_map(|opcode| (opcode, None)),
        proptest::sample::select(NAMING.to_vec()).prop_map(|(opcode, count)| (opcode, Some(count))),
    ];
    let message =
        (operation, parts).prop_map(|((opcode, count), (mut numbers, first, second, rest))| {
            if let Some(count) = count {
                numbers.resize(count, ROOT);
            }
            (opcode, [u64s(&numbers), first, second, rest].concat())
        });
    (
        message,
        nodes(),
        prop_oneof![9 => Just(0), 1 => any::<u32>()],
        prop_oneof![9 => Just(0), 1 => 0_usize..100],
        prop_oneof![9 => Just(1 << 20), 1 => 0_usize..200],
    )
        .prop_map(|((opcode, body), node, lies, cut, room)| Wild {
            opcode,
            node,
            body,
            lies,
            cut,
            room,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any messages: no panic, no answer that is too long or tells a secret, and all outside is as
    /// it was.
    #[test]
    fn a_hostile_guest_gets_nowhere(
        messages in proptest::collection::vec(wild(), 1..60), read_only: bool
    ) {
        let house = House::new();
        fs::create_dir(house.shared().join("d")).unwrap();
        fs::write(house.shared().join("a"), "inside").unwrap();
        symlink("../private", house.shared().join("l")).unwrap();
        let mut guest = Guest::mount(&house.shared(), read_only);
        for text in ["d", "a", "l"] {
            guest.look_up(ROOT, text).unwrap();
        }
        let mut reply = Vec::new();
        for wild in messages {
            let mut body = wild.body;
            // The host's disk is not to be filled.
            if wild.opcode == FALLOCATE
                && let Some(len) = body.get_mut(18..24)
            {
                len.fill(0);
            }
            let mut bytes = message(wild.opcode, 1, wild.node, &body);
            bytes.truncate(bytes.len().saturating_sub(wild.cut));
            if let Some(len) = bytes.first_chunk_mut::<4>() {
                *len = u32::from_le_bytes(*len)
                    .wrapping_sub(wild.cut as u32)
                    .wrapping_add(wild.lies)
                    .to_le_bytes();
            }
            guest.server.handle(&bytes, wild.room, &mut reply);
            prop_assert!(reply.len() <= wild.room);
            prop_assert!(!reply.windows(SECRET.len()).any(|part| part == SECRET));
            if let Some(len) = reply.first_chunk::<4>() {
                prop_assert_eq!(u32::from_le_bytes(*len) as usize, reply.len());
            }
        }
        house.check();
        if read_only {
            prop_assert_eq!(fs::read(house.shared().join("a")).unwrap(), b"inside");
            prop_assert_eq!(fs::read_dir(house.shared()).unwrap().count(), 3);
        }
    }
}

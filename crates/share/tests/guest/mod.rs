//! A guest's file system, as far as tests need one: it writes messages and reads answers.

#![allow(dead_code, reason = "each test program uses a part")]

use belljar_share::{FileServer, ShareConfig};
use std::path::Path;

/// The node of the shared directory.
pub const ROOT: u64 = 1;
/// Room for answers.
const ROOM: usize = 1 << 16;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const GETXATTR: u32 = 22;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const CREATE: u32 = 35;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const SYNCFS: u32 = 50;

pub const EPERM: i32 = 1;
pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const EBADF: i32 = 9;
pub const EACCES: i32 = 13;
pub const EEXIST: i32 = 17;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const ENFILE: i32 = 23;
pub const EROFS: i32 = 30;
pub const ENOSYS: i32 = 38;
pub const ENOTEMPTY: i32 = 39;
pub const ELOOP: i32 = 40;
pub const EOPNOTSUPP: i32 = 95;
pub const ESTALE: i32 = 116;

pub const O_RDONLY: u32 = 0;
pub const O_WRONLY: u32 = 1;
pub const O_RDWR: u32 = 2;
pub const O_EXCL: u32 = 0o200;
pub const O_APPEND: u32 = 0o2000;

/// The answer to a message, or the number of the error.
pub type Answer = Result<Vec<u8>, i32>;

/// A guest's file system.
pub struct Guest {
    pub server: FileServer,
    unique: u64,
}

/// A message of any length and content.
pub fn message(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = (40 + body.len() as u32).to_le_bytes().to_vec();
    message.extend(opcode.to_le_bytes());
    message.extend(unique.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// A name as messages have it.
pub fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

pub fn u32s(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

pub fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Guest {
    /// A guest that has not mounted `directory` yet.
    pub fn before_mount(directory: &Path, read_only: bool) -> Self {
        let config = ShareConfig {
            read_only,
            ..ShareConfig::new(directory)
        };
        Self {
            server: FileServer::open(&config).unwrap(),
            unique: 0,
        }
    }

    /// A guest that has mounted `directory`.
    pub fn mount(directory: &Path, read_only: bool) -> Self {
        let mut guest = Self::before_mount(directory, read_only);
        guest.init();
        guest
    }

    pub fn init(&mut self) -> Vec<u8> {
        let body = u32s(&[7, 31, 1 << 20, u32::MAX]);
        self.call(INIT, 0, &body).unwrap()
    }

    /// Sends a message and waits for its answer, which must be one.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        self.unique += 2;
        let message = message(opcode, self.unique, node, body);
        let mut reply = Vec::new();
        self.server.handle(&message, ROOM, &mut reply);
        assert!((16..=ROOM).contains(&reply.len()), "{}", reply.len());
        assert_eq!(u32_at(&reply, 0) as usize, reply.len());
        assert_eq!(u64_at(&reply, 8), self.unique);
        match u32_at(&reply, 4) as i32 {
            0 => Ok(reply[16..].to_vec()),
            error => {
                assert_eq!(reply.len(), 16);
                Err(-error)
            }
        }
    }

    pub fn look_up(&mut self, parent: u64, text: &str) -> Result<u64, i32> {
        let entry = self.call(LOOKUP, parent, &name(text))?;
        assert_eq!(entry.len(), 128);
        Ok(u64_at(&entry, 0))
    }

    /// Looks every component of a path up.
    pub fn walk(&mut self, path: &str) -> Result<u64, i32> {
        path.split('/')
            .try_fold(ROOT, |node, text| self.look_up(node, text))
    }

    /// Makes a file and gives node and handle.
    pub fn create(&mut self, parent: u64, text: &str, mode: u32) -> Result<(u64, u64), i32> {
        let body = [u32s(&[O_RDWR, mode | 0o100_000, 0, 0]), name(text)].concat();
        let entry = self.call(CREATE, parent, &body)?;
        assert_eq!(entry.len(), 144);
        Ok((u64_at(&entry, 0), u64_at(&entry, 128)))
    }

    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.call(OPEN, node, &u32s(&[flags, 0]))
            .map(|answer| u64_at(&answer, 0))
    }

    pub fn read(&mut self, handle: u64, offset: u64, size: u32) -> Answer {
        let body = [u64s(&[handle, offset]), u32s(&[size, 0, 0, 0, 0, 0])].concat();
        self.call(READ, 0, &body)
    }

    pub fn write(&mut self, handle: u64, offset: u64, data: &[u8], flags: u32) -> Result<u32, i32> {
        let size = data.len() as u32;
        let head = [u64s(&[handle, offset]), u32s(&[size, 0, 0, 0, flags, 0])].concat();
        let answer = self.call(WRITE, 0, &[&head, data].concat())?;
        Ok(u32_at(&answer, 0))
    }

    pub fn release(&mut self, handle: u64) -> Answer {
        self.call(RELEASE, 0, &u64s(&[handle, 0, 0]))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Answer {
        let body = [u64s(&[to.0]), u32s(&[flags, 0]), name(from.1), name(to.1)].concat();
        self.call(RENAME2, from.0, &body)
    }

    /// Changes what the bits of `valid` say, with all fields as given.
    pub fn set(&mut self, node: u64, valid: u32, size: u64, mode: u32, owner: u32) -> Answer {
        let body = [
            u32s(&[valid, 0]),
            u64s(&[0, size, 0, 1_000, 2_000, 0]),
            u32s(&[1, 2, 0, mode, 0, owner, owner, 0]),
        ]
        .concat();
        self.call(SETATTR, node, &body)
    }

    /// The names in a directory, read in pieces of `size` bytes.
    pub fn list(&mut self, node: u64, size: u32) -> Result<Vec<String>, i32> {
        let handle = u64_at(&self.call(OPENDIR, node, &u32s(&[0, 0]))?, 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let body = [u64s(&[handle, offset]), u32s(&[size, 0, 0, 0, 0, 0])].concat();
            let entries = self.call(READDIR, node, &body)?;
            if entries.is_empty() {
                self.release(handle)?;
                return Ok(names);
            }
            assert!(entries.len() <= size as usize);
            let mut at = 0;
            while at < entries.len() {
                offset = u64_at(&entries, at + 8);
                let len = u32_at(&entries, at + 16) as usize;
                let text = &entries[at + 24..at + 24 + len];
                names.push(String::from_utf8_lossy(text).into_owned());
                at += (24 + len).next_multiple_of(8);
            }
        }
    }
}

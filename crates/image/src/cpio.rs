//! Archives in the format from which Linux unpacks its initial RAM filesystem: cpio "newc".
//!
//! Linux's Documentation/driver-api/early-userspace/buffer-format.rst has the format. The archives
//! are the same for the same contents: all times are 0 and everything belongs to root.

use crate::ImageError;

const MAGIC: &[u8] = b"070701";
/// Headers, names and data are padded to a multiple of this.
const ALIGN: usize = 4;
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const PERMISSIONS: u32 = 0o7777;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents must be added before what is in them.
    ///
    /// # Errors
    /// [`ImageError::BadName`] if `name` is empty or has a zero byte.
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<(), ImageError> {
        let mode = DIRECTORY | permissions & PERMISSIONS;
        self.entry(name, mode, (0, 0), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// [`ImageError::BadName`] as for a directory; [`ImageError::TooLarge`] from 4 GiB on.
    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) -> Result<(), ImageError> {
        let mode = REGULAR | permissions & PERMISSIONS;
        self.entry(name, mode, (0, 0), data)
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    /// [`ImageError::BadName`] if `name` or `target` is empty or has a zero byte.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), ImageError> {
        check_name(target)?;
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device with its major and minor number.
    ///
    /// # Errors
    /// [`ImageError::BadName`] as for a directory.
    pub fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        number: (u32, u32),
    ) -> Result<(), ImageError> {
        let mode = CHARACTER_DEVICE | permissions & PERMISSIONS;
        self.entry(name, mode, number, &[])
    }

    /// The archive's bytes, with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.header(TRAILER, 0, 0, (0, 0), 0);
        self.bytes
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> Result<(), ImageError> {
        check_name(name)?;
        if name == TRAILER {
            return Err(ImageError::BadName(name.to_owned()));
        }
        let len = u32::try_from(data.len()).map_err(|_| ImageError::TooLarge {
            name: name.to_owned(),
            len: data.len(),
        })?;
        self.entries += 1;
        self.header(name, self.entries, mode, device, len);
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    /// Thirteen fields of eight hexadecimal digits, then the name and its final zero.
    fn header(&mut self, name: &str, inode: u32, mode: u32, device: (u32, u32), len: u32) {
        let (user, group, links, time, check) = (0, 0, 1, 0, 0);
        let (major, minor) = (0, 0);
        let name_len = name.len() as u32 + 1;
        self.bytes.extend_from_slice(MAGIC);
        for field in [
            inode, mode, user, group, links, time, len, major, minor, device.0, device.1, name_len,
            check,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

fn check_name(name: &str) -> Result<(), ImageError> {
    if name.is_empty() || name.contains('\0') || name.len() >= 4096 {
        return Err(ImageError::BadName(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry as a reader finds it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) name: String,
        pub(crate) mode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) data: Vec<u8>,
    }

    /// Reads an archive up to its trailer, as the format's text says.
    pub(crate) fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], MAGIC);
            let field = |index: usize| {
                let digits = &bytes[at + 6 + index * 8..at + 14 + index * 8];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (data_len, name_len) = (field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_len];
            assert_eq!(name.last(), Some(&0));
            let data_at = (at + 110 + name_len).next_multiple_of(4);
            let entry = Entry {
                name: String::from_utf8(name[..name_len - 1].to_vec()).unwrap(),
                mode: field(1),
                device: (field(9), field(10)),
                data: bytes[data_at..data_at + data_len].to_vec(),
            };
            at = (data_at + data_len).next_multiple_of(4);
            if entry.name == TRAILER {
                assert_eq!(at, bytes.len());
                return entries;
            }
            entries.push(entry);
        }
    }

    #[test]
    fn names_that_the_format_cannot_hold_are_refused() {
        let mut archive = Archive::new();
        for name in ["", "a\0b", TRAILER] {
            let result = archive.file(name, 0o644, &[]);
            assert!(matches!(result, Err(ImageError::BadName(_))), "{name:?}");
        }
        assert!(archive.symlink("a", "").is_err());
        assert_eq!(read(&archive.finish()), []);
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (
            "[a-z/.]{1,30}",
            prop::sample::select(vec![DIRECTORY, REGULAR, SYMLINK, CHARACTER_DEVICE]),
            0..=PERMISSIONS,
            (any::<u32>(), any::<u32>()),
            prop::collection::vec(any::<u8>(), 0..40),
        );
        prop::collection::vec(
            entry.prop_map(|(name, kind, permissions, device, data)| match kind {
                REGULAR => Entry {
                    name,
                    mode: kind | permissions,
                    device: (0, 0),
                    data,
                },
                SYMLINK => Entry {
                    name,
                    mode: kind | 0o777,
                    device: (0, 0),
                    data: b"to".to_vec(),
                },
                DIRECTORY => Entry {
                    name,
                    mode: kind | permissions,
                    device: (0, 0),
                    data: vec![],
                },
                _ => Entry {
                    name,
                    mode: kind | permissions,
                    device,
                    data: vec![],
                },
            }),
            0..12,
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entries in entries()) {
            let mut archive = Archive::new();
            for entry in &entries {
                let permissions = entry.mode & PERMISSIONS;
                match entry.mode & !PERMISSIONS {
                    DIRECTORY => archive.directory(&entry.name, permissions),
                    REGULAR => archive.file(&entry.name, permissions, &entry.data),
                    SYMLINK => archive.symlink(&entry.name, "to"),
                    _ => archive.character_device(&entry.name, permissions, entry.device),
                }
                .unwrap();
            }
            prop_assert_eq!(read(&archive.finish()), entries);
        }
    }
}

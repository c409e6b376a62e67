//! Debian packages: the archive of deb(5), an `ar` that holds a compressed tar of the files.

use crate::ImageError;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const AR_HEADER: usize = 60;
/// The member with the files.
const DATA: &str = "data.tar";
/// The member with what is about the package.
const CONTROL: &str = "control.tar";
/// More than any kernel or program has.
const LARGEST: u64 = 1 << 30;

/// Unpacks from the package `deb` the first regular file whose path, without a leading `./` or `/`,
/// is `wanted`, and returns its bytes.
pub(crate) fn read_file(
    deb: &Path,
    wanted: impl Fn(&str) -> bool,
    description: &str,
) -> Result<Vec<u8>, ImageError> {
    find(open(deb)?, wanted)
        .map_err(|e| bad(deb, e.to_string()))?
        .ok_or_else(|| bad(deb, format!("it has no {description}")))
}

fn find(
    package: impl Read + Seek + 'static,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<Option<Vec<u8>>> {
    let mut found = None;
    visit_package(package, DATA, |path, entry| {
        if entry.header().entry_type().is_file() && wanted(path) {
            found = Some(read(path, entry)?);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// What a package has at a path.
pub(crate) type Entry<'a> = tar::Entry<'a, Box<dyn Read>>;

/// Shows `visitor` what is in the package `deb`, with its path without a leading `./` or `/`, until
/// that has seen enough.
pub(crate) fn visit(
    deb: &Path,
    visitor: impl FnMut(&str, &mut Entry<'_>) -> io::Result<ControlFlow<()>>,
) -> Result<(), ImageError> {
    visit_package(open(deb)?, DATA, visitor).map_err(|e| bad(deb, e.to_string()))
}

/// The files that tell dpkg about the package `deb`, by their names.
pub(crate) fn control_files(deb: &Path) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
    let mut files = Vec::new();
    let result = visit_package(open(deb)?, CONTROL, |name, entry| {
        if entry.header().entry_type().is_file() && !name.contains('/') {
            files.push((name.to_owned(), read(name, entry)?));
        }
        Ok(ControlFlow::Continue(()))
    });
    result.map_err(|e| bad(deb, e.to_string()))?;
    Ok(files)
}

/// The uncompressed tar of the files of the package `deb`.
pub(crate) fn data_tar(deb: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    member(open(deb)?, DATA)
        .and_then(|tar| tar.take(4 * LARGEST).read_to_end(&mut bytes))
        .map_err(|e| bad(deb, e.to_string()))?;
    Ok(bytes)
}

fn open(deb: &Path) -> Result<BufReader<File>, ImageError> {
    File::open(deb)
        .map(BufReader::new)
        .map_err(ImageError::io("open", deb))
}

pub(crate) fn bad(deb: &Path, problem: String) -> ImageError {
    let file = deb.file_name().unwrap_or_default();
    ImageError::BadPackage {
        file: file.to_string_lossy().into_owned(),
        problem,
    }
}

fn visit_package(
    package: impl Read + Seek + 'static,
    part: &str,
    mut visitor: impl FnMut(&str, &mut Entry<'_>) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let mut tar = tar::Archive::new(member(package, part)?);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if visitor(relative(&path), &mut entry)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// `path` without what makes it absolute.
pub(crate) fn relative(path: &str) -> &str {
    path.trim_start_matches("./").trim_start_matches('/')
}

/// The bytes of the regular file `path`.
pub(crate) fn read(path: &str, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let len = entry.size();
    if len > LARGEST {
        return Err(io::Error::other(format!("{path} has {len} bytes")));
    }
    let mut bytes = Vec::new();
    entry.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The uncompressed tar `part` of a package.
fn member(mut package: impl Read + Seek + 'static, part: &str) -> io::Result<Box<dyn Read>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut magic = [0; AR_MAGIC.len()];
    package.read_exact(&mut magic)?;
    if &magic != AR_MAGIC {
        return Err(damaged("it is no ar archive"));
    }
    loop {
        let mut header = [0; AR_HEADER];
        package.read_exact(&mut header)?;
        let field = |range| std::str::from_utf8(&header[range]).map(str::trim_end);
        let (Ok(name), Ok(len)) = (field(0..16), field(48..58)) else {
            return Err(damaged("a member's header is not text"));
        };
        let Ok(len) = len.parse::<u64>() else {
            return Err(damaged("a member's length is no number"));
        };
        if let Some(compression) = name.trim_end_matches('/').strip_prefix(part) {
            return decompress(compression, package.take(len));
        }
        // Members begin at even offsets. The length has at most ten digits, so the sum is small.
        package.seek(SeekFrom::Current((len + len % 2) as i64))?;
    }
}

fn decompress(compression: &str, data: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    Ok(match compression {
        "" => Box::new(data),
        ".gz" => Box::new(flate2::read::GzDecoder::new(data)),
        ".xz" => Box::new(liblzma::read::XzDecoder::new(data)),
        ".zst" => Box::new(zstd::Decoder::new(data)?),
        other => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its data has the unknown compression {other:?}"),
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Cursor, Write};

    /// A tar of a directory, a link and two files.
    fn tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o755);
            tar.append_data(&mut header, path, data).unwrap();
        };
        add("./boot/", tar::EntryType::Directory, &[]);
        add("./boot/vmlinuz-link", tar::EntryType::Symlink, &[]);
        add("./boot/config-6", tar::EntryType::Regular, b"config");
        add("./boot/vmlinuz-6", tar::EntryType::Regular, b"kernel");
        tar.into_inner().unwrap()
    }

    fn package(compression: &str, data: &[u8]) -> Vec<u8> {
        let mut package = AR_MAGIC.to_vec();
        let data_name = format!("data.tar{compression}");
        let members: [(&str, &[u8]); 3] = [
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            (&data_name, data),
        ];
        for (name, bytes) in members {
            let len = bytes.len();
            writeln!(package, "{name:<16}{:<32}{len:<10}`", "0").unwrap();
            package.extend_from_slice(bytes);
            package.resize(package.len().next_multiple_of(2), b'\n');
        }
        package
    }

    fn compressed(compression: &str) -> Vec<u8> {
        let tar = tar();
        match compression {
            ".gz" => {
                let mut out =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(&tar).unwrap();
                out.finish().unwrap()
            }
            ".xz" => liblzma::encode_all(tar.as_slice(), 0).unwrap(),
            ".zst" => zstd::encode_all(tar.as_slice(), 0).unwrap(),
            _ => tar,
        }
    }

    fn kernel_of(package: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        find(Cursor::new(package), |path| {
            path.starts_with("boot/vmlinuz-")
        })
    }

    #[test]
    fn the_file_is_found_whatever_the_compression() {
        for compression in ["", ".gz", ".xz", ".zst"] {
            let found = kernel_of(package(compression, &compressed(compression))).unwrap();
            assert_eq!(found.as_deref(), Some(&b"kernel"[..]), "{compression:?}");
        }
    }

    #[test]
    fn a_package_without_the_file_has_none() {
        let found = find(Cursor::new(package("", &tar())), |path| {
            path == "bin/busybox"
        });
        assert_eq!(found.unwrap(), None);
    }

    #[test]
    fn damaged_packages_are_refused() {
        assert!(kernel_of(b"no package".to_vec()).is_err());
        assert!(kernel_of(package(".lzma", &[])).is_err());
        assert!(kernel_of(package(".xz", b"no xz")).is_err());
        let whole = package(".xz", &compressed(".xz"));
        assert!(kernel_of(whole[..whole.len() - 80].to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn changed_bytes_give_an_answer(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        ) {
            let mut package = package("", &tar());
            for (index, value) in changes {
                let at = index.index(package.len());
                package[at] = value;
            }
            let _ = kernel_of(package);
        }
    }
}

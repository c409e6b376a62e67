//! What a machine boots an image with: the kernel, and a small initial RAM filesystem beside the
//! disk.
//!
//! Debian's cloud kernels have NVMe and ext4 built in, but virtio's disks as modules. The initial
//! RAM filesystem has these modules and busybox; it finds the root by its UUID, whatever disk that is
//! on, and hands over to it.

use crate::ImageError;
use crate::cpio::Archive;
use crate::gpt::Uuid;
use object::Endianness;
use object::read::elf::{ElfFile64, FileHeader};
use std::collections::BTreeMap;
use std::io::{self, Read};

/// The modules that a root on a virtio disk needs, without those that they need in turn.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Where the modules lie that these, and those of the default guest, may need: how their paths go
/// on.
const MODULE_PLACES: [&str; 8] = [
    "/kernel/drivers/virtio/",
    "/kernel/drivers/block/virtio_blk.",
    "/kernel/drivers/char/virtio_console.",
    "/kernel/drivers/net/net_failover.",
    "/kernel/drivers/net/virtio_net.",
    "/kernel/fs/fuse/",
    "/kernel/net/core/failover.",
    "/kernel/net/vmw_vsock/",
];
/// More than any module has.
const LARGEST_MODULE: u64 = 64 << 20;

/// The first process. `$init` is what the command line says; a shell is of no use here, because
/// nobody may be at the console.
const INIT: &str = "\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do
  [ -e \"$module\" ] && insmod \"$module\"
done
init=/sbin/init
read -r line < /proc/cmdline
for word in $line; do
  case $word in init=*) init=${word#init=} ;; esac
done
uuid=$(cat /root-uuid)
# Debian 11's busybox has no findfs. The UUID is that of the superblock of ext4, from byte 1128.
find_root() {
  for entry in /sys/class/block/*; do
    device=/dev/${entry##*/}
    found=$(dd if=\"$device\" bs=8 skip=141 count=2 2> /dev/null | hexdump -v -e '16/1 \"%02x\"')
    [ \"$found\" = \"$bytes\" ] && return 0
  done
  return 1
}
bytes=$(echo \"$uuid\" | tr -d -)
tries=0
until find_root; do
  tries=$((tries + 1))
  if [ $tries -gt 600 ]; then
    echo \"No disk has the root filesystem $uuid.\" > /dev/console
    poweroff -f
  fi
  usleep 50000
done
mount -t ext4 \"$device\" /root || { echo \"Cannot mount the root.\" > /dev/console; poweroff -f; }
mount --move /dev /root/dev
umount /sys /proc
exec switch_root /root \"$init\"
";

/// The first process of the initial RAM filesystem.
pub(crate) const fn init() -> &'static str {
    INIT
}

/// Whether a file of the kernel's packages, by its path, is of use for the bundle.
pub(crate) fn is_wanted(path: &str) -> bool {
    is_kernel(path) || module_name(path).is_some()
}

/// Whether the path is that of a kernel.
pub(crate) fn is_kernel(path: &str) -> bool {
    path.starts_with("boot/vmlinuz-")
        || (path.contains("lib/modules/") && path.ends_with("/vmlinuz"))
}

/// The name of a module that may be of use, from its path.
fn module_name(path: &str) -> Option<String> {
    if !MODULE_PLACES.iter().any(|d| path.contains(d)) {
        return None;
    }
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// Makes the initial RAM filesystem for a root whose UUID is `root`, of a static busybox and the
/// modules that are among `files`.
pub(crate) fn initrd(
    busybox: &[u8],
    files: &[(String, Vec<u8>)],
    root: Uuid,
) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.directory(directory, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("root-uuid", 0o644, root.to_string().as_bytes())?;
    for (index, (name, bytes)) in modules(files, &MODULES)?.iter().enumerate() {
        archive.file(&format!("modules/{index:02}-{name}.ko"), 0o644, bytes)?;
    }
    Ok(archive.finish())
}

/// The modules `names`, each after those that it needs. What is not among the files is built in.
pub(crate) fn modules(
    files: &[(String, Vec<u8>)],
    names: &[&str],
) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
    let available: BTreeMap<String, &(String, Vec<u8>)> = files
        .iter()
        .filter_map(|file| Some((module_name(&file.0)?, file)))
        .collect();
    let mut sorted = Vec::new();
    for name in names {
        add_module(name, &available, &mut Vec::new(), &mut sorted)?;
    }
    Ok(sorted)
}

fn add_module(
    name: &str,
    available: &BTreeMap<String, &(String, Vec<u8>)>,
    open: &mut Vec<String>,
    sorted: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), ImageError> {
    let is_known = sorted.iter().any(|(n, _)| n == name) || open.iter().any(|n| n == name);
    let Some((path, bytes)) = available.get(name).filter(|_| !is_known) else {
        return Ok(());
    };
    let bad = |problem: String| ImageError::BadPackage {
        file: path.clone(),
        problem,
    };
    let module = decompress(path, bytes).map_err(|e| bad(e.to_string()))?;
    let needs = depends(&module).ok_or_else(|| bad("it is no module".to_owned()))?;
    open.push(name.to_owned());
    for needed in needs {
        add_module(&needed, available, open, sorted)?;
    }
    sorted.push((name.to_owned(), module));
    Ok(())
}

fn decompress(path: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let reader: Box<dyn Read + '_> = match path.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(bytes)),
        Some("zst") => Box::new(zstd::Decoder::new(bytes)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(bytes)),
        _ => Box::new(bytes),
    };
    let mut module = Vec::new();
    reader.take(LARGEST_MODULE).read_to_end(&mut module)?;
    Ok(module)
}

/// The modules that a module says it needs; `None` if it is none.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let elf = ElfFile64::<Endianness>::parse(module).ok()?;
    let (header, endian) = (elf.elf_header(), elf.endian());
    let sections = header.sections(endian, module).ok()?;
    let (_, section) = sections.section_by_name(endian, b".modinfo")?;
    let info = object::read::elf::SectionHeader::data(section, endian, module).ok()?;
    let mut settings = info.split(|byte| *byte == 0);
    let depends = settings.find_map(|setting| setting.strip_prefix(b"depends="))?;
    let depends = String::from_utf8_lossy(depends);
    let names = depends.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::read;

    #[test]
    fn kernels_and_modules_are_found_wherever_suites_put_them() {
        for path in [
            "boot/vmlinuz-6.1.0-50-cloud-amd64",
            "usr/lib/modules/7.2.13+deb14-cloud-amd64/vmlinuz",
            "lib/modules/5.10.0-32-cloud-amd64/kernel/drivers/virtio/virtio_pci.ko",
            "usr/lib/modules/7/kernel/drivers/block/virtio_blk.ko.xz",
        ] {
            assert!(is_wanted(path), "{path}");
        }
        for path in [
            "boot/config-6.1.0",
            "lib/modules/5/kernel/drivers/net/veth.ko",
            "usr/share/doc/vmlinuz",
        ] {
            assert!(!is_wanted(path), "{path}");
        }
    }

    #[test]
    fn without_modules_everything_counts_as_built_in() {
        let entries = read(&initrd(b"busybox", &[], Uuid([0xab; 16])).unwrap());
        let uuid = entries.iter().find(|e| e.name == "root-uuid").unwrap();
        assert_eq!(uuid.data, b"abababab-abab-abab-abab-abababababab");
        assert!(!entries.iter().any(|e| e.name.starts_with("modules/")));
    }

    #[test]
    fn a_file_that_is_no_module_is_an_error() {
        let path = "lib/modules/5/kernel/drivers/block/virtio_blk.ko".to_owned();
        let result = initrd(b"busybox", &[(path, b"odd".to_vec())], Uuid([0; 16]));
        assert!(matches!(result, Err(ImageError::BadPackage { .. })));
    }
}

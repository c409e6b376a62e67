//! The initial RAM filesystem of the default guest: busybox, some small files, the agent for
//! `belljar exec`, and the kernel's modules for the devices that a machine can have.

use crate::cpio::Archive;
use crate::{ImageError, agent};

/// The default kernel command line: the console is the serial port, and the kernel's messages show
/// how far the boot is.
pub(crate) const CMDLINE: &str = "console=ttyS0";

/// The modules of the kernel that the guest loads, without those that they need in turn: for the
/// console, the agent, the balloon, disks, networks and shared directories. NVMe and ext4 are built
/// into the cloud kernels.
pub(crate) const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_blk",
    "virtio_net",
    "virtiofs",
];

/// The first process: mounts what programs expect, then becomes busybox's init.
const INIT: &str = "\
#!/bin/busybox sh
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
hostname belljar
ip link set lo up
if grep -q 0x1af4 /sys/bus/pci/devices/*/vendor 2>/dev/null; then
    for module in /modules/*; do insmod $module; done
    # The console may have its driver only now.
    (: < /dev/console) 2>/dev/null && exec < /dev/console > /dev/console 2>&1
    belljar-agent &
fi
for card in /sys/class/net/eth*; do
    [ -e $card ] && udhcpc -b -i ${card##*/} >/dev/null 2>&1 &
done
exec /sbin/init
";

/// What init runs. Programs that end by themselves are not started again: the session ends with the
/// machine.
const INITTAB: &str = "\
::once:/bin/cttyhack /etc/session
::ctrlaltdel:/sbin/reboot
";

/// What the DHCP client runs when it has a lease, or has lost it.
const LEASE: &str = "\
#!/bin/sh
case $1 in
deconfig)
    ip addr flush dev $interface
    ip link set $interface up ;;
bound|renew)
    ip addr replace $ip/$mask dev $interface
    [ -n \"$router\" ] && ip route replace default via ${router%% *}
    for server in $dns; do echo nameserver $server; done > /etc/resolv.conf ;;
esac
";

/// The session on the console: when its shell ends, the machine powers off.
const SESSION: &str = "\
#!/bin/sh
export HOME=/root
cd
echo
echo \"Linux $(uname -r) in Belljar. Leave the shell, or say poweroff, to end the machine.\"
echo
/bin/sh -l
poweroff -f
";

const PROFILE: &str = "\
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
export PS1='\\h:\\w\\$ '
";

/// Makes the archive around the bytes of a static busybox and modules of the kernel, which are loaded
/// in this order.
pub(crate) fn build(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::new();
    for directory in [
        "bin",
        "dev",
        "etc",
        "proc",
        "sbin",
        "sys",
        "usr",
        "usr/bin",
        "usr/sbin",
        "var",
        "run",
        "etc/udhcpc",
        "modules",
    ] {
        archive.directory(directory, 0o755)?;
    }
    archive.directory("root", 0o700)?;
    archive.directory("tmp", 0o1777)?;
    // The kernel opens the console for the first process before that can mount /dev.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("bin/busybox", 0o755, busybox)?;
    for (name, bytes) in modules {
        archive.file(&format!("modules/{name}"), 0o644, bytes)?;
    }
    archive.file(agent::PLACE, 0o755, agent::PROGRAM)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("etc/udhcpc/default.script", 0o755, LEASE.as_bytes())?;
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes())?;
    archive.file("etc/session", 0o755, SESSION.as_bytes())?;
    archive.file("etc/profile", 0o644, PROFILE.as_bytes())?;
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\n")?;
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::read;

    #[test]
    fn parents_come_before_what_is_in_them() {
        let entries = read(&build(b"busybox", &[]).unwrap());
        for (index, entry) in entries.iter().enumerate() {
            if let Some((parent, _)) = entry.name.rsplit_once('/') {
                let before = &entries[..index];
                assert!(before.iter().any(|e| e.name == parent), "{}", entry.name);
            }
        }
    }

    #[test]
    fn programs_can_be_executed_and_their_interpreter_is_there() {
        let entries = read(&build(b"busybox", &[]).unwrap());
        for name in [
            "init",
            "bin/busybox",
            "etc/session",
            "etc/udhcpc/default.script",
        ] {
            let entry = entries.iter().find(|e| e.name == name).unwrap();
            assert_eq!(entry.mode, 0o100_755, "{name}");
        }
        let init = entries.iter().find(|e| e.name == "init").unwrap();
        assert!(init.data.starts_with(b"#!/bin/busybox sh\n"));
    }

    #[test]
    fn the_console_is_there_before_dev_is_mounted() {
        let entries = read(&build(b"busybox", &[]).unwrap());
        let console = entries.iter().find(|e| e.name == "dev/console").unwrap();
        assert_eq!((console.mode, console.device), (0o020_600, (5, 1)));
    }
}

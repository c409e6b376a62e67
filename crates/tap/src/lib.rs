//! Tap devices of the host.
//!
//! Floor 0 of the house: the three ioctls that attach a file descriptor to an interface, for which
//! no safe interface exists. What is read and written afterwards is `belljar-net`'s.
//! Linux documentation: networking/tuntap.rst.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};
use std::io;

/// Where tap devices are made and attached to.
const DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name, its zero included.
const NAME: usize = 16;
/// Bytes of the header before each frame: virtio's, with the number of buffers.
pub const HEADER_LEN: usize = 12;

/// The ioctls, from `linux/if_tun.h`. All are declared to take a pointer to an `int`.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);

/// Flags of an interface: Ethernet frames, without a header of their own, with virtio's.
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Linux's `struct ifreq` as TUNSETIFF reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// What whoever reads the tap device takes without that the host does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums.
    pub checksum: bool,
    /// Large frames of TCP over IPv4.
    pub tcp4: bool,
    /// Large frames of TCP over IPv6.
    pub tcp6: bool,
}

/// A file descriptor attached to a tap device.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

/// The name as Linux takes it.
fn interface_name(name: &str) -> Option<[u8; NAME]> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= NAME || bytes.contains(&0) || bytes.contains(&b'%') {
        return None;
    }
    let mut field = [0; NAME];
    field[..bytes.len()].copy_from_slice(bytes);
    Some(field)
}

impl Tap {
    /// Attaches to the tap device `name`, which an ordinary user must own (`ip tuntap add NAME mode
    /// tap user USER`). Reads and writes do not wait; each is a frame behind a header of
    /// [`HEADER_LEN`] bytes.
    ///
    /// # Errors
    /// The host's, for example when somebody else is attached or the device belongs to another user.
    pub fn attach(name: &str) -> io::Result<Self> {
        let name = interface_name(name).ok_or(rustix::io::Errno::INVAL)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = open(DEVICE, flags, Mode::empty())?;
        let request = InterfaceRequest {
            name,
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
            rest: [0; 22],
        };
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, 40 bytes on x86-64, which is what
        // `InterfaceRequest` is; it keeps no pointer to it.
        let request = unsafe { Setter::<TUNSETIFF, _>::new(request) };
        // SAFETY: the same.
        unsafe { ioctl(&fd, request)? };
        // SAFETY: TUNSETVNETHDRSZ reads one `int`.
        let header = unsafe { Setter::<TUNSETVNETHDRSZ, _>::new(HEADER_LEN as i32) };
        // SAFETY: the same.
        unsafe { ioctl(&fd, header)? };
        Ok(Self { fd })
    }

    /// Tells the host what it may leave undone in frames that are read.
    ///
    /// # Errors
    /// The host's.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6; large frames need partial checksums.
        let bits = u32::from(offloads.checksum)
            | u32::from(offloads.checksum && offloads.tcp4) << 1
            | u32::from(offloads.checksum && offloads.tcp6) << 2;
        // SAFETY: the argument of TUNSETOFFLOAD is a number, not a pointer, and these are its bits.
        let request = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits as usize) };
        // SAFETY: TUNSETOFFLOAD changes nothing but the interface's offloads.
        unsafe { ioctl(&self.fd, request)? };
        Ok(())
    }

    /// The file descriptor, for reading, writing and polling.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_linux_has_it() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
        assert_eq!(TUNSETOFFLOAD, 0x4004_54d0);
        assert_eq!(TUNSETVNETHDRSZ, 0x4004_54d8);
    }

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "sixteen-letters!", "a\0b", "tap%d"] {
            assert!(Tap::attach(name).is_err(), "{name:?}");
        }
        assert_eq!(interface_name("vm0").unwrap()[..4], *b"vm0\0");
    }
}

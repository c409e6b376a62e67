//! What a guest's file system is told.

use crate::wire::Put;
use rustix::fs::{FileType, StatVfs, Statx};
use rustix::io::Errno;

/// Bytes of the header of every answer.
pub(crate) const HEADER: usize = 16;
/// Bytes of an entry of a directory before its name.
const ENTRY: usize = 24;

/// Puts the header in front of an answer whose body is there, or makes it one that tells of `error`.
pub(crate) fn finish(reply: &mut Vec<u8>, unique: u64, error: Option<Errno>) {
    if error.is_some() {
        reply.truncate(HEADER);
    }
    let len = reply.len() as u32;
    let code = error.map_or(0, |error| -error.raw_os_error());
    reply[..4].copy_from_slice(&len.to_le_bytes());
    reply[4..8].copy_from_slice(&code.to_le_bytes());
    reply[8..16].copy_from_slice(&unique.to_le_bytes());
}

/// The number of a device as Linux' user space knows it.
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// The attributes of a node: 88 bytes.
fn attributes(reply: &mut Vec<u8>, of: &Statx) {
    reply.u64(of.stx_ino);
    reply.u64(of.stx_size);
    reply.u64(of.stx_blocks);
    let times = [of.stx_atime, of.stx_mtime, of.stx_ctime];
    for time in &times {
        reply.u64(time.tv_sec as u64);
    }
    for time in &times {
        reply.u32(time.tv_nsec);
    }
    reply.u32(of.stx_mode.into());
    reply.u32(of.stx_nlink);
    reply.u32(of.stx_uid);
    reply.u32(of.stx_gid);
    reply.u32(device(of.stx_rdev_major, of.stx_rdev_minor));
    reply.u32(of.stx_blksize);
    reply.u32(0);
}

/// What is known of a name. The guest may believe neither it nor the attributes for any time: the
/// host changes them when it likes.
pub(crate) fn entry(reply: &mut Vec<u8>, node: u64, of: &Statx) {
    reply.u64(node);
    // Generation, how long name and attributes are valid.
    reply.bytes(&[0; 32]);
    attributes(reply, of);
}

/// The attributes of a node alone.
pub(crate) fn only_attributes(reply: &mut Vec<u8>, of: &Statx) {
    reply.bytes(&[0; 16]);
    attributes(reply, of);
}

/// A handle.
pub(crate) fn handle(reply: &mut Vec<u8>, handle: u64) {
    reply.u64(handle);
    reply.u64(0);
}

/// One entry of a directory, if there is room for it below `limit`. `next` is where to go on
/// after it.
pub(crate) fn directory_entry(
    reply: &mut Vec<u8>,
    limit: usize,
    (inode, kind, name, next): (u64, FileType, &[u8], u64),
) -> bool {
    let end = (reply.len() + ENTRY + name.len()).next_multiple_of(8);
    if end > limit {
        return false;
    }
    reply.u64(inode);
    reply.u64(next);
    reply.u32(name.len() as u32);
    // The type as directories have it: the upper bits of the mode, or nothing.
    reply.u32(match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    });
    reply.bytes(name);
    reply.resize(end, 0);
    true
}

/// The statistics of a file system.
pub(crate) fn statistics(reply: &mut Vec<u8>, of: &StatVfs) {
    for number in [of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree] {
        reply.u64(number);
    }
    for number in [of.f_bsize, of.f_namemax, of.f_frsize] {
        reply.u32(u32::try_from(number).unwrap_or(u32::MAX));
    }
    reply.bytes(&[0; 28]);
}

/// How the two sides are to talk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub version: (u32, u32),
    pub readahead: u32,
    pub flags: u32,
    pub most_data: u32,
}

/// The answer to the first message.
pub(crate) fn terms(reply: &mut Vec<u8>, terms: &Terms) {
    const PAGE: u32 = 4096;
    reply.u32(terms.version.0);
    reply.u32(terms.version.1);
    reply.u32(terms.readahead);
    reply.u32(terms.flags);
    // Requests in the background: as the guest's kernel likes it.
    reply.u32(0);
    reply.u32(terms.most_data);
    // Times are exact to the nanosecond.
    reply.u32(1);
    reply.u16((terms.most_data / PAGE) as u16);
    reply.bytes(&[0; 34]);
}

//! What the engine tells whoever looks for a fault in it.
//!
//! Target `belljar::translate`: each block with its guest code and its host code, disassembled.
//! Target `belljar::enter`: each block that is entered from Rust, which is not each that runs.

use crate::asm::Parts;
use crate::block::{Guest, Layout};
use crate::mode::Mode;
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction};
use std::fmt::{self, Display, Formatter};
use tracing::Level;

/// A block that has just been translated.
#[derive(Debug)]
pub struct Translation<'a> {
    /// Address of its first instruction.
    pub rip: u64,
    /// Its mode.
    pub mode: Mode,
    /// The page of RAM that it lies in.
    pub page: u32,
    /// Its instructions.
    pub guests: &'a [Guest],
    /// Their bytes.
    pub bytes: &'a [u8],
    /// Where its entries lie in code memory.
    pub layout: Layout,
    /// The code it became.
    pub code: Parts<'a>,
    /// Where its parts begin in code memory.
    pub start: u32,
    /// As `start`, of what is rare.
    pub rare: u32,
    /// The address of code memory.
    pub base: u64,
}

impl Translation<'_> {
    /// Tells of the block if somebody listens.
    #[inline]
    pub fn tell(&self) {
        if tracing::enabled!(target: "belljar::translate", Level::TRACE) {
            tracing::trace!(target: "belljar::translate", "{self}");
        }
    }

    /// The names of the entries that lie at an offset of code memory.
    fn entries(&self, at: u32) -> String {
        let all = [
            ("poll", self.layout.poll),
            ("poll_saved", self.layout.poll_saved),
            ("saved", self.layout.saved),
            ("host", self.layout.host),
        ];
        let here = all.iter().filter(|(_, offset)| *offset == at);
        let names: Vec<&str> = here.map(|(name, _)| *name).collect();
        names.join(" ")
    }
}

/// An instruction, its bytes and its text.
fn line(
    f: &mut Formatter<'_>,
    formatter: &mut FastFormatter,
    ins: &Instruction,
    bytes: &[u8],
) -> fmt::Result {
    let mut text = String::new();
    formatter.format(ins, &mut text);
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    write!(f, "{:016x}  {hex:<30}  {text}", ins.ip())
}

impl Display for Translation<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut formatter = FastFormatter::new();
        write!(
            f,
            "block {:#x} of page {:#x}, mode {:#x}",
            self.rip,
            self.page,
            self.mode.number()
        )?;
        for guest in self.guests {
            let end = guest.offset + guest.ins.len();
            let bytes = self.bytes.get(guest.offset..end).unwrap_or_default();
            write!(f, "\n  guest  ")?;
            line(f, &mut formatter, &guest.ins, bytes)?;
            write!(f, "  ({:?}, live {:02x})", guest.kind, guest.live)?;
        }
        for (start, code) in [(self.start, self.code.code), (self.rare, self.code.rare)] {
            let address = self.base + u64::from(start);
            let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
            while decoder.can_decode() {
                let at = decoder.position();
                let ins = decoder.decode();
                write!(f, "\n  host   {}", self.entries(start + at as u32))?;
                line(f, &mut formatter, &ins, &code[at..decoder.position()])?;
            }
        }
        Ok(())
    }
}

/// Tells that a block is entered at `entry` in code memory, if somebody listens.
#[inline]
pub fn enter(vcpu: u32, rip: u64, mode: Mode, entry: u64) {
    tracing::trace!(
        target: "belljar::enter",
        vcpu,
        rip = format_args!("{rip:#x}"),
        mode = format_args!("{:#x}", mode.number()),
        entry = format_args!("{entry:#x}"),
    );
}

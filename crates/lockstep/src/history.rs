//! The instructions that led to where a pair stands.

use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::{CpuState, Seg, paging};
use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use std::collections::VecDeque;
use std::fmt::{self, Write};

/// Instructions kept.
const KEPT: usize = 20;
/// The longest that an instruction may be. SDM 2A, 2.3.11.
const LONGEST: usize = 15;

/// An instruction that was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// How many were executed before it.
    pub number: u64,
    /// Its address, without the base of the code segment.
    pub rip: u64,
    /// The width of its code segment: 16, 32 or 64.
    pub bits: u32,
    /// The bytes that lay there; fewer than an instruction's if no page is mapped there.
    pub bytes: Vec<u8>,
}

impl Past {
    /// The instruction that `cpu` executes next.
    pub fn next(number: u64, cpu: &CpuState, memory: &GuestMemory) -> Self {
        let base = if cpu.code64() {
            0
        } else {
            cpu.seg(Seg::Cs).base
        };
        Self {
            number,
            rip: cpu.rip,
            bits: cpu.code_bits(),
            bytes: code(cpu, memory, base.wrapping_add(cpu.rip)),
        }
    }
}

/// The bytes of code at a linear address, as far as they are mapped to RAM.
fn code(cpu: &CpuState, memory: &GuestMemory, linear: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LONGEST);
    while bytes.len() < LONGEST {
        let at = linear.wrapping_add(bytes.len() as u64);
        let Some(GuestPhysAddr(start)) = paging::lookup(cpu, memory, at).map(|found| found.gpa)
        else {
            break;
        };
        let room = (0x1000 - (at & 0xfff)) as usize;
        let wanted = room.min(LONGEST - bytes.len());
        let mut part = vec![0; wanted];
        if memory.read(GuestPhysAddr(start), &mut part).is_err() {
            break;
        }
        bytes.append(&mut part);
    }
    bytes
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut decoder = Decoder::with_ip(self.bits, &self.bytes, self.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let mut text = String::new();
        if instruction.is_invalid() {
            text.push_str("(no instruction)");
        } else {
            FastFormatter::new().format(&instruction, &mut text);
        }
        let length = instruction.len().min(self.bytes.len());
        let mut bytes = String::new();
        for byte in &self.bytes[..length] {
            write!(bytes, "{byte:02x}")?;
        }
        write!(
            f,
            "{:>12}  {:016x}  {bytes:<22}  {text}",
            self.number, self.rip
        )
    }
}

/// The last instructions of a run.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<Past>);

impl History {
    /// Adds the next instruction, and forgets what lies too far back.
    pub fn push(&mut self, past: Past) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(past);
    }

    /// The instructions, the last executed last.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Past> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_x86::bits::cr0;

    #[test]
    fn an_instruction_is_shown_with_its_bytes() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let code = [0x66, 0xb8, 0x78, 0x56, 0x34, 0x12];
        memory.write(GuestPhysAddr(0x2ffe), &code).unwrap();
        let mut cpu = CpuState::reset(0);
        cpu.cr0 &= !cr0::PG;
        cpu.segments[Seg::Cs as usize].base = 0x1000;
        cpu.rip = 0x1ffe;
        let text = Past::next(7, &cpu, &memory).to_string();
        assert!(text.contains("66b878563412"), "{text}");
        assert!(text.ends_with("mov eax,12345678h"), "{text}");
    }

    #[test]
    fn only_the_last_instructions_are_kept() {
        let mut history = History::default();
        for number in 0..100 {
            history.push(Past {
                number,
                rip: 0,
                bits: 64,
                bytes: Vec::new(),
            });
        }
        let numbers: Vec<u64> = history.iter().map(|past| past.number).collect();
        assert_eq!(numbers, (80..100).collect::<Vec<_>>());
    }
}

//! Decoding: from bytes to blocks of ops.

mod general;
mod lower;
mod privileged;

use crate::cache::{Block, Cache, Key, Source};
use crate::handlers::system;
use crate::mmu::CodePage;
use crate::op::Handler;
use crate::processor::Core;
use belljar_memory::PAGE_SIZE;
use belljar_x86::Exception;
use belljar_x86::cpuid::CpuidModel;
use belljar_x86::syscall::Vendor;
use iced_x86::{CpuidFeature, Decoder, DecoderError, DecoderOptions, Instruction};
pub use lower::exists;

/// The most instructions of a block.
const MOST: usize = 64;
/// Bytes that are read for a block at a time.
const WINDOW: usize = 512;
/// The longest instruction. SDM 2A, 2.3.11.
const LONGEST: usize = 15;

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The first instruction cannot be fetched: the exception is raised.
    Fault,
    /// There is no more room for compiled instructions.
    CodeFull,
}

/// A handler, and whether the block ends with it.
#[derive(Clone, Copy, Debug)]
enum Choice {
    /// The block may go on.
    Inner(Handler),
    /// The block ends.
    Last(Handler),
}

/// Decodes the block of `key`, whose first byte lies in `page`.
pub fn block(core: &mut Core, cache: &mut Cache, key: &Key, page: CodePage) -> Result<Block, Stop> {
    let mut bytes = [0; WINDOW];
    let offset = key.linear() % PAGE_SIZE;
    let room = (PAGE_SIZE - offset) as usize;
    let first = mark(core, page);
    // What is not RAM is read no further than an instruction may reach.
    let most = if first.is_some() { WINDOW } else { LONGEST };
    let mut length = room.min(most);
    core.mmu.read_code(page, offset, &mut bytes[..length]);
    let mut second = None;
    if room < LONGEST && reaches_end(core, key, &bytes[..length]) {
        let beyond = key.rip.wrapping_add(room as u64) > u64::from(key.limit);
        if !core.code64 && beyond {
            // The limit is checked before the page is looked for.
            core.raise(Exception::general_protection(0));
            return Err(Stop::Fault);
        }
        let next = (key.linear() | (PAGE_SIZE - 1)).wrapping_add(1);
        let next = match core.mmu.code_page(&core.cpu, next) {
            Ok(next) => next,
            Err(exception) => {
                core.raise(exception);
                return Err(Stop::Fault);
            }
        };
        second = Some(mark(core, next));
        core.mmu
            .read_code(next, 0, &mut bytes[room..room + LONGEST]);
        length = room + LONGEST;
    }
    let cacheable = first.is_some() && second != Some(None);
    let single = second.is_some() || !cacheable;
    let start = cache.ops.len() as u32;
    let decoded = run(
        core,
        cache,
        key,
        &bytes[..length],
        if single { 1 } else { MOST },
    )?;
    Ok(Block {
        key: *key,
        epoch: 0,
        first: first.filter(|_| cacheable).unwrap_or(Source::ABSENT),
        second: second.flatten().unwrap_or(Source::ABSENT),
        start,
        count: cache.ops.len() as u32 - start,
        length: decoded as u32,
        link: cache.new_link(),
    })
}

/// Tells everybody that code of a page is about to be cached. `None` if it is not RAM.
pub fn mark(core: &mut Core, page: CodePage) -> Option<Source> {
    let CodePage::Ram(page) = page else {
        return None;
    };
    let (mut generation, mut first) = core.member.mark(core.mmu.memory().code(), page);
    // Another vCPU has marked the page, and this one may still have a fast path for writes to it:
    // giving it up may change the page, which is then to be marked anew.
    while !first && core.mmu.is_asked() {
        core.answer_requests();
        (generation, first) = core.member.mark(core.mmu.memory().code(), page);
    }
    if first {
        core.mmu.protect(page);
    }
    Some(Source {
        page: page as u32,
        generation,
    })
}

/// A decoder of code at `rip` for the processor as it stands.
pub fn decoder<'a>(core: &Core, rip: u64, bytes: &'a [u8]) -> Decoder<'a> {
    Decoder::with_ip(core.cpu.code_bits(), bytes, rip, core.decoding)
}

/// How a processor of `model` takes instructions.
pub fn options(model: &CpuidModel) -> u32 {
    let mut options = DecoderOptions::NONE;
    if model.vendor() == Vendor::Amd {
        options |= DecoderOptions::AMD;
    }
    // Without these features the prefixed forms are the older instructions.
    for (feature, option) in [
        (CpuidFeature::BMI1, DecoderOptions::NO_MPFX_0FBC),
        (CpuidFeature::LZCNT, DecoderOptions::NO_MPFX_0FBD),
        (CpuidFeature::WBNOINVD, DecoderOptions::NO_WBNOINVD),
    ] {
        if !model.allows(&[feature]) {
            options |= option;
        }
    }
    options
}

/// Whether the first instruction does not end within `bytes`, which reach to the end of the page.
fn reaches_end(core: &Core, key: &Key, bytes: &[u8]) -> bool {
    let mut decoder = decoder(core, key.rip, bytes);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes && !is_short_undefined(core, bytes)
}

/// Whether `bytes` begin UD0 or UD1: AMD's processors do not fetch what follows the opcode.
fn is_short_undefined(core: &Core, bytes: &[u8]) -> bool {
    let prefixes = bytes
        .iter()
        .take_while(|byte| lower::is_prefix(**byte))
        .count();
    let rest = bytes.get(prefixes..).unwrap_or_default();
    let opcode = match rest {
        [0x40..=0x4f, opcode @ ..] if core.code64 => opcode,
        opcode => opcode,
    };
    core.vendor == Vendor::Amd && matches!(opcode, [0x0f, 0xb9 | 0xff, ..])
}

/// Decodes up to `most` instructions into ops. Gives their length in bytes.
fn run(
    core: &mut Core,
    cache: &mut Cache,
    key: &Key,
    bytes: &[u8],
    most: usize,
) -> Result<usize, Stop> {
    let mut decoder = decoder(core, key.rip, bytes);
    let mut instruction = Instruction::default();
    for number in 0..most {
        let offset = decoder.position();
        decoder.decode_out(&mut instruction);
        let end = decoder.position();
        let error = decoder.last_error();
        if error == DecoderError::NoMoreBytes && number > 0 {
            return Ok(offset);
        }
        let last = end as u64 - 1;
        let beyond = !core.code64 && key.rip.wrapping_add(last) > u64::from(key.limit);
        if beyond && number > 0 {
            return Ok(offset);
        }
        let place = lower::Place { offset, end };
        if error == DecoderError::NoMoreBytes && bytes.len() < LONGEST {
            // What `is_short_undefined` found.
            cache.ops.push(lower::plain(system::undefined, place));
            return Ok(end);
        }
        let long = error != DecoderError::None && end - offset >= LONGEST;
        if error == DecoderError::NoMoreBytes || beyond || long {
            cache.ops.push(lower::plain(system::too_long, place));
            return Ok(end);
        }
        let ends = if error == DecoderError::None {
            let (op, ends) = lower::op(core, cache, &instruction, &bytes[offset..end], place)?;
            cache.ops.push(op);
            ends
        } else {
            cache.ops.push(lower::plain(system::undefined, place));
            true
        };
        if ends || end + LONGEST > bytes.len() && bytes.len() == WINDOW {
            return Ok(end);
        }
    }
    Ok(decoder.position())
}

//! Small guests, assembled in the tests, and a machine to run each.

#![allow(dead_code, reason = "each test program uses a part")]

use belljar_machine::{ConsoleOutput, Machine, MachineConfig, MachineHandle, Outcome, Size};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// No guest here takes longer, by far.
const LIMIT: Duration = Duration::from_mins(1);
/// Where the guests are loaded.
pub const LOADED_AT: u32 = 0x10_0000;
/// The entry point: after the multiboot header.
const ENTRY: u32 = LOADED_AT + 0x40;

pub type Assembled = Result<(), IcedError>;

/// A multiboot 1 image whose entry point, in 32-bit protected mode, is what `write` assembles.
pub fn image(write: impl FnOnce(&mut CodeAssembler) -> Assembled) -> NamedTempFile {
    let mut asm = CodeAssembler::new(32).unwrap();
    write(&mut asm).unwrap();
    let code = asm.assemble(u64::from(ENTRY)).unwrap();
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, LOADED_AT, LOADED_AT, 0, 0, ENTRY];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.resize((ENTRY - LOADED_AT) as usize, 0);
    bytes.extend(code);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

/// Everything that a guest has printed.
#[derive(Clone, Debug, Default)]
pub struct Printed(Arc<(Mutex<Vec<u8>>, Condvar)>, Arc<AtomicUsize>);

impl Printed {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }

    pub fn len(&self) -> usize {
        self.0.0.lock().unwrap().len()
    }

    /// How often the machine paced itself.
    pub fn paces(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    /// Waits until at least `count` bytes were printed.
    pub fn wait_for(&self, count: usize) {
        let (bytes, changed) = &*self.0;
        let waited = changed
            .wait_timeout_while(bytes.lock().unwrap(), LIMIT, |b| b.len() < count)
            .unwrap();
        assert!(!waited.1.timed_out(), "printed only {:?}", waited.0);
    }
}

impl ConsoleOutput for Printed {
    fn write(&self, bytes: &[u8]) {
        self.0.0.lock().unwrap().extend(bytes);
        self.0.1.notify_all();
    }

    fn pace(&self, _: Option<Duration>) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A machine that runs and is stopped, as a failure, if it does not end in time.
pub struct Running {
    pub handle: MachineHandle,
    pub printed: Printed,
    pub input: belljar_machine::ConsoleInput,
    outcome: Receiver<Outcome>,
    thread: JoinHandle<()>,
    _image: NamedTempFile,
}

impl Running {
    /// Starts `image` in the default machine with 16 MiB and what `change` changes.
    pub fn start(image: NamedTempFile, change: impl FnOnce(&mut MachineConfig)) -> Self {
        let mut config = MachineConfig {
            kernel: Some(image.path().to_owned()),
            memory: Size::mib(16),
            ..MachineConfig::default()
        };
        change(&mut config);
        let printed = Printed::default();
        let machine = Machine::new(&config, Arc::new(printed.clone())).unwrap();
        let (handle, input) = (machine.handle(), machine.console_input());
        let (sender, outcome): (Sender<Outcome>, _) = channel();
        handle.resume();
        let thread = std::thread::spawn(move || {
            let _ = sender.send(machine.wait());
        });
        Self {
            handle,
            printed,
            input,
            outcome,
            thread,
            _image: image,
        }
    }

    /// Waits for the end.
    pub fn end(self) -> (Outcome, String) {
        let outcome = match self.outcome.recv_timeout(LIMIT) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                self.handle.stop();
                panic!("no end within {LIMIT:?}; printed {:?}", self.printed.text());
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the machine's thread failed"),
        };
        self.thread.join().unwrap();
        (outcome, self.printed.text())
    }
}

/// Runs `image` to its end.
pub fn run(image: NamedTempFile, change: impl FnOnce(&mut MachineConfig)) -> (Outcome, String) {
    Running::start(image, change).end()
}

/// Waits until `condition` holds.
pub fn wait_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "the condition never held");
        std::thread::yield_now();
    }
}

/// Prints `text` on COM1.
pub fn print(asm: &mut CodeAssembler, text: &str) -> Assembled {
    asm.mov(dx, 0x3f8)?;
    for byte in text.bytes() {
        asm.mov(al, u32::from(byte))?;
        asm.out(dx, al)?;
    }
    Ok(())
}

/// Writes `value` to an 8-bit port.
pub fn out8(asm: &mut CodeAssembler, port: u32, value: u32) -> Assembled {
    asm.mov(dx, port)?;
    asm.mov(al, value)?;
    asm.out(dx, al)
}

/// Powers off by ACPI: SLP_TYP 5 and SLP_EN.
pub fn power_off(asm: &mut CodeAssembler) -> Assembled {
    asm.mov(dx, 0x604)?;
    asm.mov(ax, 0x3400)?;
    asm.out(dx, ax)?;
    halt(asm)
}

/// Halts for good.
pub fn halt(asm: &mut CodeAssembler) -> Assembled {
    let mut again = asm.create_label();
    asm.set_label(&mut again)?;
    asm.hlt()?;
    asm.jmp(again)
}

/// Sets the 32-bit word at physical address `at`.
pub fn store(asm: &mut CodeAssembler, at: u32, value: u32) -> Assembled {
    asm.mov(dword_ptr(at), value)
}

/// Where [`set_up_interrupts`] puts its tables, and the guest's stack.
const GDT: u32 = 0x2_0000;
const IDT: u32 = 0x2_1000;
const POINTER: u32 = 0x2_2000;
const STACK: u32 = 0x8_0000;

/// Makes a flat GDT, a stack, and an IDT whose gate `vector` leads to what `handler` assembles.
pub fn set_up_interrupts(
    asm: &mut CodeAssembler,
    vector: u32,
    handler: impl FnOnce(&mut CodeAssembler) -> Assembled,
) -> Assembled {
    asm.mov(esp, STACK)?;
    let descriptors = [0, 0, 0xffff, 0x00cf_9b00, 0xffff, 0x00cf_9300];
    for (at, word) in (GDT..).step_by(4).zip(descriptors) {
        store(asm, at, word)?;
    }
    store(asm, POINTER, (GDT << 16) | 0x17)?;
    store(asm, POINTER + 4, GDT >> 16)?;
    asm.lgdt(fword_ptr(POINTER))?;
    load_segments(asm)?;
    // The call leaves the handler's address on the stack.
    let mut past = asm.create_label();
    asm.call(past)?;
    handler(asm)?;
    asm.set_label(&mut past)?;
    asm.pop(eax)?;
    // An interrupt gate: offset 15:0, selector, type 0xe, present, offset 31:16.
    let gate = IDT + 8 * vector;
    asm.mov(word_ptr(gate), ax)?;
    asm.mov(word_ptr(gate + 2), 8)?;
    asm.mov(word_ptr(gate + 4), 0x8e00)?;
    asm.shr(eax, 16)?;
    asm.mov(word_ptr(gate + 6), ax)?;
    store(asm, POINTER, (IDT << 16) | 0x7ff)?;
    store(asm, POINTER + 4, IDT >> 16)?;
    asm.lidt(fword_ptr(POINTER))
}

/// Initialises the 8259As: vectors from 0x20 and 0x28, all inputs masked but those of `unmasked`.
pub fn set_up_pics(asm: &mut CodeAssembler, unmasked: u32) -> Assembled {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0x20),
        (0xa1, 0x28),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, !unmasked & 0xff),
        (0xa1, 0xff),
    ] {
        out8(asm, port, value)?;
    }
    Ok(())
}

/// Loads the flat segments: code by a far return, which takes the address that a near call leaves.
fn load_segments(asm: &mut CodeAssembler) -> Assembled {
    let (mut far_return, mut begin) = (asm.create_label(), asm.create_label());
    asm.jmp(begin)?;
    asm.set_label(&mut far_return)?;
    asm.retf()?;
    asm.set_label(&mut begin)?;
    asm.push(8)?;
    asm.call(far_return)?;
    asm.mov(eax, 0x10)?;
    for segment in [ds, es, ss] {
        asm.mov(segment, eax)?;
    }
    Ok(())
}

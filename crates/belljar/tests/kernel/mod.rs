//! Kernels of a few instructions.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write;
use tempfile::NamedTempFile;

/// A file that holds `bytes`.
pub fn file_of(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A multiboot kernel of raw 32-bit code.
pub fn kernel(code: &[u8]) -> NamedTempFile {
    let (magic, flags, at) = (0x1bad_b002_u32, 0x1_0000_u32, 0x10_0000_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, at, at, 0, 0, at + 32];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(code);
    file_of(&bytes)
}

/// mov dx, 0x3f8; then for each character: mov al, c; out dx, al.
pub fn printing(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// mov dx, 0x604; mov ax, 0x3400; out dx, ax; hlt; jmp back to hlt.
pub const POWER_OFF: [u8; 13] = [
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4, 0xeb, 0xfd,
];

/// Echoes what the serial port receives, and powers off at a full stop: again: mov dx, 0x3fd; in
/// al, dx; test al, 1; jz again; mov dx, 0x3f8; in al, dx; out dx, al; cmp al, '.'; jne again.
pub fn echoing() -> Vec<u8> {
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0x3c, b'.', 0x75, 0xed,
    ];
    code.extend(POWER_OFF);
    code
}

/// Prints `text` and then spins with interrupts off: cli; jmp to itself.
pub fn spinning(text: &str) -> Vec<u8> {
    let mut code = printing(text);
    code.extend([0xfa, 0xeb, 0xfe]);
    code
}

/// Prints `text` and then spins with interrupts off, but looks now and then whether the serial port
/// has received something; then it prints "on" and powers off: cli; mov dx, 0x3fd; again: mov ecx,
/// 1000000; inner: dec ecx; jnz inner; in al, dx; test al, 1; jz again.
pub fn spinning_until_typed(text: &str) -> Vec<u8> {
    let mut code = printing(text);
    code.extend([0xfa, 0x66, 0xba, 0xfd, 0x03, 0xb9]);
    code.extend(1_000_000_u32.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xec, 0xa8, 0x01, 0x74, 0xf3]);
    code.extend(printing("on"));
    code.extend(POWER_OFF);
    code
}

/// Prints without end: mov dx, 0x3f8; mov al, '#'; again: out dx, al; jmp again.
pub const CHATTY: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'#', 0xee, 0xeb, 0xfd];

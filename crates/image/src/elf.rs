//! What a program names for the dynamic linker. System V ABI, chapter 5.

use object::Endianness;
use object::elf::DT_NEEDED;
use object::read::elf::{ElfFile64, ProgramHeader};

/// What an ELF file needs before it can run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The path of the dynamic linker, which programs name and libraries do not.
    pub(crate) interpreter: Option<String>,
    /// The names of the shared libraries.
    pub(crate) libraries: Vec<String>,
}

/// What `file` needs: nothing if it is static, `None` if it is no 64-bit ELF file.
pub(crate) fn needs(file: &[u8]) -> Option<Needs> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let elf = ElfFile64::<Endianness>::parse(file).ok()?;
    let mut segments = elf.elf_program_headers().iter();
    let interpreter = segments.find_map(|s| s.interpreter(elf.endian(), file).ok().flatten());
    let table = elf.elf_dynamic_table().ok()?;
    let libraries = table
        .iter()
        .filter(|entry| entry.tag == DT_NEEDED)
        .map(|entry| table.string(entry).map(text))
        .collect::<Result<_, _>>()
        .ok()?;
    Some(Needs {
        interpreter: interpreter.map(text),
        libraries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_names_its_linker_and_the_c_library() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&program).unwrap();
        let linker = needs.interpreter.unwrap();
        assert!(linker.ends_with("ld-linux-x86-64.so.2"), "{linker}");
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"));
    }

    #[test]
    fn what_is_no_program_has_no_needs() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        assert_eq!(needs(&program[..40]), None);
    }
}

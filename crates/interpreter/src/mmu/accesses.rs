//! Accesses of any size, whatever they meet: RAM, devices, two pages.

use super::{LONGEST, Mmu, Target, check_alignment, wrap};
use crate::host::Word;
use belljar_memory::PAGE_SIZE;
use belljar_x86::paging::{Flush, PagingMode, is_canonical, load_pdptes};
use belljar_x86::{Access, CpuState, Exception, LinearMemory, debug};

impl Mmu {
    /// Checks an access as a whole and translates its (at most two) parts: host or device, and the
    /// first part's length.
    fn resolve_range(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        access: Access,
    ) -> Result<(Target, usize, Option<Target>), Exception> {
        let linear = wrap(cpu, linear);
        let last = wrap(cpu, linear.wrapping_add(size as u64 - 1));
        if cpu.long_mode() && !(is_canonical(linear) && is_canonical(last)) {
            self.noncanonical = true;
            return Err(Exception::general_protection(0));
        }
        if debug::any_active(cpu) && !access.is_implicit_supervisor() {
            self.breakpoints |=
                debug::data_breakpoint(cpu, linear, size as u64, access.is_write()).unwrap_or(0);
        }
        let first = self.resolve(cpu, linear, access)?;
        let room = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        if size <= room {
            return Ok((first, size, None));
        }
        let second = self.resolve(cpu, last & !(PAGE_SIZE - 1), access)?;
        Ok((first, room, Some(second)))
    }

    fn read_target(&self, target: Target, bytes: &mut [u8]) {
        match target {
            // SAFETY: `resolve_range` gave a host address of guest RAM and a length that stays
            // within its page.
            Target::Ram(host) => unsafe {
                crate::host::copy(bytes.as_mut_ptr(), host, bytes.len());
            },
            Target::Device(gpa) => {
                let mut at = gpa;
                for part in bytes.chunks_mut(LONGEST) {
                    self.board.mmio_read(self.id, at, part);
                    at = at.wrapping_add(part.len() as u64);
                }
            }
        }
    }

    fn write_target(&mut self, target: Target, bytes: &[u8]) {
        match target {
            Target::Ram(host) => {
                // SAFETY: as in `read_target`.
                unsafe { crate::host::copy(host, bytes.as_ptr(), bytes.len()) };
                self.written(host);
            }
            Target::Device(gpa) => {
                let mut at = gpa;
                for part in bytes.chunks(LONGEST) {
                    self.board.mmio_write(self.id, at, part);
                    at = at.wrapping_add(part.len() as u64);
                }
            }
        }
    }

    /// Notes that RAM at `host` was written to outside the fast path.
    pub fn written(&mut self, host: *mut u8) {
        if self.memory.code().changed(self.page_of(host)) {
            self.disturbed = true;
            self.invalidations += 1;
        }
    }

    /// Reads any number of bytes that lie in at most two pages.
    ///
    /// # Errors
    /// The exception to deliver.
    pub fn read_bytes(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        bytes: &mut [u8],
        access: Access,
    ) -> Result<(), Exception> {
        let (first, room, second) = self.resolve_range(cpu, linear, bytes.len(), access)?;
        let (head, tail) = bytes.split_at_mut(room);
        self.read_target(first, head);
        if let Some(second) = second {
            self.read_target(second, tail);
        }
        Ok(())
    }

    /// Writes any number of bytes that lie in at most two pages.
    ///
    /// # Errors
    /// The exception to deliver; then nothing was written.
    pub fn write_bytes(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        bytes: &[u8],
        access: Access,
    ) -> Result<(), Exception> {
        let (first, room, second) = self.resolve_range(cpu, linear, bytes.len(), access)?;
        let (head, tail) = bytes.split_at(room);
        self.write_target(first, head);
        if let Some(second) = second {
            self.write_target(second, tail);
        }
        Ok(())
    }

    /// Host address of `size` bytes, if they are RAM and contiguous on the host. Whoever writes
    /// there says so by [`written`](Self::written).
    ///
    /// # Errors
    /// The exception to deliver.
    pub fn host_range(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        access: Access,
    ) -> Result<Option<*mut u8>, Exception> {
        Ok(match self.resolve_range(cpu, linear, size, access)? {
            (Target::Ram(host), _, None) => Some(host),
            (Target::Ram(first), room, Some(Target::Ram(second)))
                if first.wrapping_add(room) == second =>
            {
                Some(first)
            }
            _ => None,
        })
    }

    /// Loads a `T` when the fast path missed.
    ///
    /// # Errors
    /// The exception to deliver.
    pub fn load_word<T: Word>(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        access: Access,
    ) -> Result<T, Exception> {
        if !access.is_implicit_supervisor() {
            check_alignment(cpu, linear, T::BYTES)?;
        }
        let size = T::BYTES as usize;
        if let (Target::Ram(host), _, None) = self.resolve_range(cpu, linear, size, access)? {
            // SAFETY: `resolve_range` gave a host address of guest RAM, and the access stays within
            // its page.
            return Ok(unsafe { T::load(host) });
        }
        let mut bytes = [0; 8];
        self.read_bytes(cpu, linear, &mut bytes[..size], access)?;
        Ok(T::truncate(u64::from_le_bytes(bytes)))
    }

    /// Stores a `T` when the fast path missed.
    ///
    /// # Errors
    /// The exception to deliver; then nothing was written.
    pub fn store_word<T: Word>(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        value: T,
        access: Access,
    ) -> Result<(), Exception> {
        if !access.is_implicit_supervisor() {
            check_alignment(cpu, linear, T::BYTES)?;
        }
        let size = T::BYTES as usize;
        if let (Target::Ram(host), _, None) = self.resolve_range(cpu, linear, size, access)? {
            // SAFETY: as in `load_word`.
            unsafe { T::store(host, value) };
            self.written(host);
            return Ok(());
        }
        self.write_bytes(cpu, linear, &value.extend().to_le_bytes()[..size], access)
    }
}

impl LinearMemory for Mmu {
    fn load(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u8,
        access: Access,
    ) -> Result<u64, Exception> {
        Ok(match size {
            1 => self.load_word::<u8>(cpu, linear, access)?.extend(),
            2 => self.load_word::<u16>(cpu, linear, access)?.extend(),
            4 => self.load_word::<u32>(cpu, linear, access)?.extend(),
            _ => self.load_word::<u64>(cpu, linear, access)?,
        })
    }

    fn store(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u8,
        value: u64,
        access: Access,
    ) -> Result<(), Exception> {
        match size {
            1 => self.store_word(cpu, linear, value as u8, access),
            2 => self.store_word(cpu, linear, value as u16, access),
            4 => self.store_word(cpu, linear, value as u32, access),
            _ => self.store_word(cpu, linear, value, access),
        }
    }

    fn probe(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u32,
        access: Access,
    ) -> Result<(), Exception> {
        let mut done = 0;
        while done < size {
            let part = (size - done).min(PAGE_SIZE as u32);
            let at = linear.wrapping_add(u64::from(done));
            self.resolve_range(cpu, at, part as usize, access)?;
            done += part;
        }
        Ok(())
    }

    fn address_space_changed(&mut self, cpu: &mut CpuState) -> Result<(), Exception> {
        self.flush(Flush::NonGlobal);
        if PagingMode::of(cpu) == PagingMode::Pae {
            cpu.pdpte = load_pdptes(cpu, &self.memory)?;
        }
        Ok(())
    }
}

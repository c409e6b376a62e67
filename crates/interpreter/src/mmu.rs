//! Guest memory at linear addresses: the software TLB and what happens when it misses.

mod accesses;
mod windows;

use crate::host::Word;
use crate::shared::{Peer, Requests};
use crate::spaces::{Known, Spaces};
use crate::tlb::{Entries, Entry, Nature, Set, Tlb};
use crate::windows::Windows;
use belljar_engine::{Board, VcpuId};
use belljar_memory::{CodePages, GuestMemory, GuestPhysAddr, PAGE_SIZE};
use belljar_x86::bits::{cr0, rflags};
use belljar_x86::paging::{Flush, is_canonical, translate};
use belljar_x86::{Access, CpuState, Exception, control, debug};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub use crate::flushes::Flushes;

/// Longest run of bytes that one access takes: a vector register or a part of a device's register
/// file.
const LONGEST: usize = 64;

/// Where one page's part of an access goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// RAM at this host address.
    Ram(*mut u8),
    /// Not RAM.
    Device(GuestPhysAddr),
}

/// The page from which instructions are fetched.
#[derive(Clone, Copy, Debug)]
pub enum CodePage {
    /// A page of RAM, by its index in [`CodePages`].
    Ram(usize),
    /// Not RAM: nothing of it can be cached.
    Device(GuestPhysAddr),
}

/// The memory of one vCPU.
#[derive(Debug)]
pub struct Mmu {
    tlb: Tlb,
    spaces: Spaces,
    memory: GuestMemory,
    base: *mut u8,
    board: Arc<dyn Board>,
    id: VcpuId,
    /// The vCPU as the others see it, with their requests.
    own: Arc<Peer>,
    /// The last general-protection fault of this memory was for an address that is not canonical:
    /// it is #SS if the operand lies on the stack.
    pub noncanonical: bool,
    /// A store changed cached code: the present block must end.
    pub disturbed: bool,
    /// DR6 bits of data breakpoints that accesses have hit.
    pub breakpoints: u64,
    /// Changes whenever a translation for fetches may have.
    pub epoch: u64,
    /// Walks of the page tables.
    pub misses: u64,
    /// Pages of cached code that stores changed.
    pub invalidations: u64,
    /// What was flushed since an engine that caches more took note of it.
    flushes: Flushes,
    /// Whether pages of [`evicted`](Self::settle) are kept in mind.
    keeps_evicted: bool,
    /// Pages whose fast path for writes gave way to another's.
    evicted: Vec<usize>,
    /// Pages that the host's MMU checks, for an engine that wants them.
    windows: Option<Windows>,
    /// What a program with windows looked for when it had a page fault of its own.
    wanted: Option<(u64, Access)>,
}

/// The most pages that [`Mmu::settle`] has to deal with.
const MOST_EVICTED: usize = 256;

// SAFETY: `base` is the start of the mapping that `memory` keeps alive; it is only used as guest
// memory.
unsafe impl Send for Mmu {}

impl Mmu {
    /// The memory of vCPU `id`, which the others see as `own`.
    pub fn new(memory: GuestMemory, board: Arc<dyn Board>, id: VcpuId, own: Arc<Peer>) -> Self {
        let base = memory.mapping().0.as_ptr();
        Self {
            tlb: Tlb::new(),
            spaces: Spaces::new(),
            memory,
            base,
            board,
            id,
            own,
            noncanonical: false,
            disturbed: false,
            breakpoints: 0,
            epoch: 1,
            misses: 0,
            invalidations: 0,
            flushes: Flushes::default(),
            keeps_evicted: false,
            evicted: Vec::new(),
            windows: None,
            wanted: None,
        }
    }

    /// What was flushed, to be taken note of, and the record of cached code.
    pub fn changes(&mut self) -> (&mut Flushes, &CodePages) {
        (&mut self.flushes, self.memory.code())
    }

    /// Puts the TLB, which is empty then, into memory that generated code looks into; it uses `size`
    /// entries of each set.
    ///
    /// # Safety
    /// As for [`Tlb::within`]: `entries` outlives this object.
    pub unsafe fn place_tlb(&mut self, entries: NonNull<Entries>, size: usize) {
        // SAFETY: the caller's promise.
        self.tlb = unsafe { Tlb::within(entries, size) };
    }

    /// For an engine that goes on writing through host addresses whose entries gave way to others:
    /// such pages are kept in mind until [`settle`](Self::settle).
    pub fn keep_evicted(&mut self) {
        self.keeps_evicted = true;
    }

    /// Whether [`settle`](Self::settle) should be called before more entries give way.
    pub fn must_settle(&self) -> bool {
        self.evicted.len() >= MOST_EVICTED
    }

    /// Nothing is written any more through host addresses from before: pages of which others have
    /// cached code meanwhile count as changed.
    #[inline]
    pub fn settle(&mut self) {
        for page in self.evicted.drain(..) {
            if self.memory.code().changed(page) {
                self.invalidations += 1;
            }
        }
    }

    /// Translates `linear` for the program's accesses of kind `access` and enters it into the TLB.
    /// Tells whether such accesses within the page need nothing but the TLB from now on. If not,
    /// the instruction must be executed in full.
    ///
    /// # Errors
    /// The page fault that the access raises.
    pub fn make_fast(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        access: Access,
    ) -> Result<bool, Exception> {
        let linear = wrap(cpu, linear);
        if cpu.long_mode() && !is_canonical(linear) {
            return Ok(false);
        }
        if matches!(self.resolve(cpu, linear, access)?, Target::Device(_)) {
            return Ok(false);
        }
        let entry = self.tlb.entry_in(set_of(cpu, access), linear);
        let tag = if access.is_write() {
            entry.write
        } else {
            entry.read
        };
        Ok(tag == linear & !(PAGE_SIZE - 1))
    }

    /// The machine's RAM.
    #[inline(always)]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Host address of `linear` if a read of a `T` there needs nothing but the load.
    #[inline(always)]
    pub fn fast_read<T: Word>(&self, linear: u64) -> Option<*mut u8> {
        let entry = self.tlb.entry(linear);
        (entry.read == Entry::tag_of_last::<T>(linear)).then(|| entry.host(linear))
    }

    /// Host address of `linear` if a write of a `T` there needs nothing but the store.
    #[inline(always)]
    pub fn fast_write<T: Word>(&self, linear: u64) -> Option<*mut u8> {
        let entry = self.tlb.entry(linear);
        (entry.write == Entry::tag_of_last::<T>(linear)).then(|| entry.host(linear))
    }

    /// Host address of `linear` if an access to `size` bytes there needs nothing else.
    #[inline]
    pub fn fast_span(&self, linear: u64, size: u64, access: Access) -> Option<*mut u8> {
        let entry = self.tlb.entry(linear);
        let tag = if access.is_write() {
            entry.write
        } else {
            entry.read
        };
        let last = linear.wrapping_add(size.wrapping_sub(1)) & !(PAGE_SIZE - 1);
        (tag == last).then(|| entry.host(linear))
    }

    /// Chooses the TLB's set for data accesses of the program as `cpu` stands.
    pub fn select(&mut self, cpu: &CpuState) {
        // Alignment checks and data breakpoints need to see every access.
        let set = if alignment_checked(cpu) || debug::any_active(cpu) {
            Set::Never
        } else {
            set_of(cpu, Access::Read)
        };
        self.tlb.select(set);
    }

    /// Drops translations.
    pub fn flush(&mut self, what: Flush) {
        self.spaces.flush(what);
        self.flush_windows(what);
        self.flush_first_level(what);
    }

    /// Another address space was loaded, which drops `what`. The first level of the TLB holds one
    /// address space at a time.
    pub fn change_space(&mut self, what: Flush) {
        self.spaces.flush(what);
        self.flush_windows(what);
        self.flush_first_level(Flush::NonGlobal);
    }

    fn flush_first_level(&mut self, what: Flush) {
        if what == Flush::None {
            return;
        }
        // Afterwards it is forgotten which pages were written to.
        if self.is_asked() {
            self.answer_requests();
        }
        match what {
            Flush::None => {}
            Flush::Address { linear, .. } => {
                // Who keeps the places of code by pages of 4 KiB must forget them all.
                self.flushes.all |= self.tlb.may_be_large(linear);
                self.tlb.flush_address(linear);
            }
            Flush::Pcid(_) | Flush::NonGlobal => self.tlb.flush_non_global(),
            Flush::All => self.tlb.flush_all(),
        }
        self.flushes.add(what);
        self.epoch += 1;
    }

    /// Whether another vCPU has asked to drop fast paths for writes.
    pub fn is_asked(&self) -> bool {
        // What this vCPU has written comes first: who asks later finds it when it reads the code.
        fence(Ordering::SeqCst);
        self.own.is_asked()
    }

    /// Works off the requests of other vCPUs. A page to which there was a fast path counts as
    /// changed.
    pub fn answer_requests(&mut self) {
        let (requests, number) = self.own.take_requests();
        match requests {
            Requests::Pages(pages) => {
                for page in pages {
                    if self.protect(page) {
                        self.memory.code().changed(page);
                    }
                }
            }
            Requests::All => {
                let (memory, base) = (&self.memory, self.base as usize);
                self.tlb.drop_all_writes(|host| {
                    let page = (host as usize - base) / PAGE_SIZE as usize;
                    memory.code().changed(page);
                });
                if let Some(windows) = &mut self.windows {
                    windows.protect_all(|page| {
                        memory.code().changed(page);
                    });
                }
            }
        }
        self.own.answer(number);
    }

    /// Drops fast paths for writes to page `page` of RAM; tells whether there was one.
    pub fn protect(&mut self, page: usize) -> bool {
        let host = self.base.wrapping_add(page * PAGE_SIZE as usize);
        let windows = self.windows.as_mut();
        let shown = windows.is_some_and(|windows| windows.protect(page));
        self.tlb.drop_writes(host) || shown
    }

    /// The page from which the instruction at `linear` is fetched.
    ///
    /// # Errors
    /// The exception of the fetch.
    pub fn code_page(&mut self, cpu: &CpuState, linear: u64) -> Result<CodePage, Exception> {
        let linear = wrap(cpu, linear);
        if cpu.long_mode() && !is_canonical(linear) {
            return Err(Exception::general_protection(0));
        }
        Ok(match self.resolve(cpu, linear, Access::Fetch)? {
            Target::Ram(host) => CodePage::Ram(self.page_of(host)),
            Target::Device(gpa) => CodePage::Device(gpa),
        })
    }

    /// The page of RAM from which the instruction at `linear` is fetched, if the TLB's first level
    /// has it in `set`.
    #[inline]
    pub fn known_code_page(&self, set: Set, linear: u64) -> Option<usize> {
        let entry = self.tlb.entry_in(set, linear);
        let page = linear & !(PAGE_SIZE - 1);
        (entry.fetch == page).then(|| self.page_of(entry.host(page)))
    }

    /// Whether the page of `linear`, which the first level of the TLB has in `set`, is mapped
    /// globally.
    #[inline]
    pub fn is_global(&self, set: Set, linear: u64) -> bool {
        self.tlb.is_global(set, linear)
    }

    /// Whether the page of code at `linear`, for which [`code_page`](Self::code_page) was just
    /// called, is mapped globally.
    pub fn code_is_global(&self, cpu: &CpuState, linear: u64) -> bool {
        let linear = wrap(cpu, linear);
        self.tlb.is_global(set_of(cpu, Access::Fetch), linear)
    }

    /// Reads code for the decoder: from RAM, or from what is not.
    pub fn read_code(&self, page: CodePage, offset: u64, bytes: &mut [u8]) {
        match page {
            CodePage::Ram(page) => {
                let host = self
                    .base
                    .wrapping_add(page * PAGE_SIZE as usize + offset as usize);
                // SAFETY: the page lies within the mapping, and the caller stays within the page.
                unsafe { crate::host::copy(bytes.as_mut_ptr(), host, bytes.len()) };
            }
            CodePage::Device(gpa) => {
                let mut at = gpa.page().wrapping_add(offset);
                for part in bytes.chunks_mut(LONGEST) {
                    self.board.mmio_read(self.id, at, part);
                    at = at.wrapping_add(part.len() as u64);
                }
            }
        }
    }

    fn page_of(&self, host: *mut u8) -> usize {
        (host as usize - self.base as usize) / PAGE_SIZE as usize
    }

    /// Translates for an access within one page and fills the TLB.
    fn resolve(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        access: Access,
    ) -> Result<Target, Exception> {
        let set = set_of(cpu, access);
        let entry = self.tlb.entry_in(set, linear);
        let tag = match access {
            Access::Read | Access::SystemRead => entry.read,
            Access::Write | Access::SystemWrite => entry.write,
            Access::Fetch => entry.fetch,
        };
        if tag == linear & !(PAGE_SIZE - 1) {
            return Ok(Target::Ram(entry.host(linear)));
        }
        let pcid = control::current_pcid(cpu);
        let known = match self.spaces.find(set, linear, access, pcid) {
            Some(known) => known,
            None => match self.walk(cpu, linear, access, set)? {
                Ok(known) => known,
                Err(device) => return Ok(Target::Device(device)),
            },
        };
        let page = known.host;
        let writable = known.writable && !self.memory.code().is_code(self.page_of(page));
        // With the old entry it would be forgotten that its page was written to.
        if let Some(old) = self.tlb.entry_in(set, linear).written() {
            if self.is_asked() {
                self.written(old);
            }
            if self.keeps_evicted {
                self.evicted.push(self.page_of(old));
            }
        }
        self.tlb
            .fill(set, linear, page, access, writable, known.nature);
        Ok(Target::Ram(
            page.wrapping_add((linear & (PAGE_SIZE - 1)) as usize),
        ))
    }

    /// Walks the page tables and enters what is found into the TLB's second level, unless it is no
    /// RAM.
    fn walk(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        access: Access,
        set: Set,
    ) -> Result<Result<Known, GuestPhysAddr>, Exception> {
        self.misses += 1;
        let user = cpu.cpl == 3 && !access.is_implicit_supervisor();
        let found = translate(cpu, &self.memory, linear, access, user)?;
        let Some(host) = self.memory.host(found.gpa) else {
            return Ok(Err(found.gpa));
        };
        let host = host.as_ptr();
        let pcid = control::current_pcid(cpu);
        self.spaces.enter(set, linear, host, access, pcid, &found);
        Ok(Ok(Known {
            host: host.wrapping_sub((linear & (PAGE_SIZE - 1)) as usize),
            writable: found.writable || access.is_write(),
            nature: Nature {
                global: found.global,
                page_size: found.page_size,
            },
        }))
    }
}

/// Linear addresses have 32 bits outside long mode.
fn wrap(cpu: &CpuState, linear: u64) -> u64 {
    if cpu.long_mode() {
        linear
    } else {
        linear & 0xffff_ffff
    }
}

/// #AC if the access must be aligned and is not; an address that is not canonical is another fault.
pub(crate) fn check_alignment(cpu: &CpuState, linear: u64, size: u64) -> Result<(), Exception> {
    if size > 1
        && alignment_checked(cpu)
        && !linear.is_multiple_of(size)
        && (!cpu.long_mode() || is_canonical(linear) && is_canonical(linear.wrapping_add(size - 1)))
    {
        return Err(Exception::alignment_check());
    }
    Ok(())
}

/// Whether accesses of the program must be aligned. SDM 3A, 6.15, interrupt 17.
pub fn alignment_checked(cpu: &CpuState) -> bool {
    cpu.cpl == 3 && cpu.rflags & rflags::AC != 0 && cpu.cr0 & cr0::AM != 0
}

/// The TLB's set for an access: translations are cached by the rights that they were made with.
pub fn set_of(cpu: &CpuState, access: Access) -> Set {
    if access.is_implicit_supervisor() {
        Set::Supervisor
    } else if cpu.cpl == 3 {
        Set::User
    } else if cpu.rflags & rflags::AC != 0 {
        Set::SupervisorAc
    } else {
        Set::Supervisor
    }
}

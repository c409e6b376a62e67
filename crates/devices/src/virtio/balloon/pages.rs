//! The pages of a chain, checked and discarded.

use crate::buffers::{BufferError, Buffers};
use belljar_memory::{DmaMemory, GuestMemory, GuestPhysAddr, MemoryError, PAGE_SHIFT, PAGE_SIZE};
use thiserror::Error;

/// Bytes of a page's number. Virtio 1.2, 5.5.6.
const NUMBER: usize = 4;
/// The most pages that a driver may name in one chain. Drivers name 1024 at most; each costs a system
/// call, if no two are neighbours, and a stop waits for the chain under way.
const MOST_NUMBERS: u64 = 16_384;
/// Numbers that are looked at together.
const PIECE: usize = 1024;

/// What the driver has done wrong with pages.
#[derive(Debug, Error)]
pub(super) enum PagesError {
    /// Numbers that are cut off.
    #[error("{0} bytes are no whole page numbers")]
    CutOff(u64),
    /// Too many pages in one chain.
    #[error("{pages} pages are more than a chain may have ({most})")]
    TooMany {
        /// Pages of the chain.
        pages: u64,
        /// The most that it may have.
        most: u64,
    },
    /// A page that is no RAM.
    #[error("page number {0:#x} is not RAM")]
    NotRam(u32),
    /// The numbers cannot be read.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// Reported pages that are no RAM.
    #[error("a reported range is not RAM")]
    Range(#[source] MemoryError),
}

/// Pages of RAM that follow one another.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    count: u64,
}

impl Run {
    /// Takes `page` in if it lies at either end.
    fn extend(&mut self, page: u64) -> bool {
        if page == self.first + self.count {
            self.count += 1;
        } else if page + 1 == self.first {
            self.first = page;
            self.count += 1;
        } else {
            return false;
        }
        true
    }
}

/// Discards the pages whose numbers are in `list`, up to the first that is no RAM.
pub(super) fn discard_listed(
    memory: &GuestMemory,
    dma: &DmaMemory,
    list: &Buffers,
) -> Result<(), PagesError> {
    let len = list.len();
    if !len.is_multiple_of(NUMBER as u64) {
        return Err(PagesError::CutOff(len));
    }
    let pages = len / NUMBER as u64;
    if pages > MOST_NUMBERS {
        let most = MOST_NUMBERS;
        return Err(PagesError::TooMany { pages, most });
    }
    let mut bytes = [0; PIECE * NUMBER];
    let mut run: Option<Run> = None;
    let mut done = 0;
    while done < len {
        let now = (len - done).min(bytes.len() as u64);
        let piece = &mut bytes[..now as usize];
        list.read(dma, done, piece)?;
        done += now;
        for number in piece.as_chunks::<NUMBER>().0 {
            let number = u32::from_le_bytes(*number);
            let page = u64::from(number);
            if memory.offset(GuestPhysAddr(page << PAGE_SHIFT)).is_none() {
                discard_run(memory, run)?;
                return Err(PagesError::NotRam(number));
            }
            if !run.as_mut().is_some_and(|run| run.extend(page)) {
                let next = Run {
                    first: page,
                    count: 1,
                };
                discard_run(memory, run.replace(next))?;
            }
        }
    }
    discard_run(memory, run)
}

fn discard_run(memory: &GuestMemory, run: Option<Run>) -> Result<(), PagesError> {
    match run {
        Some(Run { first, count }) => discard(memory, first << PAGE_SHIFT, count << PAGE_SHIFT),
        None => Ok(()),
    }
}

/// Discards the pages that `reported` consists of.
pub(super) fn discard_reported(memory: &GuestMemory, reported: &Buffers) -> Result<(), PagesError> {
    if reported.len() > memory.size() {
        return Err(PagesError::TooMany {
            pages: reported.len() / PAGE_SIZE,
            most: memory.size() / PAGE_SIZE,
        });
    }
    for buffer in reported.list() {
        discard(memory, buffer.start.0, buffer.len.into())?;
    }
    Ok(())
}

fn discard(memory: &GuestMemory, start: u64, len: u64) -> Result<(), PagesError> {
    match memory.discard(GuestPhysAddr(start), len) {
        // The guest loses nothing if the host does not want its memory back.
        Err(error @ MemoryError::Discard { .. }) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "memory stays with the guest");
            Ok(())
        }
        result => result.map_err(PagesError::Range),
    }
}

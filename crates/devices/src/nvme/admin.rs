//! Commands of the admin queue. NVM Express 1.4, chapter 5.

use super::command::{Command, Status};
use super::controller::{Controller, Inner};
use super::identify;
use super::prp::{self, PAGE};
use super::queues::{CompletionQueue, SubmissionQueue};
use super::registers::MOST_ENTRIES;
use crate::timers::lock;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

const DELETE_SUBMISSION: u8 = 0x00;
const CREATE_SUBMISSION: u8 = 0x01;
const GET_LOG_PAGE: u8 = 0x02;
const DELETE_COMPLETION: u8 = 0x04;
const CREATE_COMPLETION: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const EVENT_REQUEST: u8 = 0x0c;

/// Features.
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const WRITE_CACHE: u8 = 0x06;
const QUEUES: u8 = 0x07;
const EVENTS: u8 = 0x0b;
/// Bit of Set Features: keep it over a reset.
const SAVE: u32 = 1 << 31;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done, with this result.
    Done(u32),
    /// It waits for an event.
    Held,
}

/// Carries out a command.
pub(super) fn execute(
    inner: &Inner,
    controller: &mut Controller,
    command: &Command,
) -> Result<Outcome, Status> {
    if !command.is_plain() {
        return Err(Status::INVALID_FIELD);
    }
    let done = |()| Outcome::Done(0);
    match command.opcode() {
        DELETE_SUBMISSION => delete_submission(inner, controller, command).map(done),
        CREATE_SUBMISSION => create_submission(inner, controller, command).map(done),
        DELETE_COMPLETION => delete_completion(inner, controller, command).map(done),
        CREATE_COMPLETION => create_completion(inner, command).map(done),
        GET_LOG_PAGE => log_page(inner, command).map(done),
        IDENTIFY => identify(inner, command).map(done),
        // Commands are under way at the disks already, or done: it was not aborted.
        ABORT => Ok(Outcome::Done(1)),
        SET_FEATURES => set_feature(inner, controller, command).map(Outcome::Done),
        GET_FEATURES => get_feature(inner, controller, command).map(Outcome::Done),
        EVENT_REQUEST if controller.events > identify::EVENTS => Err(Status::TOO_MANY_EVENTS),
        EVENT_REQUEST => {
            controller.events += 1;
            Ok(Outcome::Held)
        }
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// The queue that a command names: not the admin queue, and one that the controller can have.
fn queue_number(inner: &Inner, command: &Command) -> Result<usize, Status> {
    let number = (command.word(10) & 0xffff) as usize;
    if (1..inner.tails.len()).contains(&number) {
        Ok(number)
    } else {
        Err(Status::INVALID_QUEUE_ID)
    }
}

/// Size and place of a queue to make.
fn queue_place(command: &Command) -> Result<(u32, u64), Status> {
    let size = (command.word(10) >> 16) + 1;
    let (base, _) = command.prps();
    if !(2..=MOST_ENTRIES).contains(&size) {
        return Err(Status::INVALID_QUEUE_SIZE);
    }
    // Contiguous, and at the beginning of a page.
    if command.word(11) & 1 == 0 || !base.is_multiple_of(PAGE) {
        return Err(Status::INVALID_FIELD);
    }
    Ok((size, base))
}

fn create_completion(inner: &Inner, command: &Command) -> Result<(), Status> {
    let number = queue_number(inner, command)?;
    let (size, base) = queue_place(command)?;
    let mut slot = lock(&inner.completions[number]);
    if slot.is_some() {
        return Err(Status::INVALID_QUEUE_ID);
    }
    let vector = (command.word(11) >> 16) as u16;
    let vectors = if inner.msix.enabled() {
        inner.msix.vectors()
    } else if inner.msi.enabled() {
        inner.msi.vectors()
    } else {
        1
    };
    if vector >= vectors {
        return Err(Status::INVALID_VECTOR);
    }
    let interrupts = command.word(11) & 2 != 0;
    *slot = Some(CompletionQueue::new(base, size, vector, interrupts));
    Ok(())
}

fn create_submission(
    inner: &Inner,
    controller: &mut Controller,
    command: &Command,
) -> Result<(), Status> {
    let number = queue_number(inner, command)?;
    let (size, base) = queue_place(command)?;
    if controller.submissions[number].is_some() {
        return Err(Status::INVALID_QUEUE_ID);
    }
    let completions = (command.word(11) >> 16) as u16;
    let exists = |slot: &Mutex<Option<CompletionQueue>>| lock(slot).is_some();
    if completions == 0
        || !inner
            .completions
            .get(usize::from(completions))
            .is_some_and(exists)
    {
        return Err(Status::INVALID_CQ);
    }
    inner.tails[number].store(0, Ordering::SeqCst);
    inner.heads[number].store(0, Ordering::SeqCst);
    controller.submissions[number] = Some(SubmissionQueue {
        base,
        size,
        head: 0,
        completions,
    });
    Ok(())
}

fn delete_submission(
    inner: &Inner,
    controller: &mut Controller,
    command: &Command,
) -> Result<(), Status> {
    let number = queue_number(inner, command)?;
    if controller.submissions[number].take().is_none() {
        return Err(Status::INVALID_QUEUE_ID);
    }
    // Its commands are done before this one is.
    inner.drain();
    Ok(())
}

fn delete_completion(
    inner: &Inner,
    controller: &Controller,
    command: &Command,
) -> Result<(), Status> {
    let number = queue_number(inner, command)?;
    let mut submissions = controller.submissions.iter().flatten();
    if submissions.any(|queue| usize::from(queue.completions) == number) {
        return Err(Status::INVALID_QUEUE_DELETION);
    }
    let queue = lock(&inner.completions[number]).take();
    inner.update_line();
    queue.map(|_| ()).ok_or(Status::INVALID_QUEUE_ID)
}

/// Writes what a command asked for to where it says.
fn answer(inner: &Inner, command: &Command, data: &[u8]) -> Result<(), Status> {
    prp::buffers(&inner.memory, command.prps(), data.len() as u64)?
        .write(&inner.memory, 0, data)
        .map_err(|_| Status::DATA_TRANSFER)
}

fn identify(inner: &Inner, command: &Command) -> Result<(), Status> {
    const NAMESPACE: u32 = 0;
    const CONTROLLER: u32 = 1;
    const ACTIVE: u32 = 2;
    const DESCRIPTORS: u32 = 3;
    let (namespace, count) = (command.namespace(), inner.disks.len() as u32);
    let data = match command.word(10) & 0xff {
        NAMESPACE => identify::namespace(&*inner.disks[inner.index(namespace)?]),
        CONTROLLER => identify::controller(&inner.serial, count),
        ACTIVE if namespace >= u32::MAX - 1 => return Err(Status::INVALID_NAMESPACE),
        ACTIVE => identify::active(namespace, count),
        DESCRIPTORS => {
            inner.index(namespace)?;
            identify::descriptors(&inner.serial, namespace)
        }
        _ => return Err(Status::INVALID_FIELD),
    };
    answer(inner, command, &data)
}

fn log_page(inner: &Inner, command: &Command) -> Result<(), Status> {
    const ERRORS: u32 = 1;
    const HEALTH: u32 = 2;
    const FIRMWARE: u32 = 3;
    let page = match command.word(10) & 0xff {
        // No error was ever logged.
        ERRORS => [0; 512],
        HEALTH => identify::health(),
        FIRMWARE => identify::firmware(),
        _ => return Err(Status::INVALID_LOG_PAGE),
    };
    let words = u64::from(command.word(10) >> 16) | u64::from(command.word(11) & 0xffff) << 16;
    let len = (words + 1) * 4;
    let offset = command.wide(12);
    if len > prp::MOST || offset > page.len() as u64 || !offset.is_multiple_of(4) {
        return Err(Status::INVALID_FIELD);
    }
    let mut data = vec![0; len as usize];
    let rest = &page[offset as usize..];
    let shown = rest.len().min(data.len());
    data[..shown].copy_from_slice(&rest[..shown]);
    answer(inner, command, &data)
}

/// The result of the feature that tells the number of queues.
fn queues(inner: &Inner) -> u32 {
    let last = u32::from(inner.queues - 1);
    last << 16 | last
}

/// Whether a feature exists whose value has no effect.
fn is_plain(feature: u8) -> bool {
    matches!(
        feature,
        0x01 | 0x02 | TEMPERATURE_THRESHOLD | 0x05 | 0x08 | 0x09 | 0x0a | EVENTS
    )
}

fn set_feature(
    inner: &Inner,
    controller: &mut Controller,
    command: &Command,
) -> Result<u32, Status> {
    let (feature, value) = (command.word(10) as u8, command.word(11));
    if command.word(10) & SAVE != 0 {
        return Err(Status::NOT_SAVEABLE);
    }
    match feature {
        WRITE_CACHE => controller.write_cache = value & 1 != 0,
        QUEUES if value & 0xffff == 0xffff || value >> 16 == 0xffff => {
            return Err(Status::INVALID_FIELD);
        }
        QUEUES => return Ok(queues(inner)),
        _ if is_plain(feature) => controller.features[usize::from(feature)] = value,
        _ => return Err(Status::INVALID_FIELD),
    }
    Ok(0)
}

fn get_feature(inner: &Inner, controller: &Controller, command: &Command) -> Result<u32, Status> {
    const CAPABILITIES: u32 = 3;
    const CHANGEABLE: u32 = 1 << 2;
    let feature = command.word(10) as u8;
    if !is_plain(feature) && !matches!(feature, WRITE_CACHE | QUEUES) {
        return Err(Status::INVALID_FIELD);
    }
    if command.word(10) >> 8 & 7 == CAPABILITIES {
        return Ok(CHANGEABLE);
    }
    Ok(match feature {
        WRITE_CACHE => controller.write_cache.into(),
        QUEUES => queues(inner),
        _ => controller.features[usize::from(feature)],
    })
}

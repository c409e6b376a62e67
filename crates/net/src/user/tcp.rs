//! One connection: towards the guest our own TCP (RFC 9293), towards the world a socket of the host.

use super::output::{LARGEST_SEGMENT, MSS};
use super::{Env, Turn, unreachable_because};
use crate::ring::{Budget, Ring, SMALLEST};
use crate::wire::icmp::Unreachable;
use crate::wire::tcp::{Header, Seq, distance, flags};
use crate::wire::{protocol, tcp};
use belljar_clock::Nanos;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, readv, writev};
use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt};
use std::net::SocketAddrV4;
use std::time::Duration;

/// The window: bytes that the guest may send before the host's socket has taken them.
const WINDOW: usize = 512 << 10;
/// By how much windows are shifted that we tell.
const SHIFT: u8 = 7;
/// The most bytes on their way to the guest.
const OUTBOX: usize = 512 << 10;
/// Bytes that one turn reads from the host's socket.
const QUANTUM: usize = 256 << 10;
/// The smallest segments that the guest can ask for.
const LEAST_MSS: u16 = 88;
/// The largest segment of a guest that does not say. RFC 9293, 3.7.1.
const DEFAULT_MSS: u16 = 536;
/// When what was not acknowledged is sent again; doubles each time. RFC 6298.
const RTO: u64 = Nanos::SECOND;
const MOST_RTO: u64 = 30 * Nanos::SECOND;
/// How often something is sent again before the connection is given up.
const TRIES: u32 = 8;
/// How long the host may take to connect.
const CONNECT: u64 = 30 * Nanos::SECOND;
/// Acknowledgments in vain after which a segment counts as lost. RFC 5681.
const DUPLICATES: u32 = 3;

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The guest waits until the host is connected.
    Connecting,
    /// The host is connected, the guest is answered (SYN, ACK) and is to acknowledge.
    Answering,
    /// The host has a connection, and the guest is offered it (SYN).
    Offering,
    /// Both are connected, if only half closed.
    Open,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over; nothing more is to be said to the guest.
    Over,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub guest: SocketAddrV4,
    /// The peer as the guest sees it.
    pub peer: SocketAddrV4,
    pub queued: bool,
    /// When the guest last sent something.
    pub active: Nanos,
    socket: OwnedFd,
    stage: Stage,
    /// A SYN of ours is to be sent.
    syn_due: bool,
    /// What the socket may have, until it says otherwise.
    readable: bool,
    writable: bool,

    // Towards the guest, in the terms of RFC 9293: SND.UNA, SND.NXT, the highest SND.NXT, SND.WND.
    outbox: Ring,
    una: Seq,
    next: Seq,
    highest: Seq,
    window: usize,
    shift: u8,
    mss: u16,
    /// The host's side has sent all that it will.
    host_ended: bool,
    /// The guest has acknowledged so.
    end_acknowledged: bool,
    duplicates: u32,
    timer: Option<Nanos>,
    rto: u64,
    tries: u32,
    /// A byte is to be sent although the window is closed.
    probe: bool,

    // From the guest: RCV.NXT, and the right edge of the window as it was last told.
    inbox: Ring,
    expected: Seq,
    promised: Seq,
    our_shift: u8,
    /// The guest has sent all that it will.
    guest_ended: bool,
    /// The host's side has been told so.
    shut: bool,
    ack_owed: bool,
}

impl Flow {
    fn new(guest: SocketAddrV4, peer: SocketAddrV4, socket: OwnedFd, isn: Seq, now: Nanos) -> Self {
        Self {
            guest,
            peer,
            queued: false,
            active: now,
            socket,
            stage: Stage::Connecting,
            syn_due: false,
            readable: false,
            writable: false,
            outbox: Ring::new(OUTBOX),
            una: isn.wrapping_add(1),
            next: isn.wrapping_add(1),
            highest: isn.wrapping_add(1),
            window: 0,
            shift: 0,
            mss: DEFAULT_MSS,
            host_ended: false,
            end_acknowledged: false,
            duplicates: 0,
            timer: None,
            rto: RTO,
            tries: 0,
            probe: false,
            inbox: Ring::new(WINDOW),
            expected: 0,
            promised: 0,
            our_shift: 0,
            guest_ended: false,
            shut: false,
            ack_owed: false,
        }
    }

    /// A connection that the guest asked for with `syn`, and that `socket` is about to have.
    pub fn connecting(
        ends: (SocketAddrV4, SocketAddrV4),
        socket: OwnedFd,
        syn: &Header,
        isn: Seq,
        now: Nanos,
    ) -> Self {
        let mut flow = Self::new(ends.0, ends.1, socket, isn, now);
        flow.timer = Some(now.after(CONNECT));
        flow.greet(syn);
        flow
    }

    /// A connection that `socket` has, and that the guest is to be offered.
    pub fn offering(
        ends: (SocketAddrV4, SocketAddrV4),
        socket: OwnedFd,
        isn: Seq,
        now: Nanos,
    ) -> Self {
        let mut flow = Self::new(ends.0, ends.1, socket, isn, now);
        flow.stage = Stage::Offering;
        flow.syn_due = true;
        flow.our_shift = SHIFT;
        flow
    }

    /// Takes what the guest's SYN says.
    fn greet(&mut self, syn: &Header) {
        self.expected = syn.sequence.wrapping_add(1);
        self.promised = self.expected;
        self.window = usize::from(syn.window);
        self.mss = syn.mss.unwrap_or(DEFAULT_MSS).clamp(LEAST_MSS, MSS);
        self.shift = syn.shift.unwrap_or(0);
        self.our_shift = syn.shift.map_or(0, |_| SHIFT);
    }

    pub fn is_connecting(&self) -> bool {
        self.stage == Stage::Connecting
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.timer
    }

    /// Notes what the socket may have now.
    pub fn note(&mut self, events: EventFlags) {
        let end = EventFlags::HUP | EventFlags::ERR;
        self.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | end);
        self.writable |= events.intersects(EventFlags::OUT | end);
    }

    /// Ends the host's connection by a reset, not in good order.
    pub fn abort(&self) {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    /// Gives back what the connection has of the budget.
    pub fn discard(&mut self, budget: &mut Budget) {
        self.outbox.discard(budget);
        self.inbox.discard(budget);
    }

    /// Gives back rings that are empty.
    pub fn spare(&mut self, budget: &mut Budget) {
        self.outbox.give_back(budget);
        self.inbox.give_back(budget);
    }

    // --- Segments to the guest -------------------------------------------------------------------

    fn header(&self, sequence: Seq, flags: u8) -> Header {
        let free = WINDOW - self.inbox.len().min(WINDOW);
        let shift = if flags & flags::SYN != 0 {
            0
        } else {
            self.our_shift
        };
        Header {
            source: self.peer.port(),
            destination: self.guest.port(),
            sequence,
            acknowledgment: self.expected,
            flags,
            window: (free >> shift).min(0xffff) as u16,
            mss: None,
            shift: None,
        }
    }

    /// The right edge of the window that `header` tells.
    fn right_edge(&self, header: &Header) -> Seq {
        let shift = if header.has(flags::SYN) {
            0
        } else {
            self.our_shift
        };
        self.expected
            .wrapping_add(u32::from(header.window) << shift)
    }

    fn send(&mut self, header: &Header, offset: usize, len: usize, env: &mut Env<'_>) -> bool {
        let payload = self.outbox.range(offset, len);
        if !env
            .out
            .segment(self.peer, self.guest, header, payload, self.mss)
        {
            return false;
        }
        if header.has(flags::ACK) {
            self.promised = self.right_edge(header);
            self.ack_owed = false;
        }
        true
    }

    /// Sends a SYN, alone or as an answer.
    fn send_syn(&mut self, env: &mut Env<'_>) -> Turn {
        let mut header = self.header(self.una.wrapping_sub(1), flags::SYN);
        header.mss = Some(MSS);
        if self.stage == Stage::Answering {
            header.flags |= flags::ACK;
            header.shift = (self.our_shift != 0).then_some(SHIFT);
        } else {
            header.acknowledgment = 0;
            header.shift = Some(SHIFT);
        }
        self.timer = Some(env.now.after(self.rto));
        if !self.send(&header, 0, 0, env) {
            return Turn::Starved;
        }
        self.syn_due = false;
        Turn::Done
    }

    /// Resets the guest's side.
    fn reset_guest(&mut self, env: &mut Env<'_>) -> Fate {
        let header = self.header(self.next, flags::RST | flags::ACK);
        self.send(&header, 0, 0, env);
        Fate::Over
    }

    /// How much of the outbox has been sent, counting the end.
    fn sent(&self) -> usize {
        usize::try_from(distance(self.una, self.next)).unwrap_or(0)
    }

    fn has_sent_to(&mut self, next: Seq, now: Nanos) {
        self.next = next;
        if distance(self.highest, next) > 0 {
            self.highest = next;
        }
        self.timer.get_or_insert(now.after(self.rto));
    }

    /// Sends what the guest's window allows.
    fn transmit(&mut self, env: &mut Env<'_>) -> Turn {
        let offloads = env.out.offloads();
        let most = if offloads.checksum && offloads.tcp4 {
            LARGEST_SEGMENT
        } else {
            usize::from(self.mss)
        };
        loop {
            let sent = self.sent();
            let unsent = self.outbox.len().saturating_sub(sent);
            if unsent == 0 {
                break;
            }
            let mut room = self.window.saturating_sub(sent);
            if self.probe {
                room = room.max(1);
            }
            let len = unsent.min(room).min(most);
            // A small window is not used for small segments while larger ones are under way.
            // RFC 9293, 3.8.6.2.1.
            let silly = len < unsent && len < usize::from(self.mss) && sent > 0;
            if len == 0 || silly {
                self.timer.get_or_insert(env.now.after(self.rto));
                return Turn::Done;
            }
            let push = if len == unsent { flags::PSH } else { 0 };
            let header = self.header(self.next, flags::ACK | push);
            if !self.send(&header, sent, len, env) {
                return Turn::Starved;
            }
            self.probe = false;
            self.has_sent_to(self.next.wrapping_add(len as u32), env.now);
        }
        if self.host_ended && !self.end_acknowledged && self.sent() == self.outbox.len() {
            let header = self.header(self.next, flags::ACK | flags::FIN);
            if !self.send(&header, 0, 0, env) {
                return Turn::Starved;
            }
            self.has_sent_to(self.next.wrapping_add(1), env.now);
        }
        Turn::Done
    }

    /// Acknowledges, if that is due or the window has opened far.
    fn acknowledge(&mut self, env: &mut Env<'_>) -> Turn {
        let header = self.header(self.next, flags::ACK);
        let opened = distance(self.promised, self.right_edge(&header));
        if !self.ack_owed && opened < WINDOW as i64 / 4 {
            return Turn::Done;
        }
        if self.send(&header, 0, 0, env) {
            Turn::Done
        } else {
            Turn::Starved
        }
    }

    /// What was sent and not acknowledged is to be sent again.
    fn rewind(&mut self) {
        self.next = self.una;
    }

    // --- Segments from the guest -----------------------------------------------------------------

    /// Takes a segment. What follows from it is done by the next [`turn`](Self::turn).
    pub fn segment(&mut self, header: &Header, payload: &[u8], env: &mut Env<'_>) -> Fate {
        self.active = env.now;
        match self.stage {
            Stage::Connecting => self.while_connecting(header),
            Stage::Offering => self.while_offering(header, env),
            Stage::Answering | Stage::Open => self.while_open(header, payload, env),
        }
    }

    fn while_connecting(&mut self, header: &Header) -> Fate {
        if header.has(flags::RST) && header.sequence == self.expected {
            self.abort();
            return Fate::Over;
        }
        // The SYN again: it is answered as soon as that is possible.
        Fate::Lives
    }

    fn while_offering(&mut self, header: &Header, env: &mut Env<'_>) -> Fate {
        let for_us = header.has(flags::ACK) && header.acknowledgment == self.una;
        if header.has(flags::RST) {
            if for_us {
                self.abort();
                return Fate::Over;
            }
        } else if for_us && header.has(flags::SYN) {
            self.greet(header);
            self.open();
            self.ack_owed = true;
        } else if header.has(flags::ACK) {
            // It speaks of a connection that has long ended. RFC 9293, 3.5.1.
            let mut reset = self.header(header.acknowledgment, flags::RST);
            reset.acknowledgment = 0;
            self.send(&reset, 0, 0, env);
        }
        Fate::Lives
    }

    fn open(&mut self) {
        self.stage = Stage::Open;
        self.syn_due = false;
        self.timer = None;
        self.rto = RTO;
        self.tries = 0;
    }

    fn while_open(&mut self, header: &Header, payload: &[u8], env: &mut Env<'_>) -> Fate {
        let start = distance(self.expected, header.sequence);
        let controls = i64::from(header.flags & (flags::SYN | flags::FIN) != 0);
        let len = payload.len() as i64 + controls;
        let room = (WINDOW - self.inbox.len().min(WINDOW)) as i64;
        // RFC 9293, 3.10.7.4: first the sequence number. A segment right at the end of the window
        // may have an acknowledgment.
        let acceptable = start <= room && (start + len > 0 || (len == 0 && start == 0));
        if !acceptable {
            if self.stage == Stage::Answering && header.has(flags::SYN) {
                self.syn_due = true;
            } else {
                self.ack_owed |= !header.has(flags::RST);
            }
            return Fate::Lives;
        }
        if header.has(flags::RST) {
            if start == 0 {
                self.abort();
                return Fate::Over;
            }
            // RFC 5961, 3.2: what is only near may be forged.
            self.ack_owed = true;
            return Fate::Lives;
        }
        if header.has(flags::SYN) {
            self.ack_owed = true;
            return Fate::Lives;
        }
        if !header.has(flags::ACK) {
            return Fate::Lives;
        }
        if distance(self.highest, header.acknowledgment) > 0 {
            self.ack_owed = true;
            return Fate::Lives;
        }
        if self.stage == Stage::Answering {
            if header.acknowledgment != self.una {
                return Fate::Lives;
            }
            self.open();
        }
        self.take_acknowledgment(header, len > 0, env.now);
        if len == 0 {
            return Fate::Lives;
        }
        self.ack_owed = true;
        if start > 0 || self.guest_ended {
            // The link loses nothing; what is missing will be sent again with this.
            return Fate::Lives;
        }
        self.take_payload(header, payload, start, env)
    }

    fn take_acknowledgment(&mut self, header: &Header, has_data: bool, now: Nanos) {
        let news = distance(self.una, header.acknowledgment);
        let window = usize::from(header.window) << self.shift;
        if news > 0 {
            let news = news as usize;
            if news > self.outbox.len() {
                self.end_acknowledged = true;
            }
            self.outbox.consume(news);
            self.una = header.acknowledgment;
            if distance(self.next, self.una) > 0 {
                self.next = self.una;
            }
            self.duplicates = 0;
            self.timer = (self.una != self.highest).then(|| now.after(self.rto));
        } else if news == 0 && !has_data && window == self.window && self.una != self.highest {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES {
                self.rewind();
            }
        }
        if news >= 0 {
            self.tries = 0;
            self.rto = RTO;
            self.window = window;
        }
    }

    fn take_payload(
        &mut self,
        header: &Header,
        payload: &[u8],
        start: i64,
        env: &mut Env<'_>,
    ) -> Fate {
        let known = usize::try_from(-start).unwrap_or(0).min(payload.len());
        let room = WINDOW - self.inbox.len().min(WINDOW);
        let new = &payload[known..];
        let fits = &new[..new.len().min(room)];
        let Ok(taken) = self.take(fits, env) else {
            return self.reset_guest(env);
        };
        self.expected = self.expected.wrapping_add(taken as u32);
        if header.has(flags::FIN) && taken == new.len() {
            self.expected = self.expected.wrapping_add(1);
            self.guest_ended = true;
        }
        Fate::Lives
    }

    /// Passes data on, or keeps it in the inbox; how much of it.
    fn take(&mut self, data: &[u8], env: &mut Env<'_>) -> Result<usize, Errno> {
        let mut taken = 0;
        while self.writable && self.inbox.is_empty() && taken < data.len() {
            match send(
                &self.socket,
                &data[taken..],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => taken += count,
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken + self.inbox.put(&data[taken..], env.budget))
    }

    // --- Progress --------------------------------------------------------------------------------

    /// Does what can be done now.
    pub fn turn(&mut self, env: &mut Env<'_>) -> (Turn, Fate) {
        match self.stage {
            Stage::Connecting if self.writable => self.connected(env),
            Stage::Answering | Stage::Offering if self.syn_due => (self.send_syn(env), Fate::Lives),
            Stage::Connecting | Stage::Answering | Stage::Offering => (Turn::Done, Fate::Lives),
            Stage::Open => self.exchange(env),
        }
    }

    /// The host is connected, or it failed.
    fn connected(&mut self, env: &mut Env<'_>) -> (Turn, Fate) {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => {
                self.stage = Stage::Answering;
                self.syn_due = true;
                (self.send_syn(env), Fate::Lives)
            }
            Ok(Err(error)) | Err(error) => {
                self.refuse(unreachable_because(error), env);
                (Turn::Done, Fate::Over)
            }
        }
    }

    /// Tells the guest that its SYN was in vain.
    fn refuse(&mut self, why: Unreachable, env: &mut Env<'_>) {
        if why == Unreachable::Port {
            let header = self.header(0, flags::RST | flags::ACK);
            self.send(&header, 0, 0, env);
            return;
        }
        let [a, b] = self.guest.port().to_be_bytes();
        let [c, d] = self.peer.port().to_be_bytes();
        let [e, f, g, h] = self.expected.wrapping_sub(1).to_be_bytes();
        let transport = [a, b, c, d, e, f, g, h];
        let len = tcp::HEADER_LEN;
        env.out
            .unreachable_later(why, self.guest, self.peer, protocol::TCP, transport, len);
    }

    fn exchange(&mut self, env: &mut Env<'_>) -> (Turn, Fate) {
        if self.flush().is_err() || self.fill(env).is_err() {
            return (Turn::Done, self.reset_guest(env));
        }
        if self.transmit(env) == Turn::Starved || self.acknowledge(env) == Turn::Starved {
            return (Turn::Starved, Fate::Lives);
        }
        if self.end_acknowledged && self.shut {
            return (Turn::Done, Fate::Over);
        }
        let more = self.may_read() && self.outbox.free() > 0;
        let turn = if more { Turn::Again } else { Turn::Done };
        (turn, Fate::Lives)
    }

    /// Writes the inbox to the host's socket, and the end after it.
    fn flush(&mut self) -> Result<(), Errno> {
        while self.writable && !self.inbox.is_empty() {
            match writev(&self.socket, &self.inbox.filled()) {
                Ok(count) => self.inbox.consume(count),
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        if self.guest_ended && self.inbox.is_empty() && !self.shut {
            self.shut = true;
            match shutdown(&self.socket, Shutdown::Write) {
                // The peer has gone already: reading will tell.
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether there may be something to read that the guest would take soon.
    fn may_read(&self) -> bool {
        self.readable && !self.host_ended && self.outbox.len() < self.window.max(SMALLEST)
    }

    /// Reads from the host's socket into the outbox.
    fn fill(&mut self, env: &mut Env<'_>) -> Result<(), Errno> {
        let mut quantum = QUANTUM;
        while quantum > 0 && self.may_read() {
            if self.outbox.free() == 0 && !self.outbox.grow(env.budget) {
                return Ok(());
            }
            let free = self.outbox.free();
            match readv(&self.socket, &mut self.outbox.spare()) {
                Ok(0) => self.host_ended = true,
                Ok(count) => {
                    self.outbox.commit(count);
                    quantum = quantum.saturating_sub(count);
                    if count == free {
                        self.outbox.grow(env.budget);
                    }
                }
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Does what the time has come for; whether the connection is to be looked after.
    pub fn tick(&mut self, env: &mut Env<'_>) -> (bool, Fate) {
        if self.timer.is_none_or(|at| at > env.now) {
            return (false, Fate::Lives);
        }
        self.timer = None;
        if self.stage == Stage::Connecting {
            self.refuse(Unreachable::Host, env);
            return (false, Fate::Over);
        }
        let waits = self.stage != Stage::Open
            || self.una != self.highest
            || (self.window == 0 && !self.outbox.is_empty());
        if !waits {
            return (true, Fate::Lives);
        }
        self.tries += 1;
        if self.tries > TRIES {
            self.abort();
            return (false, self.reset_guest(env));
        }
        self.rto = (self.rto * 2).min(MOST_RTO);
        if self.stage == Stage::Open {
            self.rewind();
            self.probe = self.window == 0;
        } else {
            self.syn_due = true;
        }
        (true, Fate::Lives)
    }
}

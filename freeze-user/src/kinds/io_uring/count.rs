//! Bringing a new io_uring instance to where the old one stood.
//!
//! The kernel counts what it has taken and given in memory of its own, from 0, and a program goes by these numbers. So
//! as much is submitted as ever was, of requests to do nothing. Completions that came without an entry of their own
//! (multishot requests) are sent from another instance (IORING_OP_MSG_RING), entries that had no completion ask for none.
//!
//! ```text
//!           read by the program     not read yet
//!   CQ  ├──────────────────────────┼──────────────┤given
//!        head follows behind        head stands
//! ```
//! The kernel takes note in advance of how much room there is. So the head goes no further than it had in the end, even
//! while nobody reads: what is not read yet would be written over later.

use super::{Record, wrong};
use crate::error::{Context, Result};
use crate::kinds::Placed;
use crate::nest::Nest;
use crate::sys::uring::{
    self, Area, CQ_EVENTFD_DISABLED, ENTRIES_AT, Params, RINGS_AT, SKIP_SUCCESS, entry_size, register, setup,
};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Entries of the instance that sends messages.
const SENDER: u32 = 64;
/// Submissions on one tape.
const AT_ONCE: u64 = 1000;
/// `IORING_ENTER_GETEVENTS`.
const GETEVENTS: u64 = 1;

/// Lets an instance begin, by the thread number `thread` of the process it is placed in, and go on where it was.
pub fn begin(record: &Record, placed: Placed, thread: usize, nest: &mut Nest) -> Result<()> {
    let held = nest.file(placed.id)?.try_clone_to_owned();
    let held = held.on("fcntl(F_DUPFD)", || format!("io_uring of {}", record.owner))?;
    let mut counting = Counting::new(record, held, placed, thread, nest)?;
    if record.flags & setup::R_DISABLED == 0 {
        let args = [placed.fd as u64, u64::from(register::ENABLE_RINGS), 0, 0];
        let building = counting.nest.process(placed.pid)?;
        building.tape_on(thread, |t| {
            t.call(
                "io_uring_register(ENABLE_RINGS)",
                libc::SYS_io_uring_register,
                &args,
            )
        })?;
        counting.run()?;
    }
    counting.rings.write(0, &record.rings.0);
    counting.slots.write(0, &record.slots.0);
    Ok(())
}

struct Counting<'a> {
    record: &'a Record,
    held: OwnedFd,
    placed: Placed,
    thread: usize,
    nest: &'a mut Nest,
    rings: Area,
    slots: Area,
    /// Where the head of the completions stands in the end.
    head: u32,
    /// Completions given so far.
    given: u32,
}

impl<'a> Counting<'a> {
    fn new(
        record: &'a Record,
        held: OwnedFd,
        placed: Placed,
        thread: usize,
        nest: &'a mut Nest,
    ) -> Result<Counting<'a>> {
        let name = || format!("io_uring of {}", record.owner);
        let size = record
            .layout
            .rings(record.flags, record.entries, record.completions);
        let rings = Area::map(held.as_fd(), RINGS_AT, size).on("mmap", name)?;
        let len = entry_size(record.flags) * u64::from(record.entries);
        let slots = Area::map(held.as_fd(), ENTRIES_AT, len).on("mmap", name)?;
        let at = record.layout.cq[0] as usize;
        let head = record.rings.0.get(at..at + 4).and_then(|b| b.first_chunk());
        let head = u32::from_ne_bytes(*head.ok_or_else(|| wrong(record, "read", Errno::EBADMSG))?);
        // A program may write what it likes there; what it cannot have left unread it has read.
        let unread = record.given.wrapping_sub(head).min(record.completions);
        Ok(Counting {
            record,
            held,
            placed,
            thread,
            nest,
            rings,
            slots,
            head: record.given.wrapping_sub(unread),
            given: 0,
        })
    }

    fn run(&mut self) -> Result<()> {
        let (taken, given) = (self.record.taken, self.record.given);
        self.rings
            .set_word(self.record.layout.cq_flags(), CQ_EVENTFD_DISABLED);
        self.fill(SKIP_SUCCESS);
        self.silent(taken.saturating_sub(given))?;
        self.fill(0);
        self.messages(given.saturating_sub(taken))?;
        self.requests(taken.min(given))?;
        let layout = &self.record.layout;
        let stands = (
            self.rings.word(layout.sq_head()),
            self.rings.word(layout.cq_tail()),
        );
        match stands == (taken, given) {
            true => Ok(()),
            false => Err(wrong(self.record, "io_uring_enter", Errno::EBADE)),
        }
    }

    /// Makes every entry a request to do nothing.
    fn fill(&self, flags: u8) {
        let size = entry_size(self.record.flags);
        for n in 0..u64::from(self.record.entries) {
            self.slots.write(n * size, &[0, flags]);
            if self.record.flags & setup::NO_SQARRAY == 0 {
                self.rings.set_word(self.record.layout.array() + 4 * n, n as u32);
            }
        }
    }

    fn more(&self, number: u32) {
        let tail = self.record.layout.sq_tail();
        self.rings
            .set_word(tail, self.rings.word(tail).wrapping_add(number));
    }

    /// Lets the thread submit, each time so many; with `following`, the head of the completions moves along.
    fn submit(&mut self, times: &[u32], following: bool) -> Result<()> {
        if times.is_empty() {
            return Ok(());
        }
        let fd = self.placed.fd as u64;
        let size = self.record.layout.rings(self.record.flags, 0, 0);
        let at = self.record.layout.cq_head();
        let building = self.nest.process(self.placed.pid)?;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let args = [0, size, protection, libc::MAP_SHARED as u64, fd, RINGS_AT];
        let (ran, map) = building.tape_on(self.thread, |t| t.call("mmap", libc::SYS_mmap, &args))?;
        let rings = ran.value(map) as u64;
        let mut short = false;
        for some in times.chunks(AT_ONCE as usize) {
            let (ran, calls) = building.tape_on(self.thread, |t| {
                let one = |number: &u32| {
                    let args = [fd, u64::from(*number), 0, 0, 0, 0];
                    let call = t.call("io_uring_enter", libc::SYS_io_uring_enter, &args);
                    if following {
                        // The one call that adds to a word, waking nobody.
                        let word = rings + at;
                        let args = [word, WAKE_OP, 0, 0, word, adding(*number)];
                        t.call("futex", libc::SYS_futex, &args);
                    }
                    (call, *number)
                };
                some.iter().map(one).collect::<Vec<_>>()
            })?;
            short |= calls
                .iter()
                .any(|(call, number)| ran.value(*call) != i64::from(*number));
        }
        building.tape_on(self.thread, |t| {
            t.call("munmap", libc::SYS_munmap, &[rings, size])
        })?;
        match short {
            true => Err(wrong(self.record, "io_uring_enter", Errno::EAGAIN)),
            false => Ok(()),
        }
    }

    /// Entries that have no completion.
    fn silent(&mut self, number: u32) -> Result<()> {
        self.more(number);
        self.submit(&pieces(number, self.record.entries), false)
    }

    /// Entries with a completion each.
    fn requests(&mut self, number: u32) -> Result<()> {
        self.more(number);
        let entries = self.record.entries;
        let read = self.head.wrapping_sub(self.given).min(number);
        // Whole rings at once, each a power of two.
        let whole = pieces(read - read % entries, entries);
        self.submit(&whole, true)?;
        self.submit(&pieces(read % entries, entries), false)?;
        self.given = self.given.wrapping_add(read);
        self.rings.set_word(self.record.layout.cq_head(), self.given);
        self.given = self.given.wrapping_add(number - read);
        self.submit(&pieces(number - read, entries), false)
    }

    /// Completions without an entry.
    fn messages(&mut self, number: u32) -> Result<()> {
        if number == 0 {
            return Ok(());
        }
        let mut sender = Sender::new(self)?;
        let mut left = number;
        while left > 0 {
            let before = self.head.wrapping_sub(self.given).min(left);
            let room = match before {
                0 => left,
                before => before,
            };
            let some = room.min(SENDER).min(self.record.entries);
            sender
                .send(some)
                .on("io_uring_enter", || format!("io_uring of {}", self.record.owner))?;
            if self.record.flags & setup::DEFER_TASKRUN != 0 {
                // They are given when the one thread that may comes by.
                let args = [self.placed.fd as u64, 0, 0, GETEVENTS, 0, 0];
                let building = self.nest.process(self.placed.pid)?;
                building.tape_on(self.thread, |t| {
                    t.call("io_uring_enter", libc::SYS_io_uring_enter, &args)
                })?;
            }
            self.given = self.given.wrapping_add(some);
            if self.rings.word(self.record.layout.cq_tail()) != self.given {
                return Err(wrong(self.record, "io_uring_enter(MSG_RING)", Errno::EAGAIN));
            }
            if before != 0 {
                self.rings.set_word(self.record.layout.cq_head(), self.given);
            }
            left -= some;
        }
        Ok(())
    }
}

/// `FUTEX_WAKE_OP` among the threads of one process.
const WAKE_OP: u64 = (libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG) as u64;

/// The operation that adds a power of two.
fn adding(number: u32) -> u64 {
    const ADD: u64 = 1;
    const SHIFTED: u64 = 8;
    (ADD | SHIFTED) << 28 | u64::from(number.trailing_zeros()) << 12
}

/// A number in pieces no greater than `most`.
fn pieces(number: u32, most: u32) -> Vec<u32> {
    let rest = number % most;
    let whole = std::iter::repeat_n(most, (number / most) as usize);
    whole.chain((rest != 0).then_some(rest)).collect()
}

/// An instance of freeze's own that sends completions to another.
struct Sender {
    ring: OwnedFd,
    rings: Area,
    tail: u64,
    _slots: Area,
}

impl Sender {
    fn new(to: &Counting<'_>) -> Result<Sender> {
        const MSG_RING: u8 = 40;
        let name = || "io_uring of freeze";
        let mut params = Params::new(SENDER, 0, 0);
        let ring = uring::make(&mut params).on("io_uring_setup", name)?;
        let layout = params.layout();
        let rings =
            Area::map(ring.as_fd(), RINGS_AT, layout.rings(0, SENDER, params.0[1])).on("mmap", name)?;
        let len = u64::from(SENDER) * entry_size(0);
        let slots = Area::map(ring.as_fd(), ENTRIES_AT, len).on("mmap", name)?;
        let target = to.held.as_raw_fd().to_ne_bytes();
        for n in 0..SENDER {
            let at = u64::from(n) * entry_size(0);
            slots.write(at, &[MSG_RING, SKIP_SUCCESS]);
            slots.write(at + 4, &target);
            rings.set_word(layout.array() + u64::from(n) * 4, n);
        }
        Ok(Sender {
            ring,
            rings,
            tail: layout.sq_tail(),
            _slots: slots,
        })
    }

    fn send(&mut self, number: u32) -> nix::Result<()> {
        self.rings
            .set_word(self.tail, self.rings.word(self.tail).wrapping_add(number));
        match uring::enter(self.ring.as_fd(), number, 0)? {
            taken if taken == number => Ok(()),
            _ => Err(Errno::EAGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_pieces() {
        assert_eq!(pieces(0, 8), Vec::<u32>::new());
        assert_eq!(pieces(17, 8), [8, 8, 1]);
        assert_eq!(adding(32), 0x9000_5000);
    }
}

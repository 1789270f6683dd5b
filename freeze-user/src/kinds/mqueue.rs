//! POSIX message queues: descriptors, and what waits in the queues, in order and with its priorities.

use super::pipe::Bytes;
use super::regular::found::DELETED;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::nest::space::Kind;
use crate::nest::{Landed, Nest, Options};
use crate::observe::peek::Peek;
use crate::observe::peek::queue::Queue;
use crate::observe::view::{FdView, FileStat, View, command_of, read_fd};
use crate::sys::mqueue::{Shape, create, open, send, shape, unlink};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct MQueue;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Without a slash.
    pub name: Bytes,
    pub flags: i32,
    /// Device and inode as they were, by which descriptors of one queue are told.
    pub node: (u64, u64),
    /// Whether its name was taken away.
    pub unlinked: bool,
    /// Whether another queue of the checkpoint has the name by now.
    #[serde(default)]
    pub replaced: bool,
    /// The number of its IPC namespace.
    pub space: u32,
    pub shape: Shape,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Priority and contents, the next one first.
    pub messages: Vec<(u32, Bytes)>,
    pub notify: Option<Notify>,
}

/// Who asked to be told of the next message (mq_notify(3)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    pub pid: Pid,
    /// `SIGEV_SIGNAL` or `SIGEV_NONE`.
    pub how: i32,
    pub signal: i32,
    pub value: u64,
}

impl Record {
    /// A queue of an IPC namespace of the set that nobody has open, by a descriptor of freeze's own.
    pub(super) fn of_closed(name: &[u8], queue: BorrowedFd<'_>, space: u32) -> nix::Result<Record> {
        let stat = FileStat::from(&nix::sys::stat::fstat(queue)?);
        let (shape, count) = shape(queue)?;
        let seen = Peek::get().and_then(|peek| peek.queue(queue));
        let seen = seen
            .filter(|q| q.messages.len() as i64 == count)
            .ok_or(Errno::EPERM)?;
        Ok(Record {
            name: Bytes(name.to_vec()),
            flags: libc::O_RDWR,
            node: (stat.dev, stat.ino),
            unlinked: false,
            replaced: false,
            space,
            shape,
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            messages: seen
                .messages
                .into_iter()
                .map(|(p, text)| (p, Bytes(text)))
                .collect(),
            notify: None,
        })
    }
}

impl FdKind for MQueue {
    const TAG: &'static str = "posix-queue";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "POSIX message queues that are open, and all of an IPC namespace of the set's own, where the \
        kernel lets freeze look at them: messages in order with priorities, sizes, owner, mode, notification by signal; \
        unlinked ones too; one that is still there is used as it is, if it has not changed; refused: notification by a \
        thread (SIGEV_THREAD)";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        const MQUEUE: i64 = 0x1980_0202;
        fd.stat.kind() == libc::S_IFREG && fd.filesystem == MQUEUE && fd.flags() & libc::O_PATH == 0
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let seen = fd
            .duplicate()
            .ok()
            .and_then(|here| Peek::get().and_then(|peek| peek.queue(here.as_fd())));
        let Some(queue) = seen else {
            return out.push(unseen(fd));
        };
        if let Some((owner, how, ..)) = queue.notify {
            if how == libc::SIGEV_THREAD {
                out.push(
                    fd.blocker()
                        .why(
                            "a thread is to be started for its next message, which no call can arrange again",
                        )
                        .remedy("let the program use SIGEV_SIGNAL (mq_notify)"),
                );
            } else if view.get(owner).is_none() && fd.link.ends_with(DELETED) {
                out.push(
                    fd.blocker()
                        .why(format!(
                            "{owner:?}, which is not in the checkpoint, is to be told of its next message"
                        ))
                        .remedy("checkpoint a common ancestor"),
                );
            }
        }
        if fd.link.ends_with(DELETED) {
            out.extend(holder_outside(fd, view).map(|(pid, n)| {
                fd.blocker()
                    .why(format!(
                        "it has no name any more, and pid {pid} ({}) outside the checkpoint has it as fd {n}",
                        command_of(pid)
                    ))
                    .remedy("checkpoint a common ancestor, or end that process")
            }));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let here = from.process.fd(fd.fd)?;
        let name = || fd.label();
        let Queue { messages, notify } = Peek::get()
            .and_then(|peek| peek.queue(here.as_fd()))
            .ok_or_else(|| unseen(fd).refuse())?;
        let (shape, count) = shape(here.as_fd()).on("mq_getattr", name)?;
        if count != messages.len() as i64 {
            return Err(unseen(fd).refuse());
        }
        let link = fd.link.strip_suffix(DELETED);
        let path = link.unwrap_or(&fd.link);
        Ok(Record {
            name: Bytes(path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec()),
            flags: fd.flags(),
            node: (fd.stat.dev, fd.stat.ino),
            unlinked: link.is_some(),
            replaced: link.is_some() && from.view.fds().any(|f| MQueue::claims(f) && f.link == path),
            space: from.view.namespace(&from.process.view, "ipc"),
            shape,
            mode: fd.stat.mode & 0o7777,
            uid: fd.stat.uid,
            gid: fd.stat.gid,
            messages: messages.into_iter().map(|(p, text)| (p, Bytes(text))).collect(),
            notify: notify.filter(|(pid, ..)| from.view.get(*pid).is_some()).map(
                |(pid, how, signal, value)| Notify {
                    pid,
                    how,
                    signal,
                    value,
                },
            ),
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if record.space != 0 || record.unlinked {
            return;
        }
        let Ok(there) = open(&record.name.0, libc::O_RDONLY) else {
            return;
        };
        let now = shape(there.as_fd());
        let wanted = (record.shape, record.messages.len() as i64);
        let same = Peek::get()
            .and_then(|peek| peek.queue(there.as_fd()))
            .is_none_or(|q| {
                let recorded = record.messages.iter().map(|(p, text)| (*p, &text.0));
                q.messages.iter().map(|(p, text)| (*p, text)).eq(recorded)
            });
        if now != Ok(wanted) || !same {
            out.push(
                Blocker::at(
                    format!("/{}", String::from_utf8_lossy(&record.name.0)),
                    "a message queue",
                )
                .why("it is still there, and has changed since the checkpoint")
                .remedy("remove it (mq_unlink, or rm in a mounted mqueue file system): it is made again"),
            );
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || format!("/{}", String::from_utf8_lossy(&record.name.0));
        let landed = nest.landed();
        nest.within(&[(Kind::Ipc, record.space)], |nest| {
            let queues = nest.state::<Queues>();
            queues.landed.get_or_insert(landed);
            let made = match queues.made.entry(record.node) {
                Entry::Occupied(made) => made.into_mut(),
                Entry::Vacant(free) => {
                    let (name, fresh) = make(record).on("mq_open", name)?;
                    free.insert(Made {
                        name,
                        space: record.space,
                        fresh,
                        doomed: record.unlinked,
                    })
                }
            };
            open(&made.name, record.flags).on("mq_open", name)
        })
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        // All are open: those without a name lose it again.
        let all = &mut nest.state::<Queues>().made;
        let doomed = all.extract_if(.., |_, made| made.doomed).map(|(_, made)| made);
        for Made { name, space, .. } in doomed.collect::<Vec<_>>() {
            nest.within(&[(Kind::Ipc, space)], |_| {
                unlink(&name).on("mq_unlink", || String::from_utf8_lossy(&name).into_owned())
            })?;
        }
        let Some(notify) = &record.notify else {
            return Ok(());
        };
        // By whoever asked for it, through any descriptor of the queue; a second time it is there already.
        let holders = nest.holders(placed.id);
        let Some((_, fd)) = holders.iter().find(|(pid, _)| *pid == notify.pid).copied() else {
            return Ok(());
        };
        let mut event = [0u8; 64];
        event[..8].copy_from_slice(&notify.value.to_ne_bytes());
        event[8..12].copy_from_slice(&notify.signal.to_ne_bytes());
        event[12..16].copy_from_slice(&notify.how.to_ne_bytes());
        let (ran, at) = nest.process(notify.pid)?.tape(|t| {
            let event = t.bytes(&event);
            t.try_call("mq_notify", libc::SYS_mq_notify, &[fd as u64, event])
        })?;
        match ran.result(at) {
            Ok(_) | Err(Errno::EBUSY) => Ok(()),
            Err(e) => Err(Error::kernel(
                "mq_notify",
                format!("fd {fd} of {}", notify.pid),
                e,
            )),
        }
    }
}

/// Queues that are there again, by what they were.
#[derive(Debug, Default)]
struct Queues {
    made: BTreeMap<(u64, u64), Made>,
    landed: Option<Landed>,
}

#[derive(Debug)]
struct Made {
    name: Vec<u8>,
    /// The number of its IPC namespace.
    space: u32,
    /// Whether it was not there before.
    fresh: bool,
    /// Whether its name goes again.
    doomed: bool,
}

impl Drop for Queues {
    fn drop(&mut self) {
        let landed = self.landed.as_ref().is_some_and(Landed::is);
        // Other namespaces go with what was to live in them.
        let left = self.made.values().filter(|m| m.space == 0);
        for made in left.filter(|m| m.doomed || (m.fresh && !landed)) {
            let _ = unlink(&made.name);
        }
    }
}

/// Finds the queue or makes it, in the IPC namespace of the caller; tells its name, and whether it was made.
pub(super) fn make(record: &Record) -> nix::Result<(Vec<u8>, bool)> {
    if !record.unlinked {
        match open(&record.name.0, libc::O_RDONLY) {
            Ok(_) => return Ok((record.name.0.clone(), false)),
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    let mut name = record.name.0.clone();
    let mut tries = 0;
    let queue = loop {
        let made = match record.replaced && tries == 0 {
            true => Err(Errno::EEXIST),
            false => create(&name, (record.uid, record.gid), record.shape),
        };
        match made {
            // Somebody else's has the name by now.
            Err(Errno::EEXIST) if record.unlinked => {
                name = [
                    &record.name.0[..],
                    format!(".freeze-{}-{tries}", std::process::id()).as_bytes(),
                ]
                .concat();
                tries += 1;
            }
            made => break made?,
        }
    };
    for (priority, text) in &record.messages {
        send(queue.as_fd(), &text.0, *priority)?;
    }
    nix::sys::stat::fchmod(&queue, Mode::from_bits_truncate(record.mode))?;
    Ok((name, true))
}

fn unseen(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the messages in a queue can only be looked at in the kernel, and that is not allowed here")
        .remedy("run freeze with CAP_BPF and CAP_PERFMON, or let the program close the queue")
}

/// Who outside the set has the same queue open.
fn holder_outside(fd: &FdView, view: &View) -> Option<(Pid, i32)> {
    let same = |f: FdView| (f.stat.dev, f.stat.ino) == (fd.stat.dev, fd.stat.ino);
    // Mounts differ, the name does not.
    let name = |link: &[u8]| link.rsplit(|b| *b == b'/').next().map(<[u8]>::to_vec);
    let own = name(&fd.link);
    let mut alike = view.others(|other| name(&other.link) == own);
    let holder = alike.find(|other| read_fd(other.pid, other.fd).is_ok_and(same));
    holder.map(|other| (other.pid, other.fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_queue_is_made_again() {
        let Some(peek) = Peek::get() else { return };
        let record = Record {
            name: Bytes(format!("freeze-queue-{}", std::process::id()).into_bytes()),
            flags: libc::O_RDWR,
            node: (1, 2),
            unlinked: false,
            replaced: false,
            space: 0,
            shape: Shape {
                messages: 3,
                size: 64,
            },
            mode: 0o640,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            messages: vec![(9, Bytes(b"a".to_vec())), (0, Bytes(b"bc".to_vec()))],
            notify: None,
        };
        let Ok((name, true)) = make(&record) else { return };
        let fd = open(&name, record.flags).unwrap();
        let own = Pid(std::process::id() as i32);
        let seen = read_fd(own, fd.as_raw_fd()).unwrap();
        assert!(MQueue::claims(&seen));
        assert_eq!(seen.stat.mode & 0o7777, 0o640);
        let messages = peek.queue(fd.as_fd()).unwrap().messages;
        assert_eq!(messages, [(9, b"a".to_vec()), (0, b"bc".to_vec())]);
        let mut out = Vec::new();
        MQueue::precheck(&record, &Options::default(), &mut out);
        assert_eq!(out, []);
        send(fd.as_fd(), b"d", 1).unwrap();
        MQueue::precheck(&record, &Options::default(), &mut out);
        assert_eq!(out.len(), 1, "it has changed");
        unlink(&name).unwrap();
    }
}

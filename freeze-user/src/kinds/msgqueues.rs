//! System V message queues: messages with their types and order, limits, permissions, who sent and received last.

use super::ipcspace::{Space, precheck, same};
use super::pipe::Bytes;
use super::semaphores::Owner;
use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::nest::{Landed, Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::proc::sysvipc::{self, Object};
use crate::sys::ipc::{Call, msg_limit, msg_peek, msg_remove, msg_set, msg_take};
use nix::Result as Sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct MsgQueues;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Queues that go with this process: the first of the checkpoint that lives where they are.
    pub queues: Vec<Queue>,
    /// Whether they lay in another IPC namespace than freeze's.
    pub apart: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub object: Owner,
    /// How many bytes it may hold.
    pub limit: u64,
    /// Who sent and who received last.
    pub sender: i32,
    pub receiver: i32,
    /// Type and text, in the order in which they were sent.
    pub messages: Vec<(i64, Bytes)>,
}

const LIST: &str = "/proc/sysvipc/msg";
const NEXT: &str = "/proc/sys/kernel/msg_next_id";
/// The largest message, and what a queue may hold without a privilege that even root may lack.
const LARGEST: &str = "/proc/sys/kernel/msgmax";
const MOST: &str = "/proc/sys/kernel/msgmnb";

impl ProcessKind for MsgQueues {
    const TAG: &'static str = "sysv-queues";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "System V message queues with id, key, owner, limit, messages in order, who sent and received last: all of an \
        IPC namespace of the set's own, on the host those that a process of the set sent to or received from last";
    const STAGE: Stage = Stage::Files;
    type Record = Record;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let space = Space::of(from.view, from.shared, from.process.pid())?;
        let mut record = Record {
            apart: space.is_apart(),
            ..Record::default()
        };
        if !space.first {
            return Ok(record);
        }
        for found in space.list(LIST, sysvipc::queues)? {
            let used = space.is_used_by([found.sender, found.receiver].into_iter());
            if used || space.whole()? {
                record.queues.extend(Queue::collect(&found, &space)?);
            }
        }
        Ok(record)
    }

    fn precheck(record: &Record, _: Pid, _: &Options, out: &mut Vec<Blocker>) {
        if record.apart || record.queues.is_empty() {
            return;
        }
        let wanted: Vec<Object> = record.queues.iter().map(|q| q.object.into()).collect();
        if let Ok(there) = Space::own().list(LIST, sysvipc::queues) {
            let there: Vec<Object> = there.into_iter().map(|q| q.object).collect();
            precheck("message queue", "-q", wanted.iter(), &there, out);
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        if record.queues.is_empty() {
            return Ok(());
        }
        let space = Space::of_nest(nest, pid)?;
        record.queues.iter().try_for_each(|q| q.restore(&space, nest))
    }
}

fn label(id: i32) -> String {
    format!("message queue {id}")
}

/// Everything that is in a queue, without taking it out.
fn messages(id: i32, room: usize) -> Sys<Vec<(i64, Bytes)>> {
    let mut out = Vec::new();
    loop {
        match msg_peek(id, out.len(), room) {
            Ok((kind, text)) => out.push((kind, Bytes(text))),
            Err(Errno::ENOMSG) => return Ok(out),
            Err(e) => return Err(e),
        }
    }
}

impl Queue {
    /// Reads one; `None` if it has been removed since.
    fn collect(found: &sysvipc::Queue, space: &Space) -> Result<Option<Queue>> {
        let id = found.object.id;
        let largest = number(&space.read(LARGEST)?);
        let look = || Ok((msg_limit(id)?, messages(id, largest.max(found.bytes) as usize)?));
        match space.enter(look) {
            Ok((limit, messages)) => Ok(Some(Queue {
                object: found.object.into(),
                limit,
                sender: found.sender,
                receiver: found.receiver,
                messages,
            })),
            Err(Errno::EIDRM) => Ok(None),
            Err(Errno::ENOSYS) => Err(Blocker::at(label(id), "")
                .why("this kernel does not let messages be looked at (CONFIG_CHECKPOINT_RESTORE)")
                .remedy("use a kernel that does")
                .refuse()),
            Err(e) => Err(e).on("msgrcv(MSG_COPY)", || label(id)),
        }
    }

    fn restore(&self, space: &Space, nest: &mut Nest) -> Result<()> {
        let Owner {
            id,
            key,
            mode,
            uid,
            gid,
            cuid,
            cgid,
        } = self.object;
        let name = || label(id);
        let there = space.list(LIST, sysvipc::queues)?;
        match there.iter().find(|q| q.object.id == id) {
            Some(now) if !same(&now.object, &self.object.into()) => {
                return Err(Error::kernel("msgget", name(), Errno::EEXIST));
            }
            Some(now) => {
                if space.has_outsider([now.sender, now.receiver].into_iter()) {
                    nest.warnings.push(format!(
                        "message queue {id} is used by processes outside the checkpoint: it stays as it is"
                    ));
                    return Ok(());
                }
                let Some(now) = Queue::collect(now, space)? else {
                    return Err(Error::kernel("msgctl", name(), Errno::EIDRM));
                };
                if now == *self {
                    return Ok(());
                }
                Made::keep(id, Some(now), space, nest);
                let room = number(&space.read(LARGEST)?).max(self.size()) as usize;
                let empty = || loop {
                    match msg_take(id, room, 0) {
                        Ok(_) => {}
                        Err(Errno::ENOMSG) => return Ok(()),
                        Err(e) => return Err(e),
                    }
                };
                space.enter(empty).on("msgrcv", name)?;
            }
            None => {
                let mut make = Call::msg_make(key, mode);
                make.user = Some((cuid, cgid));
                space.make(id, NEXT, &make, None, msg_remove, nest)?;
                Made::keep(id, None, space, nest);
            }
        }
        let largest = self
            .messages
            .iter()
            .map(|(_, text)| text.0.len() as u64)
            .max()
            .unwrap_or(0);
        let _most = Raised::new(space, MOST, self.size().max(self.limit))?;
        let _largest = Raised::new(space, LARGEST, largest)?;
        let set = |limit: u64| {
            space
                .enter(|| msg_set(id, uid, gid, mode, limit))
                .on("msgctl(IPC_SET)", name)
        };
        set(self.limit.max(self.size()).max(1))?;
        self.fill(space, nest)?;
        set(self.limit)
    }

    /// Sends the messages anew, the last one in the name of who did, and lets who received last do so.
    fn fill(&self, space: &Space, nest: &mut Nest) -> Result<()> {
        let id = self.object.id;
        let kind = i64::MAX;
        if self.receiver != 0 || self.messages.is_empty() && self.sender != 0 {
            space.call(&Call::msg_send(id, kind, b""), self.sender, nest)?;
            space.call(&Call::msg_take_empty(id, kind), self.receiver, nest)?;
        }
        let Some(((kind, text), before)) = self.messages.split_last() else {
            return Ok(());
        };
        space
            .enter(|| {
                before
                    .iter()
                    .try_for_each(|(kind, text)| send(id, *kind, &text.0))
            })
            .on("msgsnd", || label(id))?;
        // What does not fit on a tape is sent by freeze.
        const ON_TAPE: usize = 100_000;
        let sender = if text.0.len() > ON_TAPE { 0 } else { self.sender };
        space.call(&Call::msg_send(id, *kind, &text.0), sender, nest)?;
        Ok(())
    }

    fn size(&self) -> u64 {
        self.messages.iter().map(|(_, text)| text.0.len() as u64).sum()
    }
}

fn send(id: i32, kind: i64, text: &[u8]) -> Sys<()> {
    Call::msg_send(id, kind, text).make().map(drop)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// A limit of the namespace that is raised for a moment.
struct Raised<'a> {
    space: &'a Space,
    path: &'static str,
    before: String,
}

impl<'a> Raised<'a> {
    /// Raises it to `to`, if it is lower.
    fn new(space: &'a Space, path: &'static str, to: u64) -> Result<Option<Raised<'a>>> {
        let before = space.read(path)?;
        if number(&before) >= to {
            return Ok(None);
        }
        space.write(path, &to.to_string())?;
        Ok(Some(Raised { space, path, before }))
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        let _ = self.space.write(self.path, self.before.trim());
    }
}

/// A queue that was made or refilled here, as it was before: put back if the restore does not come to its end.
#[derive(Debug)]
struct Kept {
    id: i32,
    before: Option<Queue>,
    landed: Landed,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.landed.is() {
            return;
        }
        let Some(before) = &self.before else {
            let _ = msg_remove(self.id);
            return;
        };
        let room = before.size().max(1 << 20) as usize;
        while msg_take(self.id, room, 0).is_ok() {}
        let o = before.object;
        let space = Space::own();
        let _raised = Raised::new(&space, MOST, before.size());
        let _ = msg_set(self.id, o.uid, o.gid, o.mode, before.limit.max(before.size()));
        for (kind, text) in &before.messages {
            let _ = send(self.id, *kind, &text.0);
        }
        let _ = msg_set(self.id, o.uid, o.gid, o.mode, before.limit);
    }
}

#[derive(Debug, Default)]
struct Made {
    kept: BTreeMap<i32, Kept>,
}

impl Made {
    fn keep(id: i32, before: Option<Queue>, space: &Space, nest: &mut Nest) {
        // A namespace of its own goes with its processes.
        if !space.is_apart() {
            let landed = nest.landed();
            let kept = Kept { id, before, landed };
            nest.state::<Made>().kept.insert(id, kept);
        }
    }
}

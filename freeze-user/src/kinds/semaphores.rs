//! System V semaphores: sets with values, permissions and who operated last, and what processes take back at their end.

use super::ipcspace::{Space, precheck, same};
use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::nest::{Landed, Nest, Options};
use crate::observe::peek::Peek;
use crate::observe::view::{ProcessView, View};
use crate::proc::sysvipc::{self, Object};
use crate::sys::ipc::{Call, SemOp, sem_pid, sem_remove, sem_set, sem_values};
use crate::sys::{Kcmp, kcmp};
use crate::tracee::process::StoppedProcess;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Semaphores;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Sets that go with this process: the first of the checkpoint that is known to use them.
    pub sets: Vec<Set>,
    /// What is added to semaphores when the process ends (SEM_UNDO), by id and number, where it is not zero.
    pub undo: Vec<Undo>,
    /// Whether they lay in another IPC namespace than freeze's.
    pub apart: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    pub object: Owner,
    pub values: Vec<u16>,
    /// Who operated on each last.
    pub pids: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    pub id: i32,
    pub number: u16,
    pub add: i16,
}

/// Key, owner and permissions of a System V object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub id: i32,
    pub key: i32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
}

impl From<Object> for Owner {
    fn from(o: Object) -> Owner {
        let Object {
            key,
            id,
            mode,
            uid,
            gid,
            cuid,
            cgid,
        } = o;
        Owner {
            id,
            key,
            mode,
            uid,
            gid,
            cuid,
            cgid,
        }
    }
}

impl From<Owner> for Object {
    fn from(o: Owner) -> Object {
        let Owner {
            id,
            key,
            mode,
            uid,
            gid,
            cuid,
            cgid,
        } = o;
        Object {
            key,
            id,
            mode,
            uid,
            gid,
            cuid,
            cgid,
        }
    }
}

const LIST: &str = "/proc/sysvipc/sem";
const NEXT: &str = "/proc/sys/kernel/sem_next_id";
/// The largest value of a semaphore, and of what is taken back (SEMVMX, SEMAEM).
const MOST: i32 = 32767;

/// A device number for [`super::Shared::first_sight`] that no file has.
const DEVICE: u64 = u32::MAX as u64 - 1;

impl ProcessKind for Semaphores {
    const TAG: &'static str = "sysv-semaphores";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "System V semaphores with id, key, owner, values, who operated last, and SEM_UNDO: all of an IPC namespace \
        of the set's own, on the host those that a process of the set operated on last or has something to take back from; refused: a thread that takes back alone, or processes that do so together";
    const STAGE: Stage = Stage::Files;
    type Record = Record;

    fn verdict(p: &ProcessView, view: &View, _: &mut Vec<Blocker>) {
        // Once for each namespace, and before anything stands still.
        let is_first = || {
            let home = p.namespaces.get("ipc");
            let first = view.each().find(|q| q.namespaces.get("ipc") == home);
            first.is_some_and(|q| q.pid == p.pid)
        };
        Peek::prepare(|| {
            if view.stands_still() || !is_first() {
                return false;
            }
            let space = match view.namespace(p, "ipc") {
                0 => Ok(Space::own()),
                _ => Space::at(p.pid),
            };
            space.is_ok_and(|s| s.list(LIST, sysvipc::sets).is_ok_and(|l| !l.is_empty()))
        });
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let pid = from.process.pid();
        let space = Space::of(from.view, from.shared, pid)?;
        let there = space.list(LIST, sysvipc::sets)?;
        let mut record = Record {
            apart: space.is_apart(),
            ..Record::default()
        };
        let mut known = Vec::new();
        for object in there {
            let look = || -> nix::Result<(Vec<u16>, Vec<i32>)> {
                let values = sem_values(object.id)?;
                let pids = (0..values.len()).map(|n| sem_pid(object.id, n as u16));
                Ok((values.clone(), pids.collect::<nix::Result<_>>()?))
            };
            match space.enter(look) {
                Ok((values, pids)) => known.push(Set {
                    object: object.into(),
                    values,
                    pids,
                }),
                // Removed since it was listed.
                Err(Errno::EIDRM | Errno::EINVAL) => {}
                Err(e) => return Err(e).on("semctl", || label(object.id)),
            }
        }
        record.undo = undo(from.process, &known, &space, &mut from.shared.undo_lists)?;
        for set in known {
            let id = set.object.id;
            let used = space.first && (space.is_used_by(set.pids.iter().copied()) || space.whole()?);
            if (used || record.undo.iter().any(|u| u.id == id))
                && from.shared.first_sight(DEVICE, space.mark()? << 32 | id as u64)
            {
                record.sets.push(set);
            }
        }
        Ok(record)
    }

    fn precheck(record: &Record, _: Pid, _: &Options, out: &mut Vec<Blocker>) {
        if record.apart || record.sets.is_empty() {
            return;
        }
        let wanted: Vec<Object> = record.sets.iter().map(|s| s.object.into()).collect();
        if let Ok(there) = Space::own().list(LIST, sysvipc::sets) {
            precheck("semaphore set", "-s", wanted.iter(), &there, out);
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        if record.sets.is_empty() && record.undo.is_empty() {
            return Ok(());
        }
        let space = Space::of_nest(nest, pid)?;
        for set in &record.sets {
            set.restore(&space, nest)?;
        }
        for undo in &record.undo {
            undo.restore(&space, pid, nest)?;
        }
        Ok(())
    }
}

fn label(id: i32) -> String {
    format!("semaphore set {id}")
}

impl Set {
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
        let there = space.list(LIST, sysvipc::sets)?;
        let living = there.iter().find(|o| o.id == id);
        match living {
            Some(now) if !same(now, &self.object.into()) => {
                return Err(Error::kernel("semget", name(), Errno::EEXIST));
            }
            Some(_) => {
                let (values, pids) = space
                    .enter(|| {
                        let values = sem_values(id)?;
                        let pids = (0..values.len()).map(|n| sem_pid(id, n as u16));
                        Ok((values.clone(), pids.collect::<nix::Result<Vec<i32>>>()?))
                    })
                    .on("semctl", name)?;
                if space.has_outsider(pids.iter().copied()) {
                    nest.warnings.push(format!(
                        "semaphore set {id} is used by processes outside the checkpoint: its values stay as they are"
                    ));
                    nest.state::<Made>().shared.push((space.number(), id));
                    return Ok(());
                }
                if values.len() != self.values.len() {
                    return Err(Error::kernel("semget", name(), Errno::EEXIST));
                }
                Made::keep(id, Some(values.clone()), space, nest);
                if values != self.values || pids != self.pids {
                    self.fill(&values, &pids, space, nest)?;
                }
            }
            None => {
                let mut make = Call::sem_make(key, self.values.len() as u32, mode);
                make.user = Some((cuid, cgid));
                space.make(id, NEXT, &make, None, sem_remove, nest)?;
                Made::keep(id, None, space, nest);
                let empty = vec![0; self.values.len()];
                self.fill(&empty, &vec![0; self.values.len()], space, nest)?;
            }
        }
        space
            .enter(|| sem_set(id, uid, gid, mode))
            .on("semctl(IPC_SET)", name)
    }

    /// Sets the values, each in the name of who operated on it last.
    fn fill(&self, values: &[u16], pids: &[i32], space: &Space, nest: &mut Nest) -> Result<()> {
        let id = self.object.id;
        let all = &self.values;
        if let [first, rest @ ..] = &self.pids[..]
            && rest.iter().all(|p| p == first)
            && (*first != 0 || all.iter().any(|v| *v != 0))
        {
            space.call(&Call::sem_set_all(id, all), *first, nest)?;
            return Ok(());
        }
        for (n, (value, pid)) in all.iter().zip(&self.pids).enumerate() {
            if (*value, *pid) != (values[n], pids[n]) {
                space.call(&Call::sem_set(id, n as u16, *value), *pid, nest)?;
            }
        }
        Ok(())
    }
}

impl Undo {
    fn restore(&self, space: &Space, pid: Pid, nest: &mut Nest) -> Result<()> {
        let Undo { id, number, add } = *self;
        let name = || format!("semaphore {number} of set {id}");
        let op = |add: i32, undo: bool| SemOp {
            number,
            add: add as i16,
            undo,
        };
        if nest.state::<Made>().shared.contains(&(space.number(), id)) {
            // When the process ended it was given back; now it is taken again.
            for part in parts(i32::from(add), MOST) {
                space.call(&Call::sem_op(id, &[op(-part, true)]), pid.0, nest)?;
            }
            return Ok(());
        }
        let (value, last) = space
            .enter(|| {
                let value = sem_values(id)?.get(usize::from(number)).copied();
                Ok((value.ok_or(Errno::EINVAL)?, sem_pid(id, number)?))
            })
            .on("semctl", name)?;
        let value = i32::from(value);
        // What is taken with an undo is given without one in the same call, in the order that keeps it in bounds.
        for part in parts(i32::from(add), MOST / 2) {
            let (with, without) = (op(-part, true), op(part, false));
            let up_first = value <= MOST / 2;
            let ops = if (part > 0) == up_first {
                [without, with]
            } else {
                [with, without]
            };
            space.call(&Call::sem_op(id, &ops), pid.0, nest)?;
        }
        if last != pid.0 && last != 0 {
            let touch = if value < MOST { [1, -1] } else { [-1, 1] };
            space.call(&Call::sem_op(id, &touch.map(|by| op(by, false))), last, nest)?;
        }
        Ok(())
    }
}

/// A number in parts of at most `most`, all of its sign.
fn parts(mut number: i32, most: i32) -> Vec<i32> {
    let mut out = Vec::new();
    while number != 0 {
        let part = number.clamp(-most, most);
        out.push(part);
        number -= part;
    }
    out
}

/// What the process has to take back, of which the kernel tells nobody: looked at in its memory, or else asked for.
fn undo(process: &mut StoppedProcess, sets: &[Set], space: &Space, seen: &mut Vec<Pid>) -> Result<Vec<Undo>> {
    let mut out = Vec::new();
    if sets.is_empty() {
        return Ok(out);
    }
    for list in lists(process) {
        let found = match seen_of(process, list, sets) {
            Some(found) => found,
            None => settled(process, list, sets, space)?,
        };
        if found.is_empty() {
            continue;
        }
        let tid = process.threads()[list].tid();
        if let Some(other) = seen.iter().find(|other| is_one_list(**other, tid)) {
            return Err(Blocker::of(process.pid(), "", "SEM_UNDO")
                .why(format!(
                    "what is taken back from semaphores is shared with process {other} (CLONE_SYSVSEM)"
                ))
                .remedy("make processes without CLONE_SYSVSEM, as fork(2) does")
                .refuse());
        }
        seen.push(tid);
        if list > 0 {
            return Err(Blocker::of(process.pid(), format!("thread {tid}"), "SEM_UNDO")
                .why("what is taken back from semaphores at its end is the thread's own, not its process's")
                .remedy("make threads with CLONE_SYSVSEM, as pthread_create(3) does")
                .refuse());
        }
        out.extend(found);
    }
    Ok(out)
}

/// What is to be taken back by the list of this thread, where the kernel's memory may be looked at.
fn seen_of(process: &StoppedProcess, thread: usize, sets: &[Set]) -> Option<Vec<Undo>> {
    let sizes: Vec<_> = sets.iter().map(|s| (s.object.id, s.values.len())).collect();
    let tid = process.threads()[thread].tid();
    let list = Peek::ready()?.undo(process.pid(), tid, &sizes)?;
    let undo = |id, (n, add): (usize, &i16)| Undo {
        id,
        number: n as u16,
        add: *add,
    };
    let each = list
        .each()
        .flat_map(|(id, adds)| adds.iter().enumerate().map(move |a| undo(id, a)));
    let mut out: Vec<_> = each.filter(|u| u.add != 0).collect();
    out.sort_by_key(|u| (u.id, u.number));
    Some(out)
}

/// What is to be taken back by the list of this thread, asked until nobody changes the values meanwhile.
///
/// The kernel does tell whether an operation would bring it out of bounds, by another error than that of an operation that
/// would have to wait: so each question is a call that cannot succeed, and changes no value (only when the set was
/// last operated on). Half a dozen operations in one call, all or nothing, ask whether it is less than any given number.
fn settled(process: &mut StoppedProcess, thread: usize, sets: &[Set], space: &Space) -> Result<Vec<Undo>> {
    /// How often those are asked about that move.
    const TRIES: usize = 20;
    let mut out = Vec::new();
    let now = |id: i32| space.enter(|| sem_values(id));
    let mut values: Vec<(i32, Vec<u16>)> = sets
        .iter()
        .filter_map(|s| Some((s.object.id, now(s.object.id).ok()?)))
        .collect();
    for attempt in 1..=TRIES {
        let found = undo_of(process, thread, &values)?;
        let moved: Vec<(i32, Vec<u16>)> = values
            .iter()
            .filter_map(|(id, before)| Some((*id, now(*id).ok().filter(|v| v != before)?)))
            .collect();
        let again = |u: &Undo| attempt < TRIES && moved.iter().any(|(id, _)| *id == u.id);
        out.extend(found.into_iter().filter(|u| !again(u)));
        if moved.is_empty() {
            break;
        }
        values = moved;
    }
    Ok(out)
}

/// Whether two threads have one list of what is to be taken back, or both none.
fn is_one_list(one: Pid, other: Pid) -> bool {
    kcmp(one, other, Kcmp::Sysvsem, 0, 0).is_ok_and(std::cmp::Ordering::is_eq)
}

/// One thread, by its place, for each list of what is to be taken back: threads mostly share one, or have none.
fn lists(process: &StoppedProcess) -> Vec<usize> {
    // To make a thread gives its maker a list. Who leaves it has none, and to kcmp(2) none is the same as none.
    let without = unshare(CloneFlags::CLONE_SYSVSEM)
        .ok()
        .map(|()| Pid(gettid().as_raw()));
    let mut out: Vec<usize> = Vec::new();
    for (n, thread) in process.threads().iter().enumerate() {
        let known = out
            .iter()
            .any(|one| is_one_list(process.threads()[*one].tid(), thread.tid()));
        if !known && !without.is_some_and(|none| is_one_list(none, thread.tid())) {
            out.push(n);
        }
    }
    out
}

/// The same of these sets, with the values they have.
fn undo_of(process: &mut StoppedProcess, thread: usize, sets: &[(i32, Vec<u16>)]) -> Result<Vec<Undo>> {
    // One that the process may operate on can be told to wait; else every question is refused, and there is nothing.
    let never = [SemOp {
        number: 0,
        add: i16::MIN,
        undo: false,
    }];
    let calls = sets.iter().map(|(id, _)| Call::sem_op(*id, &never)).collect();
    let mut open = Vec::new();
    for ((id, values), answer) in sets.iter().zip(put(process, thread, calls)?) {
        if answer == Err(Errno::EAGAIN) {
            open.extend(values.iter().enumerate().map(|(n, value)| Semaphore {
                id: *id,
                number: n as u16,
                value: *value,
                at_least: -MOST - 1,
                below: MOST + 1,
            }));
        }
    }
    // Hardly ever is there anything but nothing.
    for below in [0, 1] {
        narrow(process, thread, &mut open, |_| below)?;
    }
    let mut out: Vec<Semaphore> = Vec::new();
    while !open.is_empty() {
        let (known, more): (Vec<_>, Vec<_>) = open.into_iter().partition(|s| s.below - s.at_least == 1);
        out.extend(known);
        open = more;
        narrow(process, thread, &mut open, |s| {
            (s.at_least + s.below).div_euclid(2)
        })?;
    }
    out.retain(|s| s.at_least != 0);
    out.sort_by_key(|s| (s.id, s.number));
    Ok(out
        .into_iter()
        .map(|s| Undo {
            id: s.id,
            number: s.number,
            add: s.at_least as i16,
        })
        .collect())
}

/// A semaphore, and what is known of what is to be taken back from it.
#[derive(Clone, Copy, Debug)]
struct Semaphore {
    id: i32,
    number: u16,
    value: u16,
    at_least: i32,
    below: i32,
}

/// Asks of each whether it is less than a number within its bounds, and narrows them.
fn narrow(
    process: &mut StoppedProcess,
    thread: usize,
    open: &mut [Semaphore],
    middle: impl Fn(&Semaphore) -> i32,
) -> Result<()> {
    let mut asked: Vec<&mut Semaphore> = open
        .iter_mut()
        .filter(|s| (s.at_least + 1..s.below).contains(&middle(s)))
        .collect();
    let calls = asked
        .iter()
        .map(|s| Call::sem_op(s.id, &question(s.number, s.value, middle(s))))
        .collect();
    for (semaphore, answer) in asked.iter_mut().zip(put(process, thread, calls)?) {
        match answer {
            Err(Errno::ERANGE) => semaphore.below = middle(semaphore),
            _ => semaphore.at_least = middle(semaphore),
        }
    }
    Ok(())
}

/// What comes of calls that a thread of the process makes.
fn put(process: &mut StoppedProcess, thread: usize, calls: Vec<Call>) -> Result<Vec<nix::Result<i64>>> {
    const AT_ONCE: usize = 200;
    let mut out = Vec::with_capacity(calls.len());
    for some in calls.chunks(AT_ONCE) {
        let (ran, made) = process.tape_on(thread, |t| {
            let make = |call: &Call| {
                let args = call.args(|data| t.bytes(data));
                t.try_call(call.name, call.nr, &args)
            };
            some.iter().map(make).collect::<Vec<_>>()
        })?;
        out.extend(made.into_iter().map(|call| ran.result(call)));
    }
    Ok(out)
}

/// Operations that end with ERANGE if what is to be taken back from a semaphore of this value is less than `below`, and
/// with EAGAIN if not.
fn question(number: u16, value: u16, below: i32) -> Vec<SemOp> {
    let op = |add: i32, undo: bool| SemOp {
        number,
        add: add as i16,
        undo,
    };
    let mut ops = Vec::new();
    if value > 0 {
        ops.push(op(-i32::from(value), false));
    }
    for part in parts(below + MOST + 1, MOST) {
        ops.extend([op(part, true), op(-part, false)]);
    }
    // No semaphore holds as much: this waits, or rather does not.
    ops.push(op(-MOST - 1, false));
    ops
}

/// A set that was made or refilled here, as it was before: put back if the restore does not come to its end.
#[derive(Debug)]
struct Kept {
    id: i32,
    before: Option<Vec<u16>>,
    landed: Landed,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.landed.is() {
            return;
        }
        let Some(before) = &self.before else {
            let _ = sem_remove(self.id);
            return;
        };
        // Only what has changed: each call leaves freeze as the last that operated on it.
        let now = sem_values(self.id).unwrap_or_default();
        for (n, (was, is)) in before.iter().zip(now).enumerate() {
            if *was != is {
                let _ = Call::sem_set(self.id, n as u16, *was).make();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Made {
    kept: BTreeMap<i32, Kept>,
    /// Sets that others use too, by the number of their namespace and their id.
    shared: Vec<(u32, i32)>,
}

impl Made {
    fn keep(id: i32, before: Option<Vec<u16>>, space: &Space, nest: &mut Nest) {
        // A namespace of its own goes with its processes.
        if !space.is_apart() {
            let landed = nest.landed();
            let kept = Kept { id, before, landed };
            nest.state::<Made>().kept.insert(id, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Depth;
    use crate::tracee::{Halting, Seized};

    #[test]
    fn questions_find_what_is_to_be_taken_back() {
        let id = Call::sem_make(0, 1, 0o600).make().unwrap() as i32;
        let op = |add: i16, undo: bool| Call::sem_op(id, &[SemOp { number: 0, add, undo }]).make();
        let below = |limit: i32| {
            let value = sem_values(id).unwrap()[0];
            match Call::sem_op(id, &question(0, value, limit)).make() {
                Err(Errno::ERANGE) => true,
                Err(Errno::EAGAIN) => false,
                other => panic!("{other:?}"),
            }
        };
        let is = |n: i32| {
            assert!(below(n + 1), "{n}");
            assert!(!below(n), "{n}");
        };
        is(0);
        op(7, false).unwrap();
        is(0);
        op(-3, true).unwrap();
        is(3);
        op(5, true).unwrap();
        is(-2);
        op(32000, true).unwrap();
        is(-32002);
        assert_eq!(sem_values(id).unwrap(), [32009]);
        sem_remove(id).unwrap();
    }

    /// To look and to ask must come to the same, whichever of them this kernel grants freeze in earnest.
    #[test]
    fn what_is_seen_is_what_is_answered() {
        const TAKES: &str = "$| = 1; semop($ARGV[0], pack('s!*', 0, -3, 4096, 1, 5, 0, 2, 1, 4096, 4, 9, 4096, 4, -9, 4096)) or die; \
            print 'x'; 1 while 1";
        let id = Call::sem_make(0, 5, 0o600).make().unwrap() as i32;
        Call::sem_set_all(id, &[7, 7, 32766, 7, 7]).make().unwrap();
        let mut child = std::process::Command::new("perl")
            .args(["-e", TAKES, &id.to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = Pid(child.id() as i32);
        let view = ProcessView::read(pid, Depth::Maps).unwrap();
        let seized = Seized::seize(pid, 0).unwrap().unwrap();
        seized.interrupt();
        let Halting::Stopped(thread) = seized.halting().unwrap() else {
            panic!("it does not halt");
        };
        let mut process = StoppedProcess::new(view.into(), vec![thread]).unwrap();
        let set = Set {
            object: Owner {
                id,
                ..Owner::default()
            },
            values: sem_values(id).unwrap(),
            pids: Vec::new(),
        };
        let add = |number, add| Undo { id, number, add };
        let want = vec![add(0, 3), add(2, -1)];
        assert_eq!(
            undo_of(&mut process, 0, &[(id, set.values.clone())]).unwrap(),
            want
        );
        if Peek::get().is_some() {
            assert_eq!(seen_of(&process, 0, &[set]), Some(want));
        }
        process.release(|_| ()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        sem_remove(id).unwrap();
    }

    #[test]
    fn parts_make_the_whole() {
        assert_eq!(parts(-32768, 16383), [-16383, -16383, -2]);
        assert_eq!(parts(5, 16383), [5]);
        assert!(parts(0, 5).is_empty());
    }
}

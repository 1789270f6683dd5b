//! `Opened → Nest → Running`: checks everything first, then builds stage by stage, then lets it fly.

mod filling;

pub use filling::Filling;

use crate::error::{Blocker, Context, Error, Fate, Result};
use crate::ids::{FileId, Pid, Range};
use crate::kinds::fdtable::{self, FdTable};
use crate::kinds::kinship::Kinship;
use crate::kinds::memory::heritage::Heritage;
use crate::kinds::memory::lazy::Later;
use crate::kinds::memory::{self, Memory, occupied};
use crate::kinds::namespaces::{self, Namespace, clocks};
use crate::kinds::regular::ghost::Ghosts;
use crate::kinds::{FD_KINDS, Loaded, PROCESS_KINDS, Placed, ProcessKind, Stage, peek};
use crate::kinds::{cgroup, give_to_threads, limits, tcp, terminal};
use crate::nest::attach::Attach;
use crate::nest::family::Family;
use crate::nest::{CgroupChoice, Nest, Options};
use crate::store::{Frame, Opened, unpack};
use crate::sys::{self, fault, interrupt};
use nix::errno::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What came of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The processes at the top of the restored trees, children of freeze.
    pub roots: Vec<Pid>,
    pub processes: usize,
    /// What is not as it was, a line each.
    pub warnings: Vec<String>,
    /// From the call to the first instruction, in microseconds.
    pub took_us: u64,
    /// Bytes of memory that were still missing then ([`Options::lazy`]).
    pub missing: u64,
}

/// Puts the processes of a checkpoint together, sets them going, and waits until all of their memory is in.
pub fn restore(image: Opened, options: Options) -> Result<Restored> {
    let (restored, filling) = prepare(image, options)?.go()?;
    filling.finish()?;
    Ok(restored)
}

/// Processes that are put together and wait for the word to go. Dropped, they are taken down, and nobody outside has heard
/// of them: their connections are still held shut.
#[derive(Debug)]
pub struct Ready {
    began: Instant,
    nest: Nest,
    filling: Filling,
    processes: usize,
    namespaces: Vec<Namespace>,
}

impl Ready {
    /// What is not as it was, a line each, as far as it is known before they run. Tell it now: on a terminal of theirs it
    /// must not come between their lines. Those of [`Restored`] begin with these.
    pub fn warnings(&self) -> &[String] {
        &self.nest.warnings
    }

    /// Sets them going, and does not wait until all of their memory is in.
    pub fn go(self) -> Result<(Restored, Filling)> {
        let Ready {
            began,
            mut nest,
            mut filling,
            processes,
            namespaces,
        } = self;
        fault::point("fly").map_err(|e| e.fate(Fate::TakenDown))?;
        tcp::depart(&mut nest);
        namespaces::let_in(&mut nest, &namespaces).map_err(|e| e.fate(Fate::TakenDown))?;
        tcp::set_out(&mut nest);
        let warnings = std::mem::take(&mut nest.warnings);
        let roots = nest.fly()?;
        let restored = Restored {
            roots,
            processes,
            warnings,
            took_us: began.elapsed().as_micros() as u64,
            missing: filling.missing(),
        };
        filling.stream()?;
        Ok((restored, filling))
    }
}

/// Puts the processes of a checkpoint together.
pub fn prepare(image: Opened, options: Options) -> Result<Ready> {
    let began = Instant::now();
    let mut records = Records::read(&image)?;
    records.precheck(&options)?;
    image.leftovers()?;
    if let Some(clocks) = records.clocks.take() {
        clocks.carry_on(&mut records.families, &mut records.namespaces)?;
    }
    fault::point("nest")?;
    sys::raise_descriptor_limit();
    let groups = options.cgroup == CgroupChoice::Keep;
    let spaces = namespaces::make(&records.namespaces, &records.families, groups)?;
    let (ptys, terminals, prepared) = terminal::controlling(&image, &options, &records.namespaces, &spaces)?;
    let heritage = Heritage::new(&image, &records.families, std::mem::take(&mut records.memories));
    let mut nest = Nest::new(
        image.clone(),
        options,
        &records.families,
        &records.occupied,
        &records.held,
        terminals,
        spaces,
        Box::new(heritage),
    )?;
    cgroup::take_over(&mut nest);
    *nest.state() = ptys;
    *nest.state() = prepared;
    let built = build(&mut nest, &image, &records);
    let mut filling = Filling(nest.state::<Later>().server.take());
    // A process that was ended because pages could not be had says less than why they could not.
    built.map_err(|e| filling.failure().unwrap_or(e).fate(Fate::TakenDown))?;
    filling.guard(&mut nest).map_err(|e| e.fate(Fate::TakenDown))?;
    Ok(Ready {
        began,
        nest,
        filling,
        processes: records.families.len(),
        namespaces: records.namespaces,
    })
}

/// The image's records, decoded as far as the order of work needs them.
struct Records<'a> {
    frames: &'a [Frame],
    image: &'a Opened,
    /// Parents before children.
    families: Vec<Family>,
    occupied: Vec<Range>,
    /// Numbers of descriptors.
    held: BTreeSet<i32>,
    memories: BTreeMap<Pid, memory::Record>,
    files: BTreeMap<FileId, Box<dyn Loaded>>,
    holders: Vec<(FileId, Pid, i32)>,
    namespaces: Vec<Namespace>,
    /// Not in images of the first days.
    clocks: Option<clocks::Clocks>,
}

impl<'a> Records<'a> {
    fn read(image: &'a Opened) -> Result<Records<'a>> {
        let frames = image.records();
        let mut out = Records {
            frames,
            image,
            families: Vec::new(),
            occupied: Vec::new(),
            held: BTreeSet::new(),
            memories: BTreeMap::new(),
            files: BTreeMap::new(),
            holders: Vec::new(),
            namespaces: Vec::new(),
            clocks: None,
        };
        for frame in frames {
            if let Some(kind) = FD_KINDS.iter().find(|k| k.tag == frame.tag) {
                out.version(frame, kind.version)?;
                let (id, loaded) = kind.load(&frame.payload).map_err(|e| out.damaged(frame, e))?;
                frame.take();
                if out.files.insert(id, loaded).is_some() {
                    return Err(out.damaged(frame, format!("a second record of {id}")));
                }
                continue;
            }
            if frame.tag == namespaces::TAG {
                out.version(frame, namespaces::VERSION)?;
                out.namespaces
                    .push(unpack(&frame.payload).map_err(|e| out.damaged(frame, e))?);
                frame.take();
                continue;
            }
            if frame.tag == clocks::TAG {
                out.version(frame, clocks::VERSION)?;
                out.clocks = Some(unpack(&frame.payload).map_err(|e| out.damaged(frame, e))?);
                frame.take();
                continue;
            }
            // A frame of a kind nobody knows stays untaken, and `leftovers` names it.
            let Some(kind) = PROCESS_KINDS.iter().find(|k| k.tag == frame.tag) else {
                continue;
            };
            out.version(frame, kind.version)?;
            frame.take();
            match frame.tag.as_str() {
                Kinship::TAG => out.families.push(
                    peek::<Kinship>(&frame.payload)
                        .map_err(|e| out.damaged(frame, e))?
                        .1,
                ),
                Memory::TAG => {
                    let (pid, memory) = peek::<Memory>(&frame.payload).map_err(|e| out.damaged(frame, e))?;
                    out.occupied.extend(occupied(&memory));
                    out.memories.insert(pid, memory);
                }
                FdTable::TAG => {
                    let (pid, table) = peek::<FdTable>(&frame.payload).map_err(|e| out.damaged(frame, e))?;
                    out.held.extend(table.slots.iter().map(|s| s.fd));
                    out.holders
                        .extend(table.slots.iter().map(|s| (s.file, pid, s.fd)));
                }
                _ => {}
            }
        }
        Ok(out)
    }

    fn version(&self, frame: &Frame, known: u16) -> Result<()> {
        match frame.version == known {
            true => Ok(()),
            false => Err(Error::Image {
                file: self.image.path().join("records"),
                offset: Some(frame.offset),
                expected: format!("{:?} records of version {known}", frame.tag),
                found: format!("version {}", frame.version),
            }),
        }
    }

    fn damaged(&self, frame: &Frame, found: String) -> Error {
        Error::Image {
            file: self.image.path().join("records"),
            offset: Some(frame.offset),
            expected: format!("a {:?} record", frame.tag),
            found,
        }
    }

    /// Everything that speaks against restoring here and now, at once.
    fn precheck(&self, options: &Options) -> Result<()> {
        let mut out: Vec<Blocker> = Vec::new();
        namespaces::precheck(&self.namespaces, &mut out);
        for (id, file) in &self.files {
            if self.attached(*id, options).is_none() {
                file.precheck(options, &mut out);
            }
        }
        for attach in &options.attach {
            attach.precheck(&mut out);
            if !self
                .files
                .keys()
                .any(|id| self.attached(*id, options) == Some(attach))
            {
                out.push(
                    Blocker::at(attach.object.to_string(), "")
                        .why("nothing of this name is in the checkpoint, or another --attach is for it")
                        .remedy("name a descriptor as PID:FD, or what /proc/PID/fd showed"),
                );
            }
        }
        for frame in self.frames {
            let Some(kind) = PROCESS_KINDS.iter().find(|k| k.tag == frame.tag) else {
                continue;
            };
            kind.precheck(&frame.payload, options, &mut out)
                .map_err(|e| self.damaged(frame, e))?;
        }
        let mut seen = BTreeSet::new();
        out.retain(|b| seen.insert(b.to_string()));
        if out.is_empty() {
            Ok(())
        } else {
            Err(Error::Refused(out))
        }
    }

    /// What the restorer supplies in place of a description.
    fn attached<'o>(&self, id: FileId, options: &'o Options) -> Option<&'o Attach> {
        let file = self.files.get(&id)?;
        let first = self.families.first().map_or(Pid(0), |f| f.pid);
        let holders = || self.holders.iter().filter(|(file, ..)| *file == id);
        options
            .attach
            .iter()
            .find(|a| holders().any(|(_, pid, fd)| a.object.is(*pid, *fd, file.link(), first)))
    }

    /// The descriptions in an order in which members come first.
    fn order(&self) -> Result<Vec<FileId>> {
        let mut order = Vec::with_capacity(self.files.len());
        let mut state: BTreeMap<FileId, bool> = BTreeMap::new();
        let mut stack: Vec<(FileId, bool)> = self.files.keys().rev().map(|id| (*id, false)).collect();
        while let Some((id, ready)) = stack.pop() {
            if ready {
                if state.insert(id, true) != Some(true) {
                    order.push(id);
                }
                continue;
            }
            if state.contains_key(&id) {
                continue;
            }
            state.insert(id, false);
            stack.push((id, true));
            let Some(file) = self.files.get(&id) else {
                return Err(Error::Image {
                    file: self.image.path().join("records"),
                    offset: None,
                    expected: format!("a record of {id}"),
                    found: "none".into(),
                });
            };
            stack.extend(file.members().into_iter().map(|m| (m, false)));
        }
        Ok(order)
    }
}

fn build(nest: &mut Nest, image: &Opened, records: &Records<'_>) -> Result<()> {
    namespaces::furnish(nest, &records.namespaces)?;
    if !nest.options.trees.is_empty() {
        // Now that their trees are there, the files in them can be looked at.
        records.precheck(&nest.options.clone())?;
        fault::point("furnished")?;
    }
    for (file, pid, fd) in &records.holders {
        nest.note_holder(*file, *pid, *fd);
    }
    use Stage::{Credentials, Files, Last, Limits, Memory, Place, Signals, Threads};
    for stage in [Memory, Place, Files, Threads, Signals, Limits, Credentials, Last] {
        interrupt::check()?;
        let order = if stage == Files {
            records.order()?
        } else {
            Vec::new()
        };
        for id in &order {
            fault::point("a file")?;
            let fd = match records.attached(*id, &nest.options) {
                Some(attach) => attach.open(records.files[id].flags())?,
                None => records.files[id].restore(nest)?,
            };
            nest.put_file(*id, fd);
        }
        if stage == Signals {
            // Before dispositions are set, which flushes what their ends made pending in their parents.
            nest.end_zombies(&records.families)?;
        }
        for frame in image.records() {
            let Some(kind) = PROCESS_KINDS
                .iter()
                .find(|k| k.tag == frame.tag && k.stage == stage)
            else {
                continue;
            };
            fault::point(kind.tag)?;
            kind.restore(&frame.payload, nest)?
                .map_err(|e| records.damaged(frame, e))?;
        }
        if stage == Files {
            // Everything is open: what had no name has none again, before anybody begins to watch directories.
            let lost = nest.state::<Ghosts>().bury();
            nest.warnings.extend(lost);
        }
        let own = |id: &&FileId| records.attached(**id, &nest.options).is_none();
        for id in order.iter().filter(own).collect::<Vec<_>>() {
            // What only a queue holds has no place in any table.
            let nowhere = (nest.roots().first().copied().unwrap_or(Pid(0)), -1);
            let (pid, fd) = nest.holders(*id).first().copied().unwrap_or(nowhere);
            fault::point("a file's end")?;
            records.files[id].finish(Placed { id: *id, pid, fd }, nest)?;
        }
        if stage == Files {
            fdtable::lock(nest)?;
        }
        if stage == Threads {
            give_to_threads(nest)?;
        }
    }
    limits::settle(nest)?;
    namespaces::seal(nest)?;
    fault::point("filters")?;
    namespaces::guard(nest, &records.namespaces)?;
    memory::vdso::settle(nest)
}

/// How a restored root ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// Waits for a restored root, a child of this process, to end; signals noted meanwhile are passed on to it.
pub fn wait(root: Pid) -> Result<Ended> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let pidfd = sys::pidfd_open(root).on("pidfd_open", || format!("pid {root}"))?;
    loop {
        match waitpid(root.nix(), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => {
                terminal::take_back();
                return Ok(Ended::Code(code));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                terminal::take_back();
                return Ok(Ended::Signal(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).on("waitpid", || format!("pid {root}")),
        }
        use std::os::fd::AsFd;
        let mut fds = [nix::poll::PollFd::new(
            pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        // A signal interrupts the wait; the timeout is for one that comes just before it.
        let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(200u8));
        if let Some(signal) = interrupt::take() {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal);
        }
    }
}

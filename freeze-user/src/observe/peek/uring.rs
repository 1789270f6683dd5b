//! An io_uring instance as the kernel has it: setup flags, counters, what is registered, what is in flight.
//!
//! Nothing of this can be asked for, or only of what the program has done through it (fdinfo). How to look is tried once
//! on an instance of freeze's own: where a kernel has it otherwise than is known here, nothing is believed.

use super::Peek;
use crate::ids::Pid;
use crate::sys;
use crate::sys::uring::{self, Area, ENTRIES_AT, Params, RINGS_AT, entry_size};
use nix::unistd::write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// A way to look at instances.
#[derive(Debug)]
pub struct Rings {
    peek: Peek,
    /// Where each CPU has its part of per-CPU memory.
    cpus: Vec<u64>,
    /// Where workers may run that nobody has bound.
    anywhere: Vec<u8>,
    /// What [`PECULIAR`] reads as in an instance that nothing was done to.
    fresh: Vec<Option<Vec<u8>>>,
}

/// What one instance is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// `IORING_SETUP_*`.
    pub flags: u32,
    pub entries: u32,
    pub completions: u32,
    /// How many entries were taken and how many completions given, as the kernel counts them.
    pub taken: u32,
    pub given: u32,
    /// Requests not completed yet, of this instance or of others that the same threads use.
    pub in_flight: i64,
    /// Whether completions wait for room in the ring, or were lost for lack of memory.
    pub overflow: bool,
    /// The eventfd that counts completions (its context), and whether only those that come later.
    pub eventfd: Option<(u64, bool)>,
    /// Registered files (`struct file`, 0 in an empty place) with their tags.
    pub files: Vec<(u64, u64)>,
    /// In which places the kernel may put files by itself: from, up to.
    pub choice: (u32, u32),
    /// Places for registered buffers.
    pub buffers: u32,
    /// Registered buffers by their places (of no length in an empty one), where they can be seen: address, length, tag.
    pub registered: Option<Vec<(u64, u64, u64)>>,
    /// Most workers of either kind that were asked for; 0 where nothing was.
    pub workers: [u32; 2],
    /// The threads that have used it whose workers may not run wherever those of freeze do, and where these may.
    pub bound: Vec<(Pid, Vec<u8>)>,
    /// The only thread that may submit.
    pub submitter: Option<Pid>,
    /// What cannot be made again.
    pub peculiar: Vec<&'static str>,
}

const CTX: &str = "io_ring_ctx";
const PER_CPU: &str = ".data..percpu";

/// The members that are looked at, beside those of [`super::MEMBERS`].
const MEMBERS: [(&str, &str); 68] = [
    ("io_uring_task", "io_wq"),
    ("io_wq", "cpu_mask"),
    ("io_wq", "wqes"),
    ("io_wqe", "cpu_mask"),
    (PER_CPU, "runqueues"),
    (PER_CPU, "this_cpu_off"),
    ("task_struct", "sched_task_group"),
    ("task_group", "cfs_rq"),
    ("cfs_rq", "rq"),
    (CTX, "flags"),
    (CTX, "sq_entries"),
    (CTX, "cq_entries"),
    (CTX, "cached_sq_head"),
    (CTX, "cached_cq_tail"),
    (CTX, "tctx_list"),
    (CTX, "check_cq"),
    (CTX, "cq_overflow_list"),
    (CTX, "io_ev_fd"),
    (CTX, "file_table"),
    (CTX, "nr_user_files"),
    (CTX, "file_data"),
    (CTX, "file_alloc_start"),
    (CTX, "file_alloc_end"),
    (CTX, "buf_table"),
    (CTX, "nr_user_bufs"),
    (CTX, "iowq_limits"),
    (CTX, "submitter_task"),
    (CTX, "sq_data"),
    (CTX, "restrictions"),
    (CTX, "personalities"),
    (CTX, "io_bl_xa"),
    (CTX, "io_bl"),
    (CTX, "zcrx_ctxs"),
    (CTX, "ifq"),
    (CTX, "param_region"),
    (CTX, "cq_wait_size"),
    (CTX, "napi_enabled"),
    (CTX, "napi_track_mode"),
    (CTX, "napi_busy_poll_dt"),
    (CTX, "napi_prefer_busy_poll"),
    (CTX, "clockid"),
    ("io_restriction", "registered"),
    ("xarray", "xa_head"),
    ("io_mapped_region", "nr_pages"),
    ("io_tctx_node", "ctx_node"),
    ("io_tctx_node", "task"),
    ("task_struct", "io_uring"),
    ("io_uring_task", "cached_refs"),
    ("io_uring_task", "inflight"),
    ("io_uring_task", "registered_rings"),
    ("percpu_counter", "count"),
    ("percpu_counter", "counters"),
    ("io_ev_fd", "cq_ev_fd"),
    ("io_ev_fd", "eventfd_async"),
    ("io_file_table", "data"),
    ("io_file_table", "files"),
    ("io_rsrc_data", "nr"),
    ("io_rsrc_data", "nodes"),
    ("io_rsrc_data", "tags"),
    ("io_rsrc_node", "tag"),
    ("io_rsrc_node", "file_ptr"),
    ("io_rsrc_node", "buf"),
    ("io_mapped_ubuf", "ubuf"),
    ("io_mapped_ubuf", "len"),
    ("io_mapped_ubuf", "is_kbuf"),
    ("io_fixed_file", "file_ptr"),
    ("io_sq_data", "thread"),
    ("io_sq_data", "sq_cpu"),
];

/// Something that an instance may have and that cannot be made again. A kernel that lacks the member lacks the thing.
struct Peculiar {
    /// Where it shows: a member of the instance, and one of what lies there.
    member: &'static str,
    inner: Option<(&'static str, &'static str)>,
    bytes: usize,
    what: &'static str,
}

const fn peculiar(
    member: &'static str,
    inner: Option<(&'static str, &'static str)>,
    bytes: usize,
    what: &'static str,
) -> Peculiar {
    Peculiar {
        member,
        inner,
        bytes,
        what,
    }
}

const TREE: Option<(&str, &str)> = Some(("xarray", "xa_head"));

const PECULIAR: [Peculiar; 13] = [
    peculiar(
        "restrictions",
        Some(("io_restriction", "registered")),
        1,
        "restrictions",
    ),
    peculiar("personalities", TREE, 8, "personalities"),
    peculiar("io_bl_xa", TREE, 8, "provided buffers"),
    peculiar("io_bl", None, 8, "provided buffers"),
    peculiar("zcrx_ctxs", TREE, 8, "zero-copy reception"),
    peculiar("ifq", None, 8, "zero-copy reception"),
    peculiar(
        "param_region",
        Some(("io_mapped_region", "nr_pages")),
        4,
        "a region for arguments",
    ),
    peculiar("cq_wait_size", None, 8, "a region for arguments"),
    peculiar("napi_enabled", None, 1, "busy polling (NAPI)"),
    peculiar("napi_track_mode", None, 1, "busy polling (NAPI)"),
    peculiar("napi_busy_poll_dt", None, 8, "busy polling (NAPI)"),
    peculiar("napi_prefer_busy_poll", None, 1, "busy polling (NAPI)"),
    peculiar("clockid", None, 4, "a clock of its own"),
];

/// The most threads, files or buffers that are believed.
const MANY: u32 = 1 << 20;

/// How many instances a thread may register for itself (`IO_RINGFD_REG_MAX`).
pub const REGISTERED: usize = 16;

impl Rings {
    /// The one way of this process; `None` where the kernel does not let us, or is not as is known here.
    pub fn get() -> Option<&'static Rings> {
        static ONE: OnceLock<Option<Rings>> = OnceLock::new();
        ONE.get_or_init(Rings::tried).as_ref()
    }

    /// What the instance behind a descriptor of freeze's own is like; `None` if it cannot be seen, or changes meanwhile.
    pub fn look(&self, ring: BorrowedFd<'_>) -> Option<Ring> {
        let p = &self.peek;
        let ctx = p.word(p.at(p.file(ring)?, "file", "private_data"))?;
        let number = |member| p.number(p.at(ctx, CTX, member));
        let list = p.at(ctx, CTX, "cq_overflow_list");
        let limits = p.at(ctx, CTX, "iowq_limits");
        let users = self.users(ctx)?;
        let bound = |task: &u64| {
            let mask = self.cpus_of_workers(*task)?;
            Some((Pid(p.number(p.at(*task, "task_struct", "pid"))? as i32), mask))
        };
        let bound = users.iter().map(bound).collect::<Option<Vec<_>>>()?;
        let peculiar = |n: &usize| self.peculiar(ctx, *n) != self.fresh[*n];
        Some(Ring {
            flags: number("flags")?,
            entries: number("sq_entries")?,
            completions: number("cq_entries")?,
            taken: number("cached_sq_head")?,
            given: number("cached_cq_tail")?,
            in_flight: self.in_flight(ctx, &users)?,
            bound: bound
                .into_iter()
                .filter(|(_, mask)| *mask != self.anywhere)
                .collect(),
            overflow: p.word(list)? != list || p.word(p.at(ctx, CTX, "check_cq"))? != 0,
            eventfd: self.eventfd(ctx)?,
            files: self.files(ctx)?,
            choice: (number("file_alloc_start")?, number("file_alloc_end")?),
            buffers: match p.has(CTX, "buf_table") {
                true => p.number(p.at(p.at(ctx, CTX, "buf_table"), "io_rsrc_data", "nr"))?,
                false => number("nr_user_bufs")?,
            },
            registered: self.buffers(ctx),
            workers: [p.number(limits)?, p.number(limits + 4)?],
            submitter: match p.word(p.at(ctx, CTX, "submitter_task"))? {
                0 => None,
                task => Some(Pid(p.number(p.at(task, "task_struct", "pid"))? as i32)),
            },
            peculiar: (0..PECULIAR.len())
                .filter(peculiar)
                .map(|n| PECULIAR[n].what)
                .collect(),
        })
    }

    /// The instances that a thread of `process` has registered for itself (`struct file`), by their places.
    pub fn registered(&self, process: Pid) -> Option<Vec<(Pid, usize, u64)>> {
        let p = &self.peek;
        let mut out = Vec::new();
        let mut seen = Some(());
        p.threads(process, |tid, task| {
            let mine = p.word(p.at(task, "task_struct", "io_uring")).and_then(|own| {
                let list = p.at(own, "io_uring_task", "registered_rings");
                let files = (0..REGISTERED).map(|n| {
                    if own == 0 {
                        Some(0)
                    } else {
                        p.word(list + 8 * n as u64)
                    }
                });
                files.collect::<Option<Vec<u64>>>()
            });
            match mine {
                Some(files) => out.extend(
                    (0..)
                        .zip(files)
                        .filter(|(_, f)| *f != 0)
                        .map(|(n, f)| (tid, n, f)),
                ),
                None => seen = None,
            }
            seen.is_some()
        })?;
        seen.map(|()| out)
    }

    /// The `struct file` behind a descriptor of freeze's own.
    pub fn file(&self, fd: BorrowedFd<'_>) -> Option<u64> {
        self.peek.file(fd)
    }

    /// The `struct file` behind each of these descriptors of a process.
    pub fn files_of(&self, process: Pid, fds: &[i32]) -> Option<Vec<u64>> {
        let p = &self.peek;
        let mut files = None;
        // The first thread may have ended, and has none then.
        p.threads(process, |_, task| {
            files = p.word(p.at(task, "task_struct", "files")).filter(|f| *f != 0);
            files.is_none()
        })?;
        let table = p.word(p.at(files?, "files_struct", "fdt"))?;
        let list = p.word(p.at(table, "fdtable", "fd"))?;
        fds.iter().map(|fd| p.word(list + 8 * *fd as u64)).collect()
    }

    /// The context of the eventfd that is this `struct file`.
    pub fn eventfd_of(&self, file: u64) -> Option<u64> {
        self.peek.word(self.peek.at(file, "file", "private_data"))
    }

    fn peculiar(&self, ctx: u64, n: usize) -> Option<Vec<u8>> {
        let Peculiar {
            member, inner, bytes, ..
        } = PECULIAR[n];
        let p = &self.peek;
        if !p.has(CTX, member) {
            return None;
        }
        let at = p.at(ctx, CTX, member);
        let mut bytes = vec![0; bytes];
        let at = inner.map_or(at, |(structure, member)| p.at(at, structure, member));
        p.reader.read(at, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The threads that have used the instance (`task_struct`).
    fn users(&self, ctx: u64) -> Option<Vec<u64>> {
        let p = &self.peek;
        let head = p.at(ctx, CTX, "tctx_list");
        let mut out = Vec::new();
        let mut node = p.word(head)?;
        while node != head {
            (out.len() < MANY as usize).then_some(())?;
            let user = node.checked_sub(p.at(0, "io_tctx_node", "ctx_node"))?;
            out.push(p.word(p.at(user, "io_tctx_node", "task"))?);
            node = p.word(node)?;
        }
        Some(out)
    }

    /// Requests not completed of these threads, and of the one that polls the instance.
    fn in_flight(&self, ctx: u64, users: &[u64]) -> Option<i64> {
        let p = &self.peek;
        let polling = match p.word(p.at(ctx, CTX, "sq_data"))? {
            0 => 0,
            data => p.word(p.at(data, "io_sq_data", "thread"))?,
        };
        let all = users.iter().copied().chain((polling != 0).then_some(polling));
        all.map(|task| self.in_flight_of(task)).sum()
    }

    /// On which CPUs the workers of a thread may run, a bit each.
    fn cpus_of_workers(&self, task: u64) -> Option<Vec<u8>> {
        let p = &self.peek;
        let own = p.word(p.at(task, "task_struct", "io_uring"))?;
        let workers = p.word(p.at(own, "io_uring_task", "io_wq"))?;
        let at = match p.has("io_wq", "cpu_mask") {
            true => p.at(workers, "io_wq", "cpu_mask"),
            // Before Linux 6.4 there were some for each NUMA node, all with what was asked for.
            false => p.at(p.word(p.at(workers, "io_wq", "wqes"))?, "io_wqe", "cpu_mask"),
        };
        let mut mask = vec![0; self.cpus.len().div_ceil(64) * 8];
        // The mask itself, or where it is.
        let elsewhere = p.word(at).map(|there| p.reader.read(there, &mut mask));
        if !matches!(elsewhere, Some(Ok(()))) {
            p.reader.read(at, &mut mask).ok()?;
        }
        Some(mask)
    }

    /// Those of one thread: it draws on its count in advance, and the count is spread over the CPUs.
    fn in_flight_of(&self, task: u64) -> Option<i64> {
        let p = &self.peek;
        let own = p.word(p.at(task, "task_struct", "io_uring"))?;
        if own == 0 {
            return Some(0);
        }
        let counter = p.at(own, "io_uring_task", "inflight");
        let mut sum = p.word(p.at(counter, "percpu_counter", "count"))? as i64;
        let spread = p.word(p.at(counter, "percpu_counter", "counters"))?;
        for cpu in &self.cpus {
            sum += i64::from(p.number(spread.wrapping_add(*cpu))? as i32);
        }
        let ahead = p.number(p.at(own, "io_uring_task", "cached_refs"))? as i32;
        Some(sum - i64::from(ahead))
    }

    fn eventfd(&self, ctx: u64) -> Option<Option<(u64, bool)>> {
        let p = &self.peek;
        match p.word(p.at(ctx, CTX, "io_ev_fd"))? {
            0 => Some(None),
            own => {
                let context = p.word(p.at(own, "io_ev_fd", "cq_ev_fd"))?;
                // One bit, alone in its word or followed by nothing that is ever set.
                let only_async = p.number(p.at(own, "io_ev_fd", "eventfd_async"))? & 1 != 0;
                Some(Some((context, only_async)))
            }
        }
    }

    fn files(&self, ctx: u64) -> Option<Vec<(u64, u64)>> {
        // The lowest bits are notes about the file.
        const NOTES: u64 = 7;
        let p = &self.peek;
        let table = p.at(ctx, CTX, "file_table");
        if p.has("io_rsrc_data", "nodes") {
            let data = p.at(table, "io_file_table", "data");
            let nodes = p.word(p.at(data, "io_rsrc_data", "nodes"))?;
            let file = |n: u32| match p.word(nodes + 8 * u64::from(n))? {
                0 => Some((0, 0)),
                node => Some((
                    p.word(p.at(node, "io_rsrc_node", "file_ptr"))? & !NOTES,
                    p.word(p.at(node, "io_rsrc_node", "tag"))?,
                )),
            };
            return self.each(p.number(p.at(data, "io_rsrc_data", "nr"))?, file);
        }
        // Before Linux 6.13 tags had tables of their own.
        const IN_TABLE: u32 = 512;
        let list = p.word(p.at(table, "io_file_table", "files"))?;
        let data = p.word(p.at(ctx, CTX, "file_data"))?;
        let file = |n: u32| {
            let tags = p.word(p.at(data, "io_rsrc_data", "tags"))?;
            let tags = p.word(tags + 8 * u64::from(n / IN_TABLE))?;
            Some((
                p.word(list + 8 * u64::from(n))? & !NOTES,
                p.word(tags + 8 * u64::from(n % IN_TABLE))?,
            ))
        };
        self.each(p.number(p.at(ctx, CTX, "nr_user_files"))?, file)
    }

    /// Registered buffers, as kernels since Linux 6.15 keep them; not those that are the kernel's own.
    fn buffers(&self, ctx: u64) -> Option<Vec<(u64, u64, u64)>> {
        let p = &self.peek;
        let known = [
            ("io_rsrc_data", "nodes"),
            ("io_mapped_ubuf", "len"),
            ("io_mapped_ubuf", "is_kbuf"),
        ];
        known.iter().all(|(of, member)| p.has(of, member)).then_some(())?;
        let table = p.at(ctx, CTX, "buf_table");
        let nodes = p.word(p.at(table, "io_rsrc_data", "nodes"))?;
        let buffer = |n: u32| match p.word(nodes + 8 * u64::from(n))? {
            0 => Some((0, 0, 0)),
            node => {
                let buffer = p.word(p.at(node, "io_rsrc_node", "buf"))?;
                let mut kernels = [0];
                p.reader
                    .read(p.at(buffer, "io_mapped_ubuf", "is_kbuf"), &mut kernels)
                    .ok()?;
                (kernels == [0]).then_some(())?;
                Some((
                    p.word(p.at(buffer, "io_mapped_ubuf", "ubuf"))?,
                    u64::from(p.number(p.at(buffer, "io_mapped_ubuf", "len"))?),
                    p.word(p.at(node, "io_rsrc_node", "tag"))?,
                ))
            }
        };
        self.each(p.number(p.at(table, "io_rsrc_data", "nr"))?, buffer)
    }

    fn each<T>(&self, number: u32, one: impl FnMut(u32) -> Option<T>) -> Option<Vec<T>> {
        (number <= MANY).then_some(())?;
        (0..number).map(one).collect()
    }

    /// Looks at an instance of our own at every turn of its life; the way is good if it shows what was done.
    fn tried() -> Option<Rings> {
        let members: Vec<_> = super::MEMBERS.into_iter().chain(MEMBERS).collect();
        let peek = Peek::at_members(&members)?;
        let mut rings = Rings {
            cpus: cpus(&peek)?,
            peek,
            anywhere: Vec::new(),
            fresh: vec![None; PECULIAR.len()],
        };
        let ring = uring::make(&mut Params::new(8, 0, 0)).ok()?;
        let ring = ring.as_fd();
        let ctx = rings
            .peek
            .word(rings.peek.at(rings.file(ring)?, "file", "private_data"))?;
        rings.anywhere = rings.cpus_of_workers(rings.peek.reader.current().ok()?)?;
        rings.fresh = (0..PECULIAR.len()).map(|n| rings.peculiar(ctx, n)).collect();
        rings.shows(ring).then_some(rings)
    }

    fn shows(&self, ring: BorrowedFd<'_>) -> bool {
        let seen = || self.look(ring);
        let Some(own) = seen() else { return false };
        let fresh = Ring {
            flags: 0,
            entries: 8,
            completions: 16,
            taken: 0,
            given: 0,
            overflow: false,
            eventfd: None,
            files: Vec::new(),
            buffers: 0,
            workers: [0; 2],
            bound: Vec::new(),
            submitter: None,
            peculiar: Vec::new(),
            ..own.clone()
        };
        let before = own.in_flight;
        let tried = || {
            let event = sys::eventfd(libc::EFD_NONBLOCK).ok()?;
            let file = self.file(event.as_fd())?;
            uring::register_eventfd(ring, event.as_fd(), false).ok()?;
            uring::register_files(ring, &[-1, event.as_raw_fd()], &[0, 7]).ok()?;
            let held = seen()?;
            let told =
                held.files == [(0, 0), (file, 7)] && held.eventfd == Some((self.eventfd_of(file)?, false));
            wait_for(ring, event.as_fd())?;
            let waiting = seen()?;
            let counted = waiting.in_flight == before + 1 && (waiting.taken, waiting.given) == (1, 0);
            write(&event, &1u64.to_ne_bytes()).ok()?;
            // The completion is brought about on our own way out of the kernel.
            uring::enter(ring, 0, GETEVENTS).ok()?;
            let done = seen()?;
            let completed = done.in_flight == before && (done.taken, done.given) == (1, 1);
            Some(told && counted && completed)
        };
        own == fresh && before >= 0 && tried() == Some(true)
    }
}

/// `IORING_ENTER_GETEVENTS`.
const GETEVENTS: u32 = 1;

/// Submits a request that completes when there is something to read from `fd`.
fn wait_for(ring: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Option<()> {
    const POLL_ADD: u8 = 6;
    let params = {
        // The layout depends on sizes and flags alone.
        let mut params = Params::new(8, 0, 0);
        uring::make(&mut params).ok()?;
        params.layout()
    };
    let rings = Area::map(ring, RINGS_AT, params.rings(0, 8, 16)).ok()?;
    let entries = Area::map(ring, ENTRIES_AT, 8 * entry_size(0)).ok()?;
    let mut entry = [0; 64];
    entry[0] = POLL_ADD;
    entry[4..8].copy_from_slice(&fd.as_raw_fd().to_ne_bytes());
    entry[28..32].copy_from_slice(&(libc::POLLIN as u32).to_ne_bytes());
    entries.write(0, &entry);
    rings.set_word(params.array(), 0);
    rings.set_word(params.sq_tail(), 1);
    (uring::enter(ring, 1, 0) == Ok(1)).then_some(())
}

/// Where each CPU that may be there has its part of per-CPU memory.
///
/// A run queue lies in it, and the scheduler has a list of them; `this_cpu_off`, at a known distance, says the rest.
fn cpus(p: &Peek) -> Option<Vec<u64>> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?;
    let last: u64 = possible.trim().rsplit(['-', ',']).next()?.parse().ok()?;
    let group = p.word(p.at(p.reader.current().ok()?, "task_struct", "sched_task_group"))?;
    let queues = p.word(p.at(group, "task_group", "cfs_rq"))?;
    let queue = p.at(0, PER_CPU, "runqueues");
    let part = |cpu: u64| {
        let own = p.word(queues + 8 * cpu)?;
        let begin = p.word(p.at(own, "cfs_rq", "rq"))?.wrapping_sub(queue);
        p.word(p.at(begin, PER_CPU, "this_cpu_off"))
    };
    (0..=last).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_shows_what_was_done_to_it() {
        if Peek::get().is_none() {
            return;
        }
        let Ok(ring) = uring::make(&mut Params::new(4, 0, uring::setup::SINGLE_ISSUER)) else {
            return;
        };
        let rings = Rings::get().expect("a kernel that is as known here");
        let seen = rings.look(ring.as_fd()).unwrap();
        assert_eq!(
            (seen.entries, seen.completions, seen.flags),
            (4, 8, uring::setup::SINGLE_ISSUER)
        );
        assert!(seen.bound.is_empty());
        uring::bind_workers(ring.as_fd(), &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let bound = rings.look(ring.as_fd()).unwrap().bound;
        assert_eq!(
            bound.first().map(|(tid, mask)| (*tid, mask[0])),
            rings
                .anywhere
                .iter()
                .any(|b| *b > 1)
                .then_some((Pid(nix::unistd::gettid().as_raw()), 1))
        );
        assert_eq!(seen.submitter, Some(Pid(nix::unistd::gettid().as_raw())));
        let own = Pid(std::process::id() as i32);
        let file = rings.file(ring.as_fd()).unwrap();
        assert_eq!(rings.files_of(own, &[ring.as_raw_fd()]), Some(vec![file]));
        assert_eq!(rings.registered(own), Some(Vec::new()));
    }
}

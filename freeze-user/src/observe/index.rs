//! Where in a view something is: found out once, however often it is asked for.

use super::sweep::Sweep;
use super::view::{FdView, View, all_pids};
use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::observe::procfile::read_record;
use crate::proc::stat::Stat;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, OnceLock};

/// What is open in a process outside the set.
#[derive(Debug)]
pub struct Other {
    pub pid: Pid,
    pub fd: RawFd,
    /// The text of its link in /proc.
    pub link: Vec<u8>,
}

/// The TCP sockets that have these ends, each as the number of its network namespace and its inode.
type TcpEnds = HashMap<(SocketAddr, SocketAddr), Vec<(u32, u64)>>;

/// What was found out of a view. A copy of the view begins anew, since it is made in order to be changed.
#[derive(Debug, Default)]
pub struct Index {
    /// The places in [`View::fds`] of those with an inode number.
    inodes: OnceLock<HashMap<u64, Vec<usize>>>,
    /// The places of the unix sockets that send to one.
    pointing: OnceLock<HashMap<u64, Vec<usize>>>,
    /// TCP sockets by both ends.
    tcp: OnceLock<TcpEnds>,
    /// What others have open.
    others: Arc<OnceLock<Vec<Other>>>,
}

impl Clone for Index {
    fn clone(&self) -> Index {
        Index::default()
    }
}

impl View {
    /// The descriptors of this inode number, in whatever file system.
    pub fn fds_of(&self, inode: u64) -> impl Iterator<Item = &FdView> {
        let index = self.index.inodes.get_or_init(|| {
            let mut index: HashMap<u64, Vec<usize>> = HashMap::new();
            for (n, fd) in self.fds().enumerate() {
                index.entry(fd.stat.ino).or_default().push(n);
            }
            index
        });
        self.places(index.get(&inode))
    }

    /// The unix sockets of the set that send to the one with this inode.
    pub fn pointing_at(&self, inode: u64) -> impl Iterator<Item = &FdView> {
        let index = self.index.pointing.get_or_init(|| {
            let mut index: HashMap<u64, Vec<usize>> = HashMap::new();
            for (n, fd) in self.fds().enumerate() {
                if let Some(peer) = self.unix.get(&fd.stat.ino).and_then(|u| u.peer) {
                    index.entry(peer).or_default().push(n);
                }
            }
            index
        });
        self.places(index.get(&inode))
    }

    fn places(&self, places: Option<&Vec<usize>>) -> impl Iterator<Item = &FdView> {
        let starts: Vec<usize> = self
            .processes
            .iter()
            .scan(0, |sum, p| {
                let start = *sum;
                *sum += p.fds.len();
                Some(start)
            })
            .collect();
        let end = self.each().map(|p| p.fds.len()).sum::<usize>();
        places.into_iter().flatten().filter_map(move |&n| {
            if n >= end {
                return self.in_transit.get(n - end);
            }
            let of = starts.partition_point(|start| *start <= n) - 1;
            self.processes[of].fds.get(n - starts[of])
        })
    }

    /// The descriptor by which the set holds the socket with this inode first.
    pub fn socket(&self, inode: u64) -> Option<&FdView> {
        self.fds_of(inode).find(|f| !f.protocol.is_empty())
    }

    /// The inode of the other end of a TCP connection on this machine.
    pub fn tcp_peer(&self, inode: u64) -> Option<u64> {
        const LISTEN: u8 = 10;
        let own = self
            .tcp
            .get(&inode)
            .filter(|s| s.state != LISTEN && s.remote.port() != 0)?;
        let others = self.tcp_between(own.remote, own.local);
        let mut here = others.iter().filter(|(net, _)| *net == own.net);
        // One that goes from one network into another has its ends in two of them. Loopback leads nowhere else.
        let across = || match others {
            [(_, inode)] if !own.remote.ip().is_loopback() => Some(*inode),
            _ => None,
        };
        let other = here.next().map(|(_, inode)| *inode).or_else(across);
        other.filter(|other| *other != inode)
    }

    /// The TCP sockets that have these ends, each with the number of its network namespace.
    fn tcp_between(&self, local: SocketAddr, remote: SocketAddr) -> &[(u32, u64)] {
        let index = self.index.tcp.get_or_init(|| {
            let mut index: HashMap<_, Vec<(u32, u64)>> = HashMap::new();
            for (inode, s) in &self.tcp {
                index
                    .entry((s.local, s.remote))
                    .or_default()
                    .push((s.net, *inode));
            }
            index
        });
        index.get(&(local, remote)).map_or(&[], Vec::as_slice)
    }

    /// What is open outside the set and is alike, in every process that can be looked into.
    pub fn others(&self, alike: impl Fn(&Other) -> bool) -> impl Iterator<Item = &Other> {
        // What could not be looked at was told when the view was read, if it mattered.
        let _ = self.look_at_others();
        let all = self.index.others.get().into_iter().flatten();
        let mut own: HashMap<Pid, bool> = HashMap::new();
        all.filter(move |other| alike(other))
            .filter(move |other| !*own.entry(other.pid).or_insert_with(|| self.descends(other.pid)))
    }

    /// Whether a process is of the set although it was not there yet when that was looked at; one that is gone holds
    /// nothing, whoever it was.
    ///
    /// What stands still is looked at whole: who is not in such a view is outside, wherever they descend from.
    fn descends(&self, pid: Pid) -> bool {
        let parent = |of: Pid| {
            let text = read_record(&format!("/proc/{of}/stat")).ok()?;
            Some(Pid(Stat::parse(&text)?.ppid))
        };
        if self.get(pid).is_some() {
            return true;
        }
        let Some(mut above) = parent(pid) else {
            return true;
        };
        while !self.standing && above.0 > 1 {
            if self.get(above).is_some() {
                return true;
            }
            // A parent that ends in this moment leaves the process outside: the next look knows better.
            let Some(next) = parent(above) else { break };
            above = next;
        }
        false
    }

    /// Looks at what is open outside the set, unless that was done.
    pub(super) fn look_at_others(&self) -> Result<()> {
        if self.index.others.get().is_some() {
            return Ok(());
        }
        let own = std::process::id() as i32;
        let outside = |pid: Pid| pid.0 != own && self.get(pid).is_none();
        let mut found = Sweep::ready().and_then(|sweep| sweep.read(outside));
        if found.is_none() {
            let mut all = Vec::new();
            for pid in all_pids()?.into_iter().filter(|pid| outside(*pid)) {
                all.extend(in_proc(pid)?);
                if all.len() > MANY && Sweep::ready().is_none() {
                    found = Sweep::get().and_then(|sweep| sweep.read(outside));
                    if found.is_some() {
                        break;
                    }
                }
            }
            found = found.or(Some(all));
        }
        let _ = self.index.others.set(found.unwrap_or_default());
        Ok(())
    }

    /// What others have open is as in an earlier look, unless it was looked at again, or the set has got something since that
    /// others may have open too: a terminal, a fifo, a ring or a map of eBPF.
    pub(super) fn trust_others(&mut self, before: &View) {
        let nameless = |f: &FdView| matches!(f.anon_inode(), Some("io_uring" | "bpf-map"));
        let shared = |f: &&FdView| nameless(f) || matches!(f.stat.kind(), libc::S_IFIFO | libc::S_IFCHR);
        let known = |f: &FdView| {
            let mut alike = before.fds_of(f.stat.ino).filter(|b| b.stat.dev == f.stat.dev);
            // All of them may be one inode.
            alike.any(|b| !nameless(f) || (b.pid, b.fd, &b.link) == (f.pid, f.fd, &f.link))
        };
        if self.index.others.get().is_none() && self.fds().filter(shared).all(known) {
            self.index.others = Arc::clone(&before.index.others);
        }
    }
}

/// From here on it takes longer to read them one by one than to prepare another way.
const MANY: usize = 2000;

/// What a process has open, as /proc shows it.
pub(super) fn in_proc(pid: Pid) -> Result<Vec<Other>> {
    let path = format!("/proc/{pid}/fd");
    let dir = match std::fs::read_dir(&path) {
        Ok(dir) => dir,
        // Nobody must count as holding nothing because freeze has no descriptor left to look.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            return Err(e).on("readdir", || path);
        }
        // Processes that end, or that we may not look into, hold nothing we could name.
        Err(_) => return Ok(Vec::new()),
    };
    let mut out = Vec::new();
    for entry in dir.flatten() {
        let number = entry.file_name().to_str().and_then(|n| n.parse().ok());
        if let (Some(fd), Ok(link)) = (number, std::fs::read_link(entry.path())) {
            let link = link.into_os_string().into_vec();
            out.push(Other { pid, fd, link });
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Depth;
    use std::os::fd::AsRawFd;

    #[test]
    fn descriptors_are_found_where_they_are() {
        let (one, other) = nix::unistd::pipe().unwrap();
        let own = Pid(std::process::id() as i32);
        let mut sleep = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let view = View::read(&[own], Depth::Maps).unwrap();
        let _ = sleep.kill();
        let _ = sleep.wait();
        assert!(view.processes.len() > 1);
        for fd in view.fds() {
            assert!(view.fds_of(fd.stat.ino).any(|f| (f.pid, f.fd) == (fd.pid, fd.fd)));
        }
        let ino = view.fds().find(|f| f.fd == one.as_raw_fd() && f.pid == own);
        let ends = view.fds_of(ino.unwrap().stat.ino);
        let mut ends: Vec<_> = ends.filter(|f| f.pid == own).map(|f| f.fd).collect();
        ends.sort_unstable();
        assert_eq!(ends, [one.as_raw_fd(), other.as_raw_fd()]);
        assert_eq!(view.fds_of(u64::MAX).count(), 0);
        assert!(view.others(|_| true).all(|o| view.get(o.pid).is_none()));
    }
}

//! Who is whose child, in which session and group: what decides how processes are forked.

use super::space::Membership;
use crate::ids::Pid;
use serde::{Deserialize, Serialize};

/// The kinship of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    pub pid: Pid,
    /// Its parent; for a root that is whoever restores it.
    pub parent: Pid,
    pub pgid: Pid,
    pub sid: Pid,
    /// Whether its parent lies outside the checkpoint.
    pub root: bool,
    /// Its threads other than the leader.
    pub tids: Vec<Pid>,
    /// For a zombie, the status its parent will get from wait(2).
    pub ended: Option<i32>,
    /// The signal its parent gets when it ends; 0 for none.
    #[serde(default = "sigchld")]
    pub exit_signal: i32,
    /// Tables it shares with another process.
    #[serde(default)]
    pub shares: Option<Shares>,
    /// What is still to be seen of a zombie.
    #[serde(default)]
    pub remains: Option<Remains>,
    /// Children that were continued after a stop, which it has not asked for yet (wait(2), WCONTINUED).
    #[serde(default)]
    pub continued: Vec<Pid>,
    /// The namespaces it lives in.
    #[serde(default)]
    pub spaces: Membership,
    /// Its id in every pid namespace, from freeze's down to its own; empty where that is one and the same.
    #[serde(default)]
    pub ids: Vec<i32>,
    /// The same of its other threads, in the order of `tids`.
    #[serde(default)]
    pub tid_ids: Vec<Vec<i32>>,
    /// The same of its session and its group, 0 where they cannot be seen.
    #[serde(default)]
    pub sid_ids: Vec<i32>,
    #[serde(default)]
    pub pgid_ids: Vec<i32>,
    /// The time namespace its children are born into, if it is not its own.
    #[serde(default)]
    pub time_for_children: Option<u32>,
}

/// Tables that a process got by clone(2) and has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Whose they are: its parent's, or those of an elder child of the same parent.
    pub with: Pid,
    /// Flags of clone(2).
    pub tables: u64,
}

/// What a process that has ended leaves for others to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub name: Vec<u8>,
}

fn sigchld() -> i32 {
    libc::SIGCHLD
}

/// A process to be forked: its id, and who it is in the pid namespaces it is in.
#[derive(Clone, Debug)]
pub struct Birth {
    pub pid: Pid,
    /// As [`Family::ids`], never empty.
    pub ids: Vec<i32>,
    pub spaces: Membership,
    /// As [`Family::time_for_children`].
    pub time_for_children: Option<u32>,
}

impl Birth {
    /// What it calls itself.
    pub fn inner(&self) -> i32 {
        self.ids.last().copied().unwrap_or(self.pid.0)
    }

    /// The ids in the order of clone3(2)'s `set_tid`: the innermost first.
    pub fn set_tid(&self) -> Vec<u8> {
        self.ids.iter().rev().flat_map(|id| id.to_ne_bytes()).collect()
    }
}

impl Family {
    /// What it takes to fork it.
    pub fn birth(&self) -> Birth {
        Birth {
            pid: self.pid,
            ids: or_else(&self.ids, self.pid),
            spaces: self.spaces.clone(),
            time_for_children: self.time_for_children,
        }
    }

    /// An interim process in its place, with the id of its session (`ids` being those of the session) or group, forked by
    /// one that lives in `around`.
    pub fn interim(&self, pid: Pid, ids: &[i32], around: &Membership) -> Birth {
        // Where the leader cannot be seen it was not: it lived in a namespace further out.
        let seen: Vec<i32> = ids.iter().copied().take_while(|id| *id != 0).collect();
        let ids = or_else(&seen, pid);
        let inside = ids.len() == self.ids.len().max(1);
        Birth {
            pid,
            ids,
            spaces: if inside {
                self.spaces.clone()
            } else {
                around.clone()
            },
            time_for_children: None,
        }
    }

    /// The ids of a thread of its own, from freeze's pid namespace down.
    pub fn thread_ids(&self, tid: Pid) -> Vec<i32> {
        if tid == self.pid {
            return or_else(&self.ids, tid);
        }
        let at = self.tids.iter().position(|t| *t == tid);
        let ids = at.and_then(|i| self.tid_ids.get(i)).cloned().unwrap_or_default();
        or_else(&ids, tid)
    }

    /// The session it must be forked in, or `None` where any will do; `open` are those in which its parent once was.
    ///
    /// A session leader can be forked anywhere, unless a child of its own was forked before it called setsid(2). A
    /// child in a session that is not open has come to it otherwise.
    pub fn born_in(&self, families: &[Family], open: &[Pid]) -> Option<Pid> {
        if self.sid != self.pid {
            return Some(self.sid);
        }
        families
            .iter()
            .filter(|f| !f.root && f.parent == self.pid)
            .find_map(|f| f.born_in(families, open).filter(|s| open.contains(s)))
    }
}

fn or_else(ids: &[i32], pid: Pid) -> Vec<i32> {
    if ids.is_empty() { vec![pid.0] } else { ids.to_vec() }
}

/// The session of freeze itself.
pub fn own_session() -> Pid {
    Pid(nix::unistd::getsid(None).map_or(0, |p| p.as_raw()))
}

/// Whether no process has this number, so that it can be had for an interim leader.
pub fn free(pid: Pid) -> bool {
    pid.0 > 1
        && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        && !group_exists(pid)
        && !session_exists(pid)
}

/// Whether some process is in the group `pgid`.
pub fn group_exists(pgid: Pid) -> bool {
    nix::sys::signal::killpg(pgid.nix(), None) != Err(nix::errno::Errno::ESRCH)
}

/// Whether some process is in the session `sid`.
fn session_exists(sid: Pid) -> bool {
    crate::observe::view::all_pids()
        .unwrap_or_default()
        .iter()
        .any(|p| nix::unistd::getsid(Some(p.nix())).is_ok_and(|s| s.as_raw() == sid.0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn one(pid: i32, parent: i32, sid: i32) -> Family {
        Family {
            pid: Pid(pid),
            parent: Pid(parent),
            pgid: Pid(sid),
            sid: Pid(sid),
            root: false,
            tids: vec![],
            ended: None,
            exit_signal: libc::SIGCHLD,
            shares: None,
            remains: None,
            continued: vec![],
            spaces: Membership::default(),
            ids: vec![],
            tid_ids: vec![],
            sid_ids: vec![],
            pgid_ids: vec![],
            time_for_children: None,
        }
    }

    #[test]
    fn a_leader_is_born_where_its_eldest_was() {
        let all = [one(10, 1, 10), one(11, 10, 10), one(12, 10, 12), one(13, 12, 10)];
        assert_eq!(all[0].born_in(&all, &[Pid(1)]), None);
        assert_eq!(all[1].born_in(&all, &[Pid(10)]), Some(Pid(10)));
        assert_eq!(
            all[2].born_in(&all, &[Pid(10)]),
            Some(Pid(10)),
            "13 was forked before 12 made its session"
        );
        let orphan = [one(10, 1, 10), one(11, 10, 9)];
        assert_eq!(
            orphan[0].born_in(&orphan, &[Pid(1)]),
            None,
            "11 was given to 10 when its parent in session 9 had ended"
        );
    }
}

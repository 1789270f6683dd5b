//! The namespaces of a set that are not freeze's own: their numbers, and what leads through them.

use super::lasting::read_namespaces;
use super::tree::{MountLine, Trees};
use super::view::{FdView, ProcessView, View};
use crate::error::Result;
use crate::sys::ns;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

impl View {
    /// Numbers the namespaces of the set that are not freeze's, in the order in which they are met.
    fn number_namespaces(&mut self) -> Result<()> {
        let own = read_namespaces("/proc/thread-self")?;
        for suffix in ["", "_for_children"] {
            for p in &self.processes {
                for (name, inode) in p.namespaces.iter() {
                    let (kind, for_children) = match name.strip_suffix("_for_children") {
                        Some(kind) => (kind, "_for_children"),
                        None => (name.as_str(), ""),
                    };
                    if for_children != suffix || own.get(kind) == Some(inode) {
                        continue;
                    }
                    let next = self.foreign.keys().filter(|(k, _)| k == kind).count() as u32 + 1;
                    self.foreign.entry((kind.to_owned(), *inode)).or_insert(next);
                }
            }
        }
        // Last those that are only held open, and can be made again with nobody in them.
        self.number_held(self.held())
    }

    /// The namespaces that descriptors of the set hold.
    fn held(&self) -> Vec<(String, u64)> {
        self.fds().filter_map(|f| namespace_of(&f.link)).collect()
    }

    /// Whether the namespaces of all processes were taken over from that look.
    fn lives_as(&self, before: &View) -> bool {
        let same = |p: &ProcessView| {
            let old = before.get(p.pid);
            p.namespaces.is_empty() || old.is_some_and(|old| Arc::ptr_eq(&old.namespaces, &p.namespaces))
        };
        self.each().all(same)
    }

    /// Numbers those that only a descriptor, a mount or a socket holds.
    fn number_held(&mut self, held: Vec<(String, u64)>) -> Result<()> {
        if held.is_empty() {
            return Ok(());
        }
        let own = read_namespaces("/proc/thread-self")?;
        for (kind, inode) in held {
            let emptied = ["cgroup", "ipc", "net", "time", "user", "uts"].contains(&kind.as_str());
            if emptied && own.get(&kind) != Some(&inode) && !self.foreign.contains_key(&(kind.clone(), inode))
            {
                let next = self.foreign.keys().filter(|(k, _)| *k == kind).count() as u32 + 1;
                self.foreign.insert((kind, inode), next);
            }
        }
        Ok(())
    }

    /// The number of a process's namespace by its name in /proc/PID/ns; 0 for freeze's own.
    pub fn namespace(&self, p: &ProcessView, name: &str) -> u32 {
        if self.foreign.is_empty() {
            return 0;
        }
        let kind = name.strip_suffix("_for_children").unwrap_or(name);
        let inode = p.namespaces.get(name).copied().unwrap_or(0);
        self.foreign.get(&(kind.to_owned(), inode)).copied().unwrap_or(0)
    }

    /// Finds out through which tree of files every link leads.
    pub(super) fn look_at_trees(&mut self, before: Option<&View>) -> Result<()> {
        if before.is_some_and(|b| b.foreign.is_empty() && self.lives_as(b)) {
            // In freeze's own, as far as processes do.
            return self.number_held(self.held());
        }
        self.number_namespaces()?;
        let namespaces = |p: &ProcessView| p.namespaces.get("mnt").map(|inode| (p.speaker, *inode));
        self.trees = Trees::look(self.each().filter_map(namespaces))?;
        if self.trees.is_empty() {
            return Ok(());
        }
        let mounts = (1..=self.trees.count()).flat_map(|n| self.trees.mounts(n));
        let bound = mounts.filter_map(namespace_bound).collect();
        self.number_held(bound)?;
        for i in 0..self.processes.len() {
            let number = self.namespace(&self.processes[i], "mnt");
            let p = Arc::make_mut(&mut self.processes[i]);
            for fd in &mut p.fds {
                fd.tree = self.trees.of_mount(fd.info.mnt_id);
                if let Some((tree, path)) = self.trees.adopt(number, fd.info.mnt_id, &fd.link, &fd.stat) {
                    (fd.tree, fd.link) = (tree, path);
                }
            }
            for (name, link) in [("exe", &mut p.exe), ("cwd", &mut p.cwd), ("root", &mut p.root)] {
                let at = format!("/proc/{}/{name}", p.speaker);
                (link.tree, link.path) = self.trees.place(number, &at, &link.path, &link.stat);
            }
        }
        Ok(())
    }

    /// The descriptor by which the set holds the namespace of this kind and inode first.
    pub fn holder_of(&self, kind: &str, inode: u64) -> Option<&FdView> {
        self.fds()
            .find(|f| namespace_of(&f.link).is_some_and(|(k, i)| k == kind && i == inode))
    }

    /// Where a tree of the set has the namespace of this kind and inode mounted, as freeze reaches it.
    pub fn mounted(&self, kind: &str, inode: u64) -> Option<PathBuf> {
        self.trees.all().find_map(|tree| {
            let mut mounts = self.trees.mounts(tree.number).iter();
            mounts.find_map(|line| {
                let (k, i) = namespace_bound(line)?;
                let path = tree.path(&line.at);
                (k == kind && i == inode && ns::mount_id(&path) == Ok(line.id)).then_some(path)
            })
        })
    }

    /// The socket that the network namespace of this inode is held by, where it is by nothing else of the set.
    pub fn socket_of(&self, inode: u64) -> Option<&FdView> {
        self.fds().find(|f| f.net == Some(inode))
    }

    /// Finds the network namespaces that the sockets of the set are of; those that an earlier look knows are not asked
    /// again. One that only a socket is left of is numbered with the others.
    pub(super) fn look_at_networks(&mut self, before: Option<&View>) -> Result<()> {
        for p in self.each_mut() {
            let known = before.and_then(|v| v.get(p.pid)).map_or(&[][..], |b| &b.fds);
            for fd in p.fds.iter_mut().filter(|fd| fd.is_socket()) {
                let same = known.binary_search_by_key(&fd.fd, |k| k.fd).map(|i| &known[i]);
                fd.net = match same.ok().filter(|k| k.link == fd.link) {
                    Some(same) => same.net,
                    None => network_of(fd),
                };
            }
        }
        let of_sockets: BTreeSet<u64> = self.fds().filter_map(|f| f.net).collect();
        let others = of_sockets.into_iter().filter(|net| *net != self.own_net);
        self.number_held(others.map(|net| ("net".to_owned(), net)).collect())
    }

    /// The network namespaces of the set that are not freeze's.
    pub(super) fn foreign_nets(&self) -> Vec<(u32, std::fs::File)> {
        let mut out: BTreeMap<u32, std::fs::File> = BTreeMap::new();
        for p in &self.processes {
            let number = self.namespace(p, "net");
            if number != 0
                && !out.contains_key(&number)
                && let Ok(file) = std::fs::File::open(format!("/proc/{}/ns/net", p.speaker))
            {
                out.insert(number, file);
            }
        }
        for ((_, inode), number) in self.foreign.iter().filter(|((kind, _), _)| kind == "net") {
            let holder = self.holder_of("net", *inode).map(|h| PathBuf::from(h.at()));
            let by_socket = || Some(socket_network(self.socket_of(*inode)?)?.into());
            let by_name = |path| std::fs::File::open(path).ok();
            let found = || match holder.or_else(|| self.mounted("net", *inode)) {
                Some(path) => by_name(path),
                None => by_socket(),
            };
            if !out.contains_key(number)
                && let Some(file) = found()
            {
                out.insert(*number, file);
            }
        }
        out.into_iter().collect()
    }
}

/// The network namespace that a socket is of.
pub fn socket_network(socket: &FdView) -> Option<OwnedFd> {
    ns::of_socket(socket.duplicate().ok()?.as_fd()).ok()
}

/// The inode of the network namespace that a socket is of.
fn network_of(socket: &FdView) -> Option<u64> {
    let net = socket_network(socket)?;
    nix::sys::stat::fstat(net).ok().map(|stat| stat.st_ino)
}

/// The kind and inode of the namespace that is mounted on a file (`ip netns add`).
pub fn namespace_bound(line: &MountLine) -> Option<(String, u64)> {
    namespace_of(&line.root).filter(|_| line.kind == "nsfs")
}

/// The kind and inode of the namespace that a link of /proc/PID/fd leads to: `net:[4026531833]`.
pub fn namespace_of(link: &[u8]) -> Option<(String, u64)> {
    let (kind, rest) = std::str::from_utf8(link).ok()?.split_once(":[")?;
    let known = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let inode = rest.strip_suffix(']')?.parse().ok()?;
    known.contains(&kind).then(|| (kind.to_owned(), inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_namespaces_are_told_from_others() {
        assert_eq!(
            namespace_of(b"net:[4026531833]"),
            Some(("net".to_owned(), 4026531833))
        );
        assert_eq!(namespace_of(b"pipe:[5]"), None);
        assert_eq!(namespace_of(b"/run/netns/a"), None);
    }
}

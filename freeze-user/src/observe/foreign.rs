//! The namespaces of a set that are not freeze's own: their numbers, and what leads through them.

use super::lasting::read_namespaces;
use super::tree::Trees;
use super::view::{ProcessView, View};
use crate::error::Result;
use std::collections::BTreeMap;

impl View {
    /// Numbers the namespaces of the set that are not freeze's, in the order in which they are met.
    fn number_namespaces(&mut self) -> Result<()> {
        let own = read_namespaces("/proc/thread-self")?;
        for suffix in ["", "_for_children"] {
            for p in &self.processes {
                for (name, inode) in &p.namespaces {
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
        Ok(())
    }

    /// The number of a process's namespace by its name in /proc/PID/ns; 0 for freeze's own.
    pub fn namespace(&self, p: &ProcessView, name: &str) -> u32 {
        let kind = name.strip_suffix("_for_children").unwrap_or(name);
        let inode = p.namespaces.get(name).copied().unwrap_or(0);
        self.foreign.get(&(kind.to_owned(), inode)).copied().unwrap_or(0)
    }

    /// Finds out through which tree of files every link leads.
    pub(super) fn look_at_trees(&mut self) -> Result<()> {
        self.number_namespaces()?;
        let namespaces = |p: &ProcessView| p.namespaces.get("mnt").map(|inode| (p.pid, *inode));
        self.trees = Trees::look(self.processes.iter().filter_map(namespaces))?;
        if self.trees.is_empty() {
            return Ok(());
        }
        for p in &mut self.processes {
            for fd in &mut p.fds {
                fd.tree = self.trees.of_mount(fd.info.mnt_id);
            }
            for (name, link) in [("exe", &mut p.exe), ("cwd", &mut p.cwd), ("root", &mut p.root)] {
                link.tree = self.trees.at(format!("/proc/{}/{name}", p.pid));
            }
        }
        Ok(())
    }

    /// The network namespaces of the set that are not freeze's.
    pub(super) fn foreign_nets(&self) -> Vec<(u32, std::fs::File)> {
        let mut out: BTreeMap<u32, std::fs::File> = BTreeMap::new();
        for p in &self.processes {
            let number = self.namespace(p, "net");
            if number != 0
                && !out.contains_key(&number)
                && let Ok(file) = std::fs::File::open(format!("/proc/{}/ns/net", p.pid))
            {
                out.insert(number, file);
            }
        }
        out.into_iter().collect()
    }
}

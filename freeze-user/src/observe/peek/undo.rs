//! What is taken back from System V semaphores when a process ends (SEM_UNDO), which the kernel tells nobody.

use super::Peek;
use crate::ids::Pid;

/// What one thread takes back, by set: the id of the set, and where the kernel has what is added to each of its semaphores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoList(Vec<(i32, Vec<i16>)>);

/// The most sets of one list that are believed: there are no more in a namespace (IPCMNI with ipcmni_extend).
const MANY: usize = 1 << 24;

impl Peek {
    /// What a thread that stands still would take back from the sets of these sizes; `None` if that cannot be seen.
    pub fn undo(&self, process: Pid, tid: Pid, sizes: &[(i32, usize)]) -> Option<UndoList> {
        let list = self.word(self.at(self.task(process, tid)?, "task_struct", "sysvsem"))?;
        let look = || match list {
            0 => Some(UndoList(Vec::new())),
            list => self.undo_list(list, sizes),
        };
        // Somebody else may remove a set meanwhile, and with it what is to be taken back from it.
        let seen = look()?;
        (look()? == seen).then_some(seen)
    }

    fn undo_list(&self, list: u64, sizes: &[(i32, usize)]) -> Option<UndoList> {
        let mut out = Vec::new();
        let head = self.at(list, "sem_undo_list", "list_proc");
        let mut node = self.word(head)?;
        for _ in 0..MANY {
            if node == head {
                return Some(UndoList(out));
            }
            let undo = node.checked_sub(self.at(0, "sem_undo", "list_proc"))?;
            let id = self.number(self.at(undo, "sem_undo", "semid"))? as i32;
            if let Some((_, size)) = sizes.iter().find(|(known, _)| *known == id) {
                let at = self.at(undo, "sem_undo", "semadj");
                // Up to Linux 6.5 a pointer to what follows it.
                let at = if self.word(at)? == at + 8 { at + 8 } else { at };
                let mut bytes = vec![0; 2 * size];
                self.reader.read(at, &mut bytes).ok()?;
                let adds = bytes.chunks_exact(2).map(|b| i16::from_ne_bytes([b[0], b[1]]));
                out.push((id, adds.collect()));
            }
            node = self.word(node)?;
        }
        None
    }
}

impl UndoList {
    /// What is added to each semaphore of each set.
    pub fn each(&self) -> impl Iterator<Item = (i32, &[i16])> {
        self.0.iter().map(|(id, adds)| (*id, &adds[..]))
    }
}

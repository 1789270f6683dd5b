//! A POSIX message queue as the kernel has it: to receive a message is to take it, so they are looked at in place.

use super::Peek;
use crate::ids::{PAGE, Pid};
use std::os::fd::BorrowedFd;

/// What a queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Priority and contents, in the order in which they will be received.
    pub messages: Vec<(u32, Vec<u8>)>,
    /// Who asked to be told of the next message (mq_notify(3)): a process, how (`SIGEV_*`), by which signal, with what.
    pub notify: Option<(Pid, i32, i32, u64)>,
}

/// The length of a struct msg_msg, and of the struct msg_msgseg that begins each further page of a message.
const HEAD: u64 = 48;
const SEGMENT: u64 = 8;

/// The most messages, and priorities, that are believed.
const MANY: usize = 1 << 16;

impl Peek {
    /// The queue behind a descriptor of freeze's own, which nobody uses meanwhile.
    pub fn queue(&self, fd: BorrowedFd<'_>) -> Option<Queue> {
        let inode = self.word(self.at(self.file(fd)?, "file", "f_inode"))?;
        let info = inode.checked_sub(self.at(0, "mqueue_inode_info", "vfs_inode"))?;
        let mut out = Queue::default();
        // A tree by priority, the greater ones to the right; each of its nodes has a list.
        let mut above: Vec<u64> = Vec::new();
        let mut node = self.word(self.at(info, "mqueue_inode_info", "msg_tree"))?;
        for _ in 0..MANY {
            while node != 0 {
                above.push(node);
                (above.len() < MANY).then_some(())?;
                node = self.word(node + 8)?;
            }
            let Some(next) = above.pop() else { break };
            let leaf = next.checked_sub(self.at(0, "posix_msg_tree_node", "rb_node"))?;
            self.list(
                self.at(leaf, "posix_msg_tree_node", "msg_list"),
                &mut out.messages,
            )?;
            node = self.word(next + 16)?;
        }
        let owner = self.word(self.at(info, "mqueue_inode_info", "notify_owner"))?;
        if owner != 0 {
            // struct sigevent: value, signal, manner.
            let event = self.at(info, "mqueue_inode_info", "notify");
            out.notify = Some((
                Pid(self.number(self.at(owner, "pid", "numbers"))? as i32),
                self.number(event + 12)? as i32,
                self.number(event + 8)? as i32,
                self.word(event)?,
            ));
        }
        Some(out)
    }

    fn list(&self, head: u64, out: &mut Vec<(u32, Vec<u8>)>) -> Option<()> {
        let mut at = self.word(head)?;
        while at != head {
            (out.len() < MANY).then_some(())?;
            let message = at.checked_sub(self.at(0, "msg_msg", "m_list"))?;
            let priority = self.word(self.at(message, "msg_msg", "m_type"))? as u32;
            let length = self.word(self.at(message, "msg_msg", "m_ts"))?;
            out.push((priority, self.text(message, length)?));
            at = self.word(at)?;
        }
        Some(())
    }

    /// A message fills the rest of its first page, and further ones.
    fn text(&self, message: u64, length: u64) -> Option<Vec<u8>> {
        (length <= 1 << 24).then_some(())?;
        let mut text = vec![0; length as usize];
        let (mut from, mut room) = (message + HEAD, PAGE - HEAD);
        let mut next = self.word(self.at(message, "msg_msg", "next"))?;
        let mut done = 0;
        while done < text.len() {
            let end = text.len().min(done + room as usize);
            self.reader.read(from, &mut text[done..end]).ok()?;
            done = end;
            if done < text.len() {
                (from, room) = (next + SEGMENT, PAGE - SEGMENT);
                next = self.word(next)?;
            }
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mqueue::{Shape, create, open, send, unlink};
    use std::os::fd::AsFd;

    #[test]
    fn messages_are_seen_and_stay() {
        let Some(peek) = Peek::get() else { return };
        let name = format!("freeze-peek-{}", std::process::id()).into_bytes();
        let shape = Shape {
            messages: 5,
            size: 8192,
        };
        let own = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let Ok(fd) = create(&name, own, shape) else { return };
        let long: Vec<u8> = (0..8000u32).map(|n| n as u8).collect();
        for (priority, text) in [(1, &b"first"[..]), (7, b"urgent"), (1, &long), (0, b"")] {
            send(fd.as_fd(), text, priority).unwrap();
        }
        let expected = vec![
            (7, b"urgent".to_vec()),
            (1, b"first".to_vec()),
            (1, long),
            (0, Vec::new()),
        ];
        let again = open(&name, libc::O_RDONLY).unwrap();
        for fd in [&fd, &again] {
            let seen = peek.queue(fd.as_fd());
            assert_eq!(seen.map(|q| q.messages).as_ref(), Some(&expected));
        }
        unlink(&name).unwrap();
    }
}

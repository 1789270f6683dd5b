//! Records of the kernel programs, taken out of the ring's bytes, and the events made of them.

use crate::ids::Pid;
use freeze_common::{Exec, Exit, Fd, Fork, Head, Task, kind};
use serde::Serialize;
use zerocopy::FromBytes;

/// One record, as the kernel programs wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Fork(Fork),
    Exec(Exec),
    Exit(Exit),
    Freed(Head),
    Rename(Exec),
    Ids(Head),
    Fd(Fd),
    Table(Head),
    Task(Task),
}

impl Record {
    /// Takes the record at the beginning of `bytes` and says how long it is; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<(Record, usize)> {
        fn take<T: FromBytes>(bytes: &[u8], make: impl Fn(T) -> Record) -> Option<(Record, usize)> {
            T::read_from_prefix(bytes)
                .ok()
                .map(|(record, _)| (make(record), size_of::<T>()))
        }
        match u32::from_ne_bytes(*bytes.first_chunk()?) {
            kind::FORK => take(bytes, Record::Fork),
            kind::EXEC => take(bytes, Record::Exec),
            kind::EXIT => take(bytes, Record::Exit),
            kind::FREED => take(bytes, Record::Freed),
            kind::RENAME => take(bytes, Record::Rename),
            kind::IDS => take(bytes, Record::Ids),
            kind::FD => take(bytes, Record::Fd),
            kind::TABLE => take(bytes, Record::Table),
            kind::TASK => take(bytes, Record::Task),
            _ => None,
        }
    }

    /// All records in what an iterator wrote.
    pub fn parse_all(mut bytes: &[u8]) -> Vec<Record> {
        let mut out = Vec::new();
        while let Some((record, length)) = Record::parse(bytes) {
            out.push(record);
            bytes = &bytes[length..];
        }
        out
    }
}

/// How an fd came to be what it is, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Opened,
    Duplicated,
    Closed,
    Received,
    /// One end of a new pipe.
    Pipe,
    /// A new socket, accepted ones too.
    Socket,
}

impl How {
    /// By the system call (x86-64 numbers) and whether the fd is open after it.
    pub fn of(call: u32, open: bool) -> How {
        match call {
            _ if !open => How::Closed,
            32 | 33 | 72 | 292 | 438 => How::Duplicated,
            22 | 293 => How::Pipe,
            41 | 43 | 53 | 288 => How::Socket,
            47 => How::Received,
            _ => How::Opened,
        }
    }
}

/// What happened to a watched process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Forked {
        parent: Pid,
        child: Pid,
    },
    Thread {
        pid: Pid,
        tid: Pid,
    },
    Executed {
        pid: Pid,
        comm: String,
    },
    /// Its last thread ended. Neither code nor signal: it ended while records were lost.
    Death {
        pid: Pid,
        code: Option<i32>,
        signal: Option<i32>,
        watched_root: Pid,
    },
    Fd {
        pid: Pid,
        fd: i32,
        how: How,
    },
    /// Records were lost, so everything was read anew.
    Resynced {
        lost: u64,
    },
}

impl Event {
    /// Whether it is a death that nobody ordered: by a signal, or with a code other than 0.
    pub fn is_abnormal_death(&self) -> bool {
        match self {
            Event::Death { code, signal, .. } => signal.is_some() || code.is_some_and(|c| c != 0),
            _ => false,
        }
    }
}

/// Exit code and signal in a wait status.
pub fn status(status: u32) -> (Option<i32>, Option<i32>) {
    match status & 0x7f {
        0 => (Some((status >> 8 & 0xff) as i32), None),
        signal => (None, Some(signal as i32)),
    }
}

/// A thread's name up to its NUL.
pub fn comm(bytes: &[u8; 16]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_only_whole() {
        let mut bytes = [0u8; 40];
        bytes[..4].copy_from_slice(&kind::EXEC.to_ne_bytes());
        bytes[4..8].copy_from_slice(&42u32.to_ne_bytes());
        bytes[24..28].copy_from_slice(b"cat\0");
        let (record, length) = Record::parse(&bytes).unwrap();
        let Record::Exec(exec) = record else {
            panic!("{record:?}")
        };
        assert_eq!(
            (exec.head.tgid, comm(&exec.comm).as_str(), length),
            (42, "cat", 40)
        );
        assert_eq!(Record::parse(&bytes[..39]), None);
        assert_eq!(Record::parse(&[0xff; 64]), None);
        assert_eq!(Record::parse_all(&[bytes, bytes].concat()).len(), 2);
    }

    #[test]
    fn a_wait_status_is_a_code_or_a_signal() {
        assert_eq!(status(3 << 8), (Some(3), None));
        assert_eq!(status(9), (None, Some(9)));
        assert_eq!(status(11 | 0x80), (None, Some(11)));
    }
}

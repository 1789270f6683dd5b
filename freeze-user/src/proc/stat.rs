//! `/proc/PID/stat`: state, family and the address-space fields.

use crate::ids::Pid;

/// The fields of `/proc/PID/stat` that freeze reads (numbers as in proc_pid_stat(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    pub comm: Vec<u8>,
    pub state: char,
    pub ppid: i32,
    pub pgrp: i32,
    pub session: i32,
    pub tty_nr: i32,
    pub tpgid: i32,
    pub flags: u64,
    pub nice: i64,
    pub threads: i64,
    pub start_time: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub exit_signal: i32,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub exit_code: i32,
}

/// `PF_KTHREAD` of the flags field: a kernel thread.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_IO_WORKER` of it: a thread that the kernel has made in a process, to work for its io_uring instances.
const PF_IO_WORKER: u64 = 0x10;
/// `PF_EXITING` of it.
const PF_EXITING: u64 = 0x4;

impl Stat {
    /// Parses the one line of `/proc/PID/stat`; the command may hold any byte, `)` and newline included.
    pub fn parse(text: &[u8]) -> Option<Stat> {
        let open = text.iter().position(|&b| b == b'(')?;
        let close = text.iter().rposition(|&b| b == b')')?;
        let pid = std::str::from_utf8(text.get(..open)?).ok()?.trim().parse().ok()?;
        let comm = text.get(open + 1..close)?.to_vec();
        let rest: Vec<&str> = std::str::from_utf8(text.get(close + 1..)?)
            .ok()?
            .split_ascii_whitespace()
            .collect();
        // `rest[0]` is field 3 of the manual page.
        let field = |n: usize| rest.get(n - 3).copied();
        let int = |n: usize| field(n)?.parse::<i64>().ok();
        let addr = |n: usize| field(n)?.parse::<u64>().ok();
        Some(Stat {
            pid,
            comm,
            state: field(3)?.chars().next()?,
            ppid: int(4)? as i32,
            pgrp: int(5)? as i32,
            session: int(6)? as i32,
            tty_nr: int(7)? as i32,
            tpgid: int(8)? as i32,
            flags: addr(9)?,
            nice: int(19)?,
            threads: int(20)?,
            start_time: addr(22)?,
            start_code: addr(26)?,
            end_code: addr(27)?,
            start_stack: addr(28)?,
            exit_signal: int(38)? as i32,
            start_data: addr(45)?,
            end_data: addr(46)?,
            start_brk: addr(47)?,
            arg_start: addr(48)?,
            arg_end: addr(49)?,
            env_start: addr(50)?,
            env_end: addr(51)?,
            exit_code: int(52)? as i32,
        })
    }

    /// Whether this is a kernel thread.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Whether this thread is the kernel's, and works for io_uring: it comes and goes, and cannot be traced.
    pub fn is_io_worker(&self) -> bool {
        self.flags & PF_IO_WORKER != 0
    }

    /// Whether it is on its way out: part of what it had is gone already.
    pub fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0
    }

    /// Whether it has ended and waits for its parent.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Whether all of its process has ended: the first thread may, while others go on.
    pub fn is_dead(&self) -> bool {
        self.is_zombie() && self.threads <= 1
    }

    /// Its id as a type.
    pub fn pid(&self) -> Pid {
        Pid(self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"42 (a) (b c) S 1 42 42 0 -1 4194304 96 0 0 0 0 0 0 0 20 5 1 0 4021 2514944 224 18446744073709551615 94 95 96 0 0 0 0 4096 65538 0 0 0 17 0 0 0 0 0 0 45 46 47 48 49 50 51 9";

    #[test]
    fn a_command_may_hold_parentheses() {
        let s = Stat::parse(LINE).unwrap();
        assert_eq!(
            (s.pid, s.comm.as_slice(), s.state, s.ppid, s.nice),
            (42, b"a) (b c".as_slice(), 'S', 1, 5)
        );
        assert_eq!(
            (s.start_code, s.start_stack, s.start_data, s.env_end, s.exit_code),
            (94, 96, 45, 51, 9)
        );
    }

    #[test]
    fn nothing_cut_short_parses_or_panics() {
        for n in 0..LINE.len() {
            let _ = Stat::parse(&LINE[..n]);
        }
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b")("), None);
    }
}

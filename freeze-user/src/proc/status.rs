//! `/proc/PID/status`: credentials, masks, limits of sharing.

/// The lines of `/proc/PID/status` that freeze reads; all masks as bit sets (bit n-1 = signal or capability n).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub umask: Option<u32>,
    pub tgid: i32,
    pub tracer: i32,
    /// real, effective, saved, file system
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    /// The ids in every pid namespace from freeze's down to the process's own.
    pub ns_pid: Vec<i32>,
    /// The same of its process.
    pub ns_tgid: Vec<i32>,
    pub ns_pgid: Vec<i32>,
    pub ns_sid: Vec<i32>,
    pub anon_kib: u64,
    pub swap_kib: u64,
    pub threads: u32,
    pub shd_pnd: u64,
    pub sig_pnd: u64,
    pub sig_blk: u64,
    pub sig_ign: u64,
    pub sig_cgt: u64,
    pub cap_inh: u64,
    pub cap_prm: u64,
    pub cap_eff: u64,
    pub cap_bnd: u64,
    pub cap_amb: u64,
    pub no_new_privs: bool,
    pub seccomp: u32,
    /// `x86_Thread_features: shstk wrss`: empty where shadow stacks are off or unknown.
    pub thread_features: String,
}

/// Signals that end nothing by default: SIGCHLD, SIGCONT, SIGURG, SIGWINCH, and those that stop (signal(7)).
const NOT_FATAL: [u32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];

impl Status {
    /// Whether a signal is about to end the process: pending, and neither blocked, ignored nor handled.
    pub fn is_doomed(&self) -> bool {
        let acts = (self.sig_pnd | self.shd_pnd) & !(self.sig_blk | self.sig_ign | self.sig_cgt);
        NOT_FATAL.iter().fold(acts, |left, n| left & !(1 << (n - 1))) != 0
    }

    /// Parses the whole file; unknown lines are passed over.
    ///
    /// By bytes, since the name of a process need not be text.
    pub fn parse(text: impl AsRef<[u8]>) -> Option<Status> {
        let mut s = Status::default();
        let mut seen_tgid = false;
        for line in text.as_ref().split(|b| *b == b'\n') {
            let Some(at) = line.iter().position(|b| *b == b':') else {
                continue;
            };
            let Ok(value) = std::str::from_utf8(&line[at + 1..]) else {
                continue;
            };
            let value = value.trim();
            match &line[..at] {
                b"Umask" => s.umask = Some(u32::from_str_radix(value, 8).ok()?),
                b"Tgid" => {
                    s.tgid = value.parse().ok()?;
                    seen_tgid = true;
                }
                b"TracerPid" => s.tracer = value.parse().ok()?,
                b"Uid" => s.uid = four(value)?,
                b"Gid" => s.gid = four(value)?,
                b"Groups" => s.groups = list(value)?,
                b"NStgid" => s.ns_tgid = list(value)?,
                b"NSpid" => s.ns_pid = list(value)?,
                b"NSpgid" => s.ns_pgid = list(value)?,
                b"NSsid" => s.ns_sid = list(value)?,
                b"RssAnon" => s.anon_kib = kib(value)?,
                b"VmSwap" => s.swap_kib = kib(value)?,
                b"Threads" => s.threads = value.parse().ok()?,
                b"ShdPnd" => s.shd_pnd = hex(value)?,
                b"SigPnd" => s.sig_pnd = hex(value)?,
                b"SigBlk" => s.sig_blk = hex(value)?,
                b"SigIgn" => s.sig_ign = hex(value)?,
                b"SigCgt" => s.sig_cgt = hex(value)?,
                b"CapInh" => s.cap_inh = hex(value)?,
                b"CapPrm" => s.cap_prm = hex(value)?,
                b"CapEff" => s.cap_eff = hex(value)?,
                b"CapBnd" => s.cap_bnd = hex(value)?,
                b"CapAmb" => s.cap_amb = hex(value)?,
                b"NoNewPrivs" => s.no_new_privs = value == "1",
                b"Seccomp" => s.seccomp = value.parse().ok()?,
                b"x86_Thread_features" => s.thread_features = value.to_owned(),
                _ => {}
            }
        }
        seen_tgid.then_some(s)
    }
}

fn hex(s: &str) -> Option<u64> {
    u64::from_str_radix(s, 16).ok()
}

fn kib(s: &str) -> Option<u64> {
    s.split_ascii_whitespace().next()?.parse().ok()
}

fn list<T: std::str::FromStr>(s: &str) -> Option<Vec<T>> {
    s.split_ascii_whitespace().map(|w| w.parse().ok()).collect()
}

fn four(s: &str) -> Option<[u32; 4]> {
    list(s)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_kernel_writes() {
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let s = Status::parse(&own).unwrap();
        assert_eq!(s.tgid, std::process::id() as i32);
        assert!(s.umask.is_some() && s.threads >= 1);
    }

    #[test]
    fn a_damaged_line_is_no_status() {
        assert_eq!(Status::parse("Tgid:\t1\nUid:\t0\t0\t0\n"), None);
        assert_eq!(Status::parse("Name:\tx\n"), None);
        assert_eq!(
            Status::parse("Tgid:\t7\nGroups:\t1 2 3 \nSigBlk:\t0000000000000102\n")
                .unwrap()
                .groups,
            [1, 2, 3]
        );
    }
}

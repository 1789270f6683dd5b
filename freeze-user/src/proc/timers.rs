//! `/proc/PID/timers`: the POSIX timers of a process.

/// One timer as shown there (timer_create(2), proc_pid_timers(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub id: i32,
    /// Signal number; 0 for SIGEV_NONE.
    pub signal: i32,
    /// The value delivered with the signal (`sigval`), as a number.
    pub value: u64,
    /// `signal`, `none` or `thread`, before the slash.
    pub notify: String,
    /// The thread for SIGEV_THREAD_ID (`tid.N`), else the process (`pid.N`).
    pub target: i32,
    /// Whether the target is a thread (`tid.`).
    pub to_thread: bool,
    pub clock: i32,
}

/// Parses the whole file; an empty one is no timers.
pub fn parse(text: &str) -> Option<Vec<Timer>> {
    let mut out: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        match key {
            "ID" => out.push(Timer {
                id: value.parse().ok()?,
                signal: 0,
                value: 0,
                notify: String::new(),
                target: 0,
                to_thread: false,
                clock: 0,
            }),
            "signal" => {
                let (signal, sigval) = value.split_once('/')?;
                let t = out.last_mut()?;
                t.signal = signal.parse().ok()?;
                // %px prints no 0x, %p of older kernels does, and a null pointer is "(null)" there.
                t.value = match sigval.trim_start_matches("0x") {
                    "(null)" => 0,
                    s => u64::from_str_radix(s, 16).ok()?,
                };
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (what, id) = whom.split_once('.')?;
                let t = out.last_mut()?;
                t.notify = how.to_owned();
                t.to_thread = what == "tid";
                t.target = id.parse().ok()?;
            }
            "ClockID" => out.last_mut()?.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_two_timers() {
        let t = parse("ID: 1\nsignal: 34/00007ffe1234\nnotify: signal/tid.77\nClockID: 1\nID: 0\nsignal: 14/(null)\nnotify: signal/pid.5\nClockID: -6\n").unwrap();
        assert_eq!(
            (t[0].id, t[0].signal, t[0].value, t[0].to_thread, t[0].target),
            (1, 34, 0x7ffe1234, true, 77)
        );
        assert_eq!(
            (t[1].id, t[1].value, t[1].to_thread, t[1].clock),
            (0, 0, false, -6)
        );
        assert_eq!(parse(""), Some(vec![]));
        assert_eq!(parse("signal: 1/2\n"), None);
    }
}

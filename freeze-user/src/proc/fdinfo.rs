//! `/proc/PID/fdinfo/FD`: position, flags, locks and what each kind adds.

/// A line `lock:` of fdinfo, in the form of /proc/locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `POSIX`, `OFDLCK`, `FLOCK`, `LEASE` or `DELEG`.
    pub class: String,
    /// The second word: `ADVISORY`, `MANDATORY`, for leases `ACTIVE` and the like.
    pub mode: String,
    /// `READ` or `WRITE` (`UNLCK` for a lease being broken).
    pub kind: String,
    pub pid: i32,
    pub start: u64,
    /// Last byte covered; `None` for "to the end of the file".
    pub end: Option<u64>,
}

/// What every fdinfo has, the locks, and the rest as key and value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    pub pos: i64,
    /// `O_*` flags, with `O_CLOEXEC` for the fd's own close-on-exec flag.
    pub flags: i32,
    pub mnt_id: i64,
    pub ino: u64,
    pub locks: Vec<Lock>,
    /// All other lines, in order.
    pub rest: Vec<(String, String)>,
}

impl FdInfo {
    /// Parses the whole file.
    pub fn parse(text: &str) -> Option<FdInfo> {
        let mut out = FdInfo::default();
        let mut seen = false;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let (key, value) = (key.trim(), value.trim());
            match key {
                "pos" => out.pos = value.parse().ok()?,
                "flags" => {
                    out.flags = i32::from_str_radix(value, 8).ok()?;
                    seen = true;
                }
                "mnt_id" => out.mnt_id = value.parse().ok()?,
                "ino" => out.ino = value.parse().ok()?,
                "lock" => out.locks.push(lock(value)?),
                _ => out.rest.push((key.to_owned(), value.to_owned())),
            }
        }
        seen.then_some(out)
    }

    /// The first value under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.rest.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values under `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.rest
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }
}

/// `1: FLOCK  ADVISORY  WRITE 25 fe:00:123 0 EOF`.
fn lock(value: &str) -> Option<Lock> {
    let w: Vec<&str> = value.split_ascii_whitespace().collect();
    // A blocked lock carries an arrow (`1: -> POSIX …`), which fdinfo does not show but /proc/locks does.
    let w = w.get(1..)?;
    Some(Lock {
        class: (*w.first()?).to_owned(),
        mode: (*w.get(1)?).to_owned(),
        kind: (*w.get(2)?).to_owned(),
        pid: w.get(3)?.parse().ok()?,
        start: w.get(5)?.parse().ok()?,
        end: match *w.get(6)? {
            "EOF" => None,
            n => Some(n.parse().ok()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_locks_and_the_rest() {
        let i = FdInfo::parse(
            "pos:\t17\nflags:\t02100002\nmnt_id:\t29\nino:\t5\nlock:\t1: POSIX  ADVISORY  WRITE 25 fe:00:123 10 19\nlock:\t2: FLOCK  ADVISORY  READ 25 fe:00:123 0 EOF\neventfd-count:                2\n",
        )
        .unwrap();
        assert_eq!((i.pos, i.flags, i.mnt_id), (17, 0o2100002, 29));
        assert_eq!(
            (i.locks[0].start, i.locks[0].end, i.locks[1].end),
            (10, Some(19), None)
        );
        assert_eq!(i.get("eventfd-count"), Some("2"));
    }

    #[test]
    fn damage_is_no_info() {
        assert_eq!(FdInfo::parse("pos:\tx\n"), None);
        assert_eq!(FdInfo::parse("flags:\t0\nlock:\t1: POSIX\n"), None);
        assert_eq!(FdInfo::parse(""), None);
    }
}

//! Options of a mount, as mountinfo names them and as the calls take them.

/// Option, flag of mount(2), attribute of mount_setattr(2).
const OPTIONS: [(&str, u64, u64); 8] = [
    ("ro", libc::MS_RDONLY, READ_ONLY),
    ("nosuid", libc::MS_NOSUID, 2),
    ("nodev", libc::MS_NODEV, 4),
    ("noexec", libc::MS_NOEXEC, 8),
    ("noatime", libc::MS_NOATIME, 0x10),
    ("nodiratime", libc::MS_NODIRATIME, 0x80),
    ("relatime", libc::MS_RELATIME, 0),
    ("nosymfollow", 256, 0x20_0000),
];
const STRICTATIME: u64 = 0x20;
pub(super) const READ_ONLY: u64 = 1;
pub(super) const ALL_ATTRIBUTES: u64 = 0x0f | 0x70 | 0x80 | 0x20_0000;

pub(super) fn flags(options: &str) -> u64 {
    let has = |name: &str| options.split(',').any(|o| o == name);
    let flags = OPTIONS
        .iter()
        .filter(|(name, ..)| has(name))
        .map(|(_, flag, _)| flag);
    let strict = if has("noatime") || has("relatime") {
        0
    } else {
        libc::MS_STRICTATIME
    };
    flags.sum::<u64>() | strict
}

pub(super) fn attributes(options: &str) -> u64 {
    let has = |name: &str| options.split(',').any(|o| o == name);
    let set = OPTIONS
        .iter()
        .filter(|(name, ..)| has(name))
        .map(|(.., attr)| attr);
    let strict = if has("noatime") || has("relatime") {
        0
    } else {
        STRICTATIME
    };
    set.sum::<u64>() | strict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags() {
        assert_eq!(attributes("rw,relatime"), 0);
        assert_eq!(attributes("ro,nosuid,noatime"), 1 | 2 | 0x10);
        assert_eq!(flags("rw,nodev"), libc::MS_NODEV | libc::MS_STRICTATIME);
    }
}

//! `/proc/PID/maps` and `/proc/PID/smaps`: every vma with range, protection, file and flags.

use crate::ids::Range;
use std::sync::Arc;

/// The two-letter `VmFlags` of smaps, in the kernel's order. Most vmas have one of a few sets, which they share.
pub type Letters = Arc<[[u8; 2]]>;

/// One vma as `/proc/PID/maps` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    pub read: bool,
    pub write: bool,
    pub exec: bool,
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    pub dev: (u32, u32),
    pub inode: u64,
    /// The last column: a path (with the kernel's escapes undone), `[heap]`, or empty.
    pub name: Vec<u8>,
    /// Empty if only maps was read.
    pub flags: Letters,
    /// Bytes per page of its page table (`KernelPageSize` of smaps); 0 if only maps was read.
    pub page: u64,
    /// `ProtectionKey` of smaps; 0 where there is none.
    pub key: u8,
}

impl Vma {
    /// Its address range.
    pub fn range(&self) -> Range {
        Range::new(self.start, self.end)
    }

    /// Whether smaps showed the flag `two`, such as `gd` or `dc`.
    pub fn has(&self, two: &[u8; 2]) -> bool {
        self.flags.contains(two)
    }

    /// `PROT_*` bits of its protection.
    pub fn prot(&self) -> i32 {
        let bit = |on, b| if on { b } else { 0 };
        bit(self.read, libc::PROT_READ) | bit(self.write, libc::PROT_WRITE) | bit(self.exec, libc::PROT_EXEC)
    }

    /// Whether a file (of any kind) backs it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.dev != (0, 0)
    }

    /// Its name for people.
    pub fn label(&self) -> String {
        match self.name.is_empty() {
            true => "anonymous memory".to_owned(),
            false => String::from_utf8_lossy(&self.name).into_owned(),
        }
    }
}

/// Parses `maps`; a line without the documented form makes the whole file `None`.
pub fn parse_maps(text: &[u8]) -> Option<Vec<Vma>> {
    lines(text).map(parse_line).collect()
}

/// Parses `smaps`, of which the header lines and `VmFlags` are kept.
pub fn parse_smaps(text: &[u8]) -> Option<Vec<Vma>> {
    let mut out: Vec<Vma> = Vec::new();
    for line in lines(text) {
        // A header starts with a hexadecimal digit, lower case; every other line with a capital letter.
        if line
            .first()
            .is_some_and(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        {
            out.push(parse_line(line)?);
        } else if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let last = out.last_mut()?;
            let letters = flags.split(|&b| b == b' ');
            last.flags = letters.filter_map(|w| w.try_into().ok()).collect();
        } else if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
            out.last_mut()?.page = number(size)? << 10;
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            out.last_mut()?.key = number(key)? as u8;
        }
    }
    Some(out)
}

/// The first word of the rest of a line.
fn number(rest: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(rest).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|l| !l.is_empty())
}

fn parse_line(line: &[u8]) -> Option<Vma> {
    let mut at = 0;
    let mut word = || {
        while line.get(at) == Some(&b' ') {
            at += 1;
        }
        let from = at;
        while at < line.len() && line[at] != b' ' {
            at += 1;
        }
        (from < at)
            .then_some(())
            .and_then(|()| std::str::from_utf8(&line[from..at]).ok())
    };
    let (start, end) = word()?.split_once('-')?;
    let perms = word()?.as_bytes();
    let offset = word()?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?;
    while line.get(at) == Some(&b' ') {
        at += 1;
    }
    let (start, end) = (
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    );
    if perms.len() != 4 || start >= end {
        return None;
    }
    Some(Vma {
        start,
        end,
        read: perms[0] == b'r',
        write: perms[1] == b'w',
        exec: perms[2] == b'x',
        shared: perms[3] == b's',
        offset: u64::from_str_radix(offset, 16).ok()?,
        dev: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        inode: inode.parse().ok()?,
        name: unescape(&line[at..]),
        flags: Letters::default(),
        page: 0,
        key: 0,
    })
}

/// Undoes the escape of a newline, the only byte of a name that is written as another here (`seq_file_path(m, file, "\n")`).
fn unescape(s: &[u8]) -> Vec<u8> {
    const NEWLINE: &[u8] = b"\\012";
    let mut out = Vec::with_capacity(s.len());
    let mut rest = s;
    while let [first, others @ ..] = rest {
        rest = match rest.strip_prefix(NEWLINE) {
            Some(others) => {
                out.push(b'\n');
                others
            }
            None => {
                out.push(*first);
                others
            }
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_blanks_and_newlines() {
        let text =
            b"5500-5600 rw-s 00001000 fe:01 123  /tmp/a\\040b\\012c (deleted)\n7f00-7f10 ---p 00000000 00:00 0\n";
        let v = parse_maps(text).unwrap();
        assert_eq!(v[0].name, b"/tmp/a\\040b\nc (deleted)");
        assert_eq!(
            (v[0].dev, v[0].inode, v[0].shared, v[0].offset),
            ((0xfe, 1), 123, true, 0x1000)
        );
        assert_eq!((v[1].prot(), v[1].name.len(), v[1].has_file()), (0, 0, false));
    }

    #[test]
    fn own_smaps_and_maps_agree() {
        let maps = parse_maps(&std::fs::read("/proc/thread-self/maps").unwrap()).unwrap();
        let smaps = parse_smaps(&std::fs::read("/proc/thread-self/smaps").unwrap()).unwrap();
        let stack = smaps.iter().find(|v| v.name == b"[stack]").unwrap();
        assert!(stack.has(b"gd") && stack.has(b"rd"));
        assert!(maps.iter().any(|v| v.name == b"[vdso]"));
    }

    #[test]
    fn no_damage_panics() {
        let text = b"5500-5600 rw-s 00001000 fe:01 123  /tmp/a\nVmFlags: rd wr\n";
        for n in 0..text.len() {
            let _ = parse_maps(&text[..n]);
            let _ = parse_smaps(&text[..n]);
        }
    }
}

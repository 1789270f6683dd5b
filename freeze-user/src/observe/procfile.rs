//! Reading files of /proc in few calls.

use crate::error::{Context, Result};
use std::fs::File;
use std::io::Read;

/// Reads a file of /proc that mostly fits a page: in one call then, of which a process of many threads takes thousands.
pub(super) fn read_small(path: &str) -> Result<Vec<u8>> {
    let mut file = File::open(path).on("open", || path)?;
    let mut text = vec![0; 4096];
    let n = file.read(&mut text).on("read", || path)?;
    text.truncate(n);
    if n == 4096 {
        file.read_to_end(&mut text).on("read", || path)?;
    }
    Ok(text)
}

/// Reads one of any length in as few calls as the kernel allows, which hands out a page or so at a time.
pub(super) fn read_long(path: &str) -> Result<Vec<u8>> {
    const ROOM: usize = 32 * 1024;
    let mut file = File::open(path).on("open", || path)?;
    let mut text = Vec::new();
    let mut len = 0;
    loop {
        text.resize(len + ROOM, 0);
        match file.read(&mut text[len..]).on("read", || path)? {
            0 => break,
            n => len += n,
        }
    }
    text.truncate(len);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_file_is_read_however_long() {
        // Its own mappings are more than the kernel hands out at a time.
        let path = "/proc/self/smaps";
        let text = read_long(path).unwrap();
        assert!(text.len() > 4096 && text.ends_with(b"\n"));
        let lines = |t: &[u8]| t.iter().filter(|b| **b == b'\n').count();
        assert_eq!(
            lines(&read_small("/proc/self/status").unwrap()),
            lines(&std::fs::read("/proc/self/status").unwrap())
        );
    }
}

//! Reading files of /proc in few calls.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a file of /proc that is one record and mostly fits a page: in one call then, of which a process of many threads
/// takes thousands.
pub fn read_record(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut text = vec![0; 4096];
    let n = file.read(&mut text)?;
    text.truncate(n);
    if n == 4096 {
        file.read_to_end(&mut text)?;
    }
    Ok(text)
}

/// Reads one of any length in as few calls as the kernel allows, which hands out a page or so at a time.
pub fn read_all(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    const ROOM: usize = 32 * 1024;
    let mut file = File::open(path)?;
    let mut text = Vec::new();
    let mut len = 0;
    loop {
        text.resize(len + ROOM, 0);
        match file.read(&mut text[len..])? {
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
        let text = read_all(path).unwrap();
        assert!(text.len() > 4096 && text.ends_with(b"\n"));
        let lines = |t: &[u8]| t.iter().filter(|b| **b == b'\n').count();
        assert_eq!(
            lines(&read_record("/proc/self/status").unwrap()),
            lines(&std::fs::read("/proc/self/status").unwrap())
        );
    }
}

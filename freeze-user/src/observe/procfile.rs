//! Reading files of /proc in few calls.

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Room for what is read, kept by each thread: new memory for each of thousands of small files costs more than reading
/// them.
const ROOM: usize = 32 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads a file of /proc that is one record and mostly fits a page: in one call then, of which a process of many threads
/// takes thousands.
pub fn read_record(path: &str) -> io::Result<Vec<u8>> {
    read_record_of(File::open(path)?)
}

/// The same of one that is open.
pub fn read_record_of(file: File) -> io::Result<Vec<u8>> {
    read(file, |n| n < 4096)
}

/// The same of one below a directory that is open: of thousands it is the longer way that takes the time.
pub fn read_record_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let file = nix::fcntl::openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    read_record_of(file.into())
}

/// Reads one of any length in as few calls as the kernel allows, which hands out a page or so at a time.
pub fn read_all(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read(File::open(path)?, |n| n == 0)
}

/// Reads until a call brought so little that it was the `last`.
fn read(mut file: File, last: impl Fn(usize) -> bool) -> io::Result<Vec<u8>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut len = 0;
        loop {
            if buffer.len() < len + ROOM {
                buffer.resize(len + ROOM, 0);
            }
            let n = file.read(&mut buffer[len..])?;
            len += n;
            if n == 0 || last(n) {
                break;
            }
        }
        let text = buffer[..len].to_vec();
        if buffer.len() > 32 * ROOM {
            // That was an unusually long one.
            *buffer = Vec::new();
        }
        Ok(text)
    })
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

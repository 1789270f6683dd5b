//! `/proc/sysvipc`: the System V objects of an IPC namespace, a line each.

/// What every object has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    pub key: i32,
    pub id: i32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
}

/// A queue: `msg`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub object: Object,
    /// Bytes and messages in it.
    pub bytes: u64,
    pub count: usize,
    /// Who sent and who received last.
    pub sender: i32,
    pub receiver: i32,
}

/// A segment: `shm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub object: Object,
    pub size: u64,
    /// Who made it, and who attached or detached it last.
    pub creator: i32,
    pub last: i32,
    pub attached: u64,
}

/// The numbers of every line after the first; the permissions are octal.
fn lines(text: &str) -> Option<Vec<Vec<i64>>> {
    let line = |l: &str| {
        l.split_ascii_whitespace()
            .enumerate()
            .map(|(i, word)| match i {
                2 => i64::from_str_radix(word, 8).ok(),
                _ => word.parse().ok(),
            })
            .collect::<Option<Vec<i64>>>()
    };
    text.lines().skip(1).map(line).collect()
}

/// The object of a line whose four ids begin with word `ids`.
fn object(line: &[i64], ids: usize) -> Option<Object> {
    let id = |i: usize| line.get(ids + i).map(|n| *n as u32);
    Some(Object {
        key: *line.first()? as i32,
        id: *line.get(1)? as i32,
        mode: *line.get(2)? as u32,
        uid: id(0)?,
        gid: id(1)?,
        cuid: id(2)?,
        cgid: id(3)?,
    })
}

/// Sets of semaphores.
pub fn sets(text: &str) -> Option<Vec<Object>> {
    lines(text)?.iter().map(|l| object(l, 4)).collect()
}

/// Message queues.
pub fn queues(text: &str) -> Option<Vec<Queue>> {
    let queue = |l: &Vec<i64>| {
        Some(Queue {
            object: object(l, 7)?,
            bytes: *l.get(3)? as u64,
            count: *l.get(4)? as usize,
            sender: *l.get(5)? as i32,
            receiver: *l.get(6)? as i32,
        })
    };
    lines(text)?.iter().map(queue).collect()
}

/// Shared memory segments.
pub fn segments(text: &str) -> Option<Vec<Segment>> {
    let segment = |l: &Vec<i64>| {
        Some(Segment {
            object: object(l, 7)?,
            size: *l.get(3)? as u64,
            creator: *l.get(4)? as i32,
            last: *l.get(5)? as i32,
            attached: *l.get(6)? as u64,
        })
    };
    lines(text)?.iter().map(segment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n\
            -559038737          3   640          12          2    55    66     1     2     3     4          0          0 1795603434\n";
        let q = queues(text).unwrap();
        assert_eq!(
            (q[0].count, q[0].bytes, q[0].sender, q[0].receiver),
            (2, 12, 55, 66)
        );
        let o = q[0].object;
        assert_eq!((o.key, o.id, o.mode), (0xdeadbeef_u32 as i32, 3, 0o640));
        assert_eq!((o.uid, o.gid, o.cuid, o.cgid), (1, 2, 3, 4));
        assert_eq!(queues("x\nbad line\n"), None);
        assert_eq!(sets("only a title\n"), Some(vec![]));
    }
}

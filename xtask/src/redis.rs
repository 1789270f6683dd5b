//! A client for redis, just large enough to fill a server and to compare what it holds.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How many keys go over the wire at once.
const BATCH: u64 = 1000;

/// One connection.
#[derive(Debug)]
pub(crate) struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Connects to a server that may be just starting.
    pub(crate) fn connect(port: u16, deadline: Instant) -> Result<Redis> {
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
                    return Ok(Redis {
                        stream: BufReader::new(stream),
                    });
                }
                Err(e) if Instant::now() > deadline => {
                    return Err(e).with_context(|| format!("redis on port {port}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Sets the keys 0 to `keys`.
    pub(crate) fn fill(&mut self, keys: u64) -> Result<()> {
        for first in (0..keys).step_by(BATCH as usize) {
            let batch = first..(first + BATCH).min(keys);
            let mut words = vec!["MSET".to_string()];
            words.extend(batch.flat_map(|n| [key(n), value(n)]));
            self.ask(&words)?;
        }
        Ok(())
    }

    /// Lets a server that was started with its debug commands make `count` keys with values of `size` bytes by itself.
    pub(crate) fn populate(&mut self, count: u64, size: u64) -> Result<()> {
        let (count, size) = (count.to_string(), size.to_string());
        self.ask(&["DEBUG", "POPULATE", &count, "key", &size]).map(drop)
    }

    /// Overwrites one of these with `size` bytes.
    pub(crate) fn set(&mut self, n: u64, size: u64) -> Result<()> {
        let name = key(n);
        let value = value(n).repeat(size.div_ceil(64) as usize);
        self.ask(&["SET", &name, &value[..size as usize]]).map(drop)
    }

    /// Compares every value with what [`Redis::fill`] has put there.
    pub(crate) fn compare(&mut self, keys: u64) -> Result<()> {
        let size = self.ask(&["DBSIZE"])?;
        ensure!(
            size == [keys.to_string()],
            "redis holds {size:?} keys, not {keys}"
        );
        for first in (0..keys).step_by(BATCH as usize) {
            let batch = first..(first + BATCH).min(keys);
            let mut words = vec!["MGET".to_string()];
            words.extend(batch.clone().map(key));
            let values = self.ask(&words)?;
            ensure!(
                values.len() as u64 == batch.end - batch.start,
                "redis answered {} of {BATCH} keys",
                values.len()
            );
            for (n, found) in batch.zip(values) {
                ensure!(
                    found == value(n),
                    "redis: {} is {found:?}, not {:?}",
                    key(n),
                    value(n)
                );
            }
        }
        Ok(())
    }

    /// Sets a key that was not there, reads it, and removes it.
    pub(crate) fn write_and_read_back(&mut self) -> Result<()> {
        self.ask(&["SET", "new", "value"])?;
        let found = self.ask(&["GET", "new"])?;
        ensure!(
            found == ["value"],
            "redis: a new key was set, and reads {found:?}"
        );
        self.ask(&["DEL", "new"])?;
        Ok(())
    }

    /// The number that a server draws when it starts: no other has the same.
    pub(crate) fn run_id(&mut self) -> Result<String> {
        let info = self.ask(&["INFO", "server"])?.concat();
        let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        id.map(str::to_string).context("redis: INFO has no run_id")
    }

    fn ask(&mut self, words: &[impl AsRef<str>]) -> Result<Vec<String>> {
        self.stream
            .get_mut()
            .write_all(&request(words))
            .context("redis")?;
        answer(&mut self.stream)
    }
}

fn key(n: u64) -> String {
    format!("key:{n}")
}

/// 64 characters that belong to `n` alone.
fn value(n: u64) -> String {
    let mix = |k: u64| {
        (n + k + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    (0..4).map(|k| format!("{:016x}", mix(k << 40))).collect()
}

/// A command on the wire: an array of strings, each with its length.
fn request(words: &[impl AsRef<str>]) -> Vec<u8> {
    let mut wire = format!("*{}\r\n", words.len());
    for word in words.iter().map(AsRef::as_ref) {
        wire += &format!("${}\r\n{word}\r\n", word.len());
    }
    wire.into_bytes()
}

/// One answer, arrays flattened; what is not there reads as the empty string.
fn answer(from: &mut impl BufRead) -> Result<Vec<String>> {
    let mut line = String::new();
    from.read_line(&mut line).context("redis")?;
    let line = line.trim_end();
    let Some((kind, rest)) = line.split_at_checked(1) else {
        bail!("redis hung up")
    };
    let length = || {
        rest.parse::<i64>()
            .with_context(|| format!("redis said {line:?}"))
    };
    match kind {
        "+" | ":" => Ok(vec![rest.to_string()]),
        "-" => bail!("redis: {rest}"),
        "$" => {
            let Ok(length) = usize::try_from(length()?) else {
                return Ok(vec![String::new()]);
            };
            let mut text = vec![0; length + 2];
            from.read_exact(&mut text).context("redis")?;
            text.truncate(length);
            Ok(vec![
                String::from_utf8(text).context("redis: a value that is no text")?,
            ])
        }
        "*" => {
            let mut all = Vec::new();
            for _ in 0..length()? {
                all.extend(answer(from)?);
            }
            Ok(all)
        }
        _ => bail!("redis said {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_is_read_and_written() {
        assert_eq!(
            request(&["GET", "é"]),
            "*2\r\n$3\r\nGET\r\n$2\r\né\r\n".as_bytes()
        );
        let read = |wire: &str| answer(&mut wire.as_bytes());
        assert_eq!(read("+OK\r\n").unwrap(), ["OK"]);
        assert_eq!(read("*3\r\n$1\r\na\r\n$-1\r\n:7\r\n").unwrap(), ["a", "", "7"]);
        for wrong in ["-ERR no\r\n", "", "$5\r\nab", "!x\r\n", "$x\r\n"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn values_differ() {
        let all: std::collections::BTreeSet<String> = (0..10_000).map(value).collect();
        assert_eq!(all.len(), 10_000);
        assert!(all.iter().all(|v| v.len() == 64));
    }
}

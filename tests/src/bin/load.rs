//! A program to be checkpointed by the bench: so much memory, so many pages written a second, and a thread that
//! reads the clock without a rest, so that it knows each pause it was made to take.
//!
//! It writes what it sees to a file, a line each, in nanoseconds of the real-time clock (a restore may give it
//! another monotonic one). The file is opened for each handful of lines and closed again: a checkpoint finds
//! nothing open.
//!
//! ```text
//! ready NOW              all memory is there
//! at NOW PAGES TURNS     so many pages written, and so many turns of the clock's loop, since the start
//! gap START LENGTH       between two readings of the clock, when it was longer than GAP
//! ```

use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// A gap shorter than this is a timer's interrupt, in nanoseconds.
const GAP: u64 = 20_000;

/// How often the number of pages written is told, and how soon a gap is, in nanoseconds.
const TELL: u64 = 100_000_000;
const TELL_GAP: u64 = 20_000_000;

/// Telling takes this long at most, in nanoseconds; when it took longer, somebody stopped us meanwhile.
const TELLING: u64 = 1_000_000;

/// How often a writing thread wakes up.
const TICK: Duration = Duration::from_millis(10);

/// What a writing thread makes up for at once, if it could not run for longer, as after a restore.
const CATCH_UP: Duration = Duration::from_millis(100);

/// What the command line asks for.
#[derive(Debug)]
struct Asked {
    /// Memory, in MiB.
    mib: usize,
    /// Pages written a second, over all threads.
    pages: f64,
    /// Threads that write.
    threads: usize,
    /// Leave huge pages allowed, as whoever started this has arranged them.
    thp: bool,
    report: PathBuf,
    /// It ends by itself after so many seconds, should it be forgotten.
    seconds: u64,
}

fn main() -> Result<()> {
    let asked = read_args(std::env::args().skip(1))?;
    if !asked.thp {
        nix::sys::prctl::set_thp_disable(true).context("prctl(PR_SET_THP_DISABLE)")?;
    }
    let memory = Arc::new(fill(asked.mib << 20));
    let written = Arc::new(AtomicU64::new(0));
    let pages = memory.len() / WORDS;
    let each = pages / asked.threads;
    ensure!(
        each > 0,
        "{pages} pages are too few for {} threads",
        asked.threads
    );
    for thread in 0..asked.threads {
        let (memory, written) = (memory.clone(), written.clone());
        let rate = asked.pages / asked.threads as f64;
        std::thread::Builder::new()
            .name(format!("writer-{thread}"))
            .spawn(move || write_forever(&memory[thread * each * WORDS..][..each * WORDS], rate, &written))
            .context("a thread")?;
    }
    watch_the_clock(&asked, &written)
}

fn read_args(mut args: impl Iterator<Item = String>) -> Result<Asked> {
    let mut asked = Asked {
        mib: 1,
        pages: 0.0,
        threads: 1,
        thp: false,
        report: PathBuf::new(),
        seconds: 3600,
    };
    while let Some(name) = args.next() {
        let mut value = || args.next().with_context(|| format!("{name} wants a value"));
        match name.as_str() {
            "--mib" => asked.mib = value()?.parse().context("--mib")?,
            "--pages" => asked.pages = value()?.parse().context("--pages")?,
            "--threads" => asked.threads = value()?.parse().context("--threads")?,
            "--thp" => asked.thp = true,
            "--report" => asked.report = value()?.into(),
            "--seconds" => asked.seconds = value()?.parse().context("--seconds")?,
            _ => bail!(
                "usage: load --report FILE [--mib M] [--pages PER_SECOND] [--threads N] [--thp] [--seconds S]"
            ),
        }
    }
    ensure!(asked.report.is_absolute(), "--report FILE, with its whole path");
    ensure!(asked.threads > 0 && asked.mib > 0, "nothing to do");
    Ok(asked)
}

/// Memory that is resident, of which no page is zero or like another.
fn fill(bytes: usize) -> Vec<AtomicU64> {
    let mut x: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        // xorshift64: nothing of it can be compressed.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        AtomicU64::new(x)
    };
    (0..bytes / size_of::<u64>()).map(|_| next()).collect()
}

/// Writes to so many pages a second, far from each other, and to none twice before all had their turn.
fn write_forever(memory: &[AtomicU64], rate: f64, written: &AtomicU64) {
    let pages = memory.len() / WORDS;
    // A stride that shares no divisor with the number of pages visits all.
    let stride = [7919, 104_729, 1]
        .into_iter()
        .find(|s| pages / s * s != pages)
        .unwrap_or(1);
    let (mut turn, mut owed, mut last) = (0usize, 0.0, Instant::now());
    loop {
        std::thread::sleep(TICK);
        let now = Instant::now();
        owed += rate * (now - last).min(CATCH_UP).as_secs_f64();
        last = now;
        let count = owed as usize;
        owed -= count as f64;
        for _ in 0..count {
            memory[turn * stride % pages * WORDS + turn % WORDS].fetch_add(1, Ordering::Relaxed);
            turn = (turn + 1) % (pages * WORDS);
        }
        written.fetch_add(count as u64, Ordering::Relaxed);
    }
}

fn watch_the_clock(asked: &Asked, written: &AtomicU64) -> Result<()> {
    let mut lines = String::with_capacity(1 << 16);
    let begin = now();
    let end = begin + asked.seconds * 1_000_000_000;
    // Infallible: into a string.
    let _ = writeln!(lines, "ready {begin}");
    tell(asked, &lines)?;
    lines.clear();
    let mut last = now();
    let (mut told, mut turns, mut gaps) = (last, 0u64, false);
    while last < end {
        let at = now();
        let len = at.saturating_sub(last);
        turns += 1;
        if len >= GAP {
            let _ = writeln!(lines, "gap {last} {len}");
            gaps = true;
        }
        last = at;
        let since = at.saturating_sub(told);
        if since < TELL && !(gaps && since >= TELL_GAP) {
            continue;
        }
        let _ = writeln!(lines, "at {at} {} {turns}", written.load(Ordering::Relaxed));
        tell(asked, &lines)?;
        lines.clear();
        last = now();
        (told, gaps) = (last, false);
        if last.saturating_sub(at) > TELLING {
            let _ = writeln!(lines, "gap {at} {}", last - at);
        }
    }
    Ok(())
}

fn tell(asked: &Asked, lines: &str) -> Result<()> {
    let what = || asked.report.display().to_string();
    let mut options = OpenOptions::new();
    let mut file = options
        .append(true)
        .create(true)
        .open(&asked.report)
        .with_context(what)?;
    file.write_all(lines.as_bytes()).with_context(what)
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

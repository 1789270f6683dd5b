//! No tracking: every populated page counts as written.

use super::{Pages, Tier, Tracker, Untracked};
use crate::error::Result;
use crate::ids::{Pid, Range};
use crate::sys::pagemap::{self, Contents, Pagemap};

/// Works on every kernel, and costs a copy of everything each time.
#[derive(Debug)]
pub struct Everything {
    map: Pagemap,
}

impl Everything {
    /// For the process `pid` as it is now; after an execve(2) make a new one.
    pub fn new(pid: Pid) -> Result<Everything> {
        Ok(Everything {
            map: pagemap::open(pid)?,
        })
    }
}

impl Tracker for Everything {
    fn tier(&self) -> Tier {
        Tier::Everything
    }

    fn track(&mut self, _: &[Range]) -> Result<Vec<(Range, Untracked)>> {
        Ok(Vec::new())
    }

    fn take_written(&mut self, within: &[Range]) -> Result<Vec<Range>> {
        self.map.populated_in(within, Contents::Private)
    }

    fn peek(&self, within: &[Range]) -> Result<Pages> {
        let populated = self.map.populated_in(within, Contents::Private)?;
        Ok(Pages {
            written: populated.clone(),
            populated,
        })
    }

    fn survey(&mut self, within: &[Range]) -> Result<Pages> {
        self.peek(within)
    }

    fn unregistered(&self, _: &[Range]) -> Result<Vec<Range>> {
        Ok(Vec::new())
    }

    fn fresh(&mut self) -> Vec<Range> {
        Vec::new()
    }

    fn huge(&self, _within: &[Range]) -> Result<Vec<Range>> {
        Ok(Vec::new())
    }
}

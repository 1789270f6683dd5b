//! Questions that only a process itself can answer: all of them on one tape for each of its threads.

use super::{PROCESS_KINDS, ProcessKind, Source};
use crate::error::Result;
use crate::observe::view::ProcessView;
use crate::tracee::process::Question;
use crate::tracee::tape::{Ran, Tape};

/// A kind that has questions which only the process itself can answer.
///
/// Those of all kinds go on one tape for each thread, and all threads are asked at once.
pub trait Asks: ProcessKind {
    /// Where on the tape the answers will be.
    type Places;
    /// Whether each thread is asked, or the first for all.
    const EACH: bool;
    /// Puts the questions to a process on a tape; the same ones in the same places every time.
    fn ask(tape: &mut Tape<'_>, of: &ProcessView) -> Self::Places;
}

impl Source<'_> {
    /// What the process answered to the questions of a kind, and where.
    pub fn answers<K: Asks>(&self) -> Result<(&Ran, K::Places)> {
        self.answers_of::<K>(0)
    }

    /// The same of thread number `n`.
    pub fn answers_of<K: Asks>(&self, n: usize) -> Result<(&Ran, K::Places)> {
        self.process.answers(n, K::TAG, K::ask)
    }
}

/// The questions of all kinds.
pub fn questions() -> Vec<Question> {
    PROCESS_KINDS.iter().filter_map(|kind| kind.question).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_asks_under_its_own_name() {
        let mut tags: Vec<_> = questions().iter().map(|q| q.tag).collect();
        let count = tags.len();
        assert!(tags.iter().all(|t| PROCESS_KINDS.iter().any(|k| k.tag == *t)));
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), count);
    }
}

//! Questions that only a process itself can answer: all of them on one tape for each of its threads.

use super::socket::known::Known;
use super::{PROCESS_KINDS, ProcessKind, Source};
use crate::error::Result;
use crate::ids::Pid;
use crate::observe::changes::{Changes, Count};
use crate::observe::looks;
use crate::observe::view::ProcessView;
use crate::tracee::process::{Answers, Question, StoppedProcess};
use crate::tracee::tape::{Ran, Tape};
use std::collections::BTreeMap;

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

/// What processes answered at their last stop, where it can be told whether they would still do so.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Tells what may have changed; without it everything is asked at every stop.
    pub changes: Option<Changes>,
    by_pid: BTreeMap<Pid, Memory>,
    /// The options of their sockets.
    options: Known,
}

#[derive(Debug)]
struct Memory {
    answers: Answers,
    since: Count,
    slack: Slack,
}

/// The timer slack of each thread as /proc has it: others can set that, and nothing tells when they have.
type Slack = Vec<Vec<u8>>;

/// What holds during one stop.
#[derive(Debug)]
pub struct Recalling {
    changes: Changes,
    others: u64,
    slack: BTreeMap<Pid, Slack>,
}

impl Remembered {
    /// A stop begins: what others may change from now on counts for the next one.
    pub fn begin(&self) -> Option<Recalling> {
        let changes = self.changes.clone()?;
        let others = changes.of_others()?;
        let slack = BTreeMap::new();
        Some(Recalling {
            changes,
            others,
            slack,
        })
    }

    /// Whether a process that stands still answers as it did the last time, so that it need not be asked.
    pub fn recall(
        &mut self,
        process: &mut StoppedProcess,
        questions: &[Question],
        now: &mut Recalling,
    ) -> bool {
        let pid = process.pid();
        let Some(slack) = slack(process) else { return false };
        let earlier = self.by_pid.remove(&pid);
        let since = now.changes.of(pid, now.others);
        let same = |m: &Memory| Some(m.since) == since && m.slack == slack;
        let known = earlier
            .filter(same)
            .is_some_and(|m| process.recall(m.answers, questions));
        now.slack.insert(pid, slack);
        known
    }

    /// Remembers what a process has answered.
    pub fn keep(&mut self, pid: Pid, answers: Answers, since: Count, now: &mut Recalling) {
        if let Some(slack) = now.slack.remove(&pid) {
            let memory = Memory {
                answers,
                since,
                slack,
            };
            self.by_pid.insert(pid, memory);
        }
    }

    /// What is known of the options of the set's sockets; `whole`: whether all of its processes are watched.
    pub fn options(&mut self, now: Option<&Recalling>, whole: bool) -> Known {
        let count = now.filter(|_| whole).and_then(|now| now.changes.of_options());
        std::mem::take(&mut self.options).at(count)
    }

    /// Remembers what has been learned of them.
    pub fn keep_options(&mut self, known: Known) {
        self.options = known;
    }

    /// Forgets all processes but these.
    pub fn retain(&mut self, mut which: impl FnMut(Pid) -> bool) {
        self.by_pid.retain(|pid, _| which(*pid));
    }
}

impl Recalling {
    /// How much a process may have changed by now.
    pub fn count(&self, pid: Pid) -> Option<Count> {
        self.changes.of(pid, self.others)
    }
}

fn slack(process: &StoppedProcess) -> Option<Slack> {
    let threads = process.threads().iter();
    let paths: Vec<String> = threads
        .map(|t| format!("/proc/{}/timerslack_ns", t.tid()))
        .collect();
    looks::texts(&paths).into_iter().map(Result::ok).collect()
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

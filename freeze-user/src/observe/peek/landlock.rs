//! Which threads are in a Landlock domain (landlock(7)), which no file of /proc tells.

use super::Peek;
use crate::ids::Pid;
use crate::sys::landlock::restrict_thread;
use std::collections::HashMap;
use std::sync::OnceLock;

/// How much of what security modules keep with the credentials of a thread is looked at, in words.
const WORDS: u64 = 16;

impl Peek {
    /// The threads of a process that are in a domain; `None` if that cannot be seen.
    pub fn landlocked(&self, process: Pid) -> Option<Vec<Pid>> {
        static PLACE: OnceLock<Option<u64>> = OnceLock::new();
        let place = (*PLACE.get_or_init(|| self.place_of_domain()))?;
        // Threads share their credentials as long as none of them changes its own.
        let mut known: HashMap<u64, bool> = HashMap::new();
        let mut found = Some(Vec::new());
        self.threads(process, |tid, task| {
            let mut look = || {
                let credentials = self.word(self.at(task, "task_struct", "cred"))?;
                if let Some(is_in) = known.get(&credentials) {
                    return Some(*is_in);
                }
                let domain = self.word(self.word(self.at(credentials, "cred", "security"))? + place)?;
                known.insert(credentials, domain != 0);
                Some(domain != 0)
            };
            match (look(), &mut found) {
                (Some(true), Some(tids)) => tids.push(tid),
                (None, _) => found = None,
                _ => {}
            }
            found.is_some()
        })?;
        found
    }

    /// Where among what security modules keep a domain stands: the one word that changes when a thread of ours enters one.
    fn place_of_domain(&self) -> Option<u64> {
        std::thread::scope(|scope| scope.spawn(|| self.entered()).join().ok().flatten())
    }

    fn entered(&self) -> Option<u64> {
        let task = self.reader.current().ok()?;
        let words = || -> Option<Vec<u64>> {
            let credentials = self.word(self.at(task, "task_struct", "cred"))?;
            let kept = self.word(self.at(credentials, "cred", "security"))?;
            Some((0..WORDS).map_while(|n| self.word(kept + 8 * n)).collect())
        };
        let before = words()?;
        restrict_thread().ok()?;
        let after = words()?;
        let both = before.iter().zip(&after).zip(0..WORDS);
        // What lies behind it is somebody else's, or nobody's and then at random.
        let is_address = |word: u64| word >> 48 == 0xffff && word.is_multiple_of(8);
        let entered = |before: u64, after: u64| {
            before != after && is_address(after) && (before == 0 || is_address(before))
        };
        let mut changed = both.filter(|((before, after), _)| entered(**before, **after));
        match (changed.next(), changed.next()) {
            (Some((_, n)), None) => Some(8 * n),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_in_a_domain_is_told_from_others() {
        let own = Pid(std::process::id() as i32);
        let Some(before) = Peek::get().and_then(|p| p.landlocked(own)) else {
            return;
        };
        assert!(before.is_empty(), "{before:?}");
        let (tell, told) = channel();
        let (go, wait) = channel::<()>();
        let locked = std::thread::spawn(move || {
            restrict_thread().unwrap();
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = wait.recv();
        });
        let tid = Pid(told.recv().unwrap());
        let found = Peek::get().and_then(|p| p.landlocked(own));
        drop(go);
        locked.join().unwrap();
        assert_eq!(found, Some(vec![tid]));
    }
}

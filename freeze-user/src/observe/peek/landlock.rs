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

    /// Where among what security modules keep a domain stands: the one word that changes whenever a thread of ours enters
    /// one. What lies behind all they keep is somebody else's, and changes as well, but not each time.
    fn place_of_domain(&self) -> Option<u64> {
        const TIMES: usize = 64;
        const SURE: usize = 4;
        let mut left: Vec<u64> = (0..WORDS).collect();
        for n in 1..=TIMES {
            let changed = std::thread::scope(|scope| scope.spawn(|| self.changed()).join().ok().flatten())?;
            left.retain(|n| changed.contains(n));
            if left.len() < 2 && n >= SURE {
                break;
            }
        }
        match left[..] {
            [n] => Some(8 * n),
            _ => None,
        }
    }

    /// The words that change when this thread, which ends then, enters a domain.
    fn changed(&self) -> Option<Vec<u64>> {
        let task = self.reader.current().ok()?;
        let words = || -> Option<Vec<u64>> {
            let credentials = self.word(self.at(task, "task_struct", "cred"))?;
            let kept = self.word(self.at(credentials, "cred", "security"))?;
            Some((0..WORDS).map_while(|n| self.word(kept + 8 * n)).collect())
        };
        let before = words()?;
        restrict_thread().ok()?;
        let after = words()?;
        // Nobody's words are at random.
        let is_address = |word: u64| word >> 48 == 0xffff && word.is_multiple_of(8);
        let entered = |before: u64, after: u64| {
            before != after && is_address(after) && (before == 0 || is_address(before))
        };
        let both = before.iter().zip(&after).zip(0..WORDS);
        let changed = both.filter(|((before, after), _)| entered(**before, **after));
        Some(changed.map(|(_, n)| n).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
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
        // In the same test, since the threads below are in domains too.
        the_place_is_found_whatever_else_is_made_and_lost();
    }

    fn the_place_is_found_whatever_else_is_made_and_lost() {
        let Some(peek) = Peek::get().filter(|p| p.place_of_domain().is_some()) else {
            return;
        };
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Credentials come and go, and what others keep with theirs lies beside ours.
            for _ in 0..2 {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        nix::unistd::setfsuid(nix::unistd::getuid());
                        let _ = std::thread::spawn(restrict_thread).join();
                    }
                });
            }
            let places: Vec<_> = (0..200).map(|_| peek.place_of_domain()).collect();
            end.store(true, Ordering::Relaxed);
            assert!(places[0].is_some());
            assert!(places.iter().all(|p| *p == places[0]), "{places:?}");
        });
    }
}

//! Which threads are in a Landlock domain (landlock(7)), which no file of /proc tells.

use super::Peek;
use crate::ids::Pid;
use crate::sys::capabilities::give_up;
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
    /// one, and is the same in the next credentials of that thread. What lies behind all they keep is somebody else's: it
    /// may change each time as well, for as long as others make credentials as fast as we do, but does not stay.
    fn place_of_domain(&self) -> Option<u64> {
        const TIMES: usize = 64;
        const SURE: usize = 4;
        let mut left: Vec<u64> = (0..WORDS).collect();
        for n in 1..=TIMES {
            let is_place = std::thread::scope(|scope| scope.spawn(|| self.places()).join().ok().flatten())?;
            left.retain(|n| is_place.contains(n));
            if left.len() < 2 && n >= SURE {
                break;
            }
        }
        match left[..] {
            [n] => Some(8 * n),
            _ => None,
        }
    }

    /// The words that change when this thread, which ends then, enters a domain, and each time it enters one within, and
    /// that it takes along when its credentials are made anew in between.
    fn places(&self) -> Option<Vec<u64>> {
        /// A domain in a domain: the kernel has sixteen of them.
        const LAYERS: usize = 4;
        let task = self.reader.current().ok()?;
        let words = || -> Option<Vec<u64>> {
            let credentials = self.word(self.at(task, "task_struct", "cred"))?;
            let kept = self.word(self.at(credentials, "cred", "security"))?;
            Some((0..WORDS).map_while(|n| self.word(kept + 8 * n)).collect())
        };
        // Nobody's words are at random.
        let is_address = |word: u64| word >> 48 == 0xffff && word.is_multiple_of(8);
        let entered = |before: u64, after: u64| {
            before != after && is_address(after) && (before == 0 || is_address(before))
        };
        let mut left: Vec<u64> = (0..WORDS).collect();
        let mut before = words()?;
        for _ in 0..LAYERS {
            restrict_thread().ok()?;
            let after = words()?;
            give_up(0).ok()?;
            let renewed = words()?;
            let seen = |n: u64| {
                let at = |words: &[u64]| words.get(n as usize).copied();
                Some((at(&before)?, at(&after)?, at(&renewed)?))
            };
            left.retain(|n| seen(*n).is_some_and(|(b, a, r)| entered(b, a) && a == r));
            before = renewed;
        }
        Some(left)
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

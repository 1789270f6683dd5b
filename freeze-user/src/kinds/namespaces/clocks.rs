//! The clocks that count from the boot: after another boot they go on from where they stood, in a time namespace.

use super::{Kind, Namespace, What, put};
use crate::error::{Context, Result};
use crate::nest::family::Family;
use crate::store::Draft;
use crate::sys;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The tag of the record, of which a checkpoint has one.
pub const TAG: &str = "clocks";
pub const VERSION: u16 = 1;

/// How the clocks stood at the cut, as freeze's own time namespace has them; in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// /proc/sys/kernel/random/boot_id.
    pub boot: String,
    pub monotonic: i64,
    pub boottime: i64,
}

const SECOND: i64 = 1_000_000_000;

impl Clocks {
    /// As they stand.
    fn now() -> Result<Clocks> {
        let read = |clock: ClockId, name: &'static str| {
            let at = clock_gettime(clock).on("clock_gettime", || name)?;
            Ok(at.tv_sec() * SECOND + at.tv_nsec())
        };
        Ok(Clocks {
            boot: sys::boot_id().to_owned(),
            monotonic: read(ClockId::CLOCK_MONOTONIC, "CLOCK_MONOTONIC")?,
            boottime: read(ClockId::CLOCK_BOOTTIME, "CLOCK_BOOTTIME")?,
        })
    }

    /// Records them.
    pub fn collect(draft: &mut Draft) -> Result<()> {
        put(draft, TAG, VERSION, Clocks::now()?)
    }

    /// After another boot, moves the set into time namespaces in which both clocks go on from here.
    pub fn carry_on(&self, families: &mut [Family], namespaces: &mut Vec<Namespace>) -> Result<()> {
        let now = Clocks::now()?;
        if now.boot == self.boot {
            return Ok(());
        }
        let lag = |clock: &str| match clock {
            "monotonic" => self.monotonic - now.monotonic,
            _ => self.boottime - now.boottime,
        };
        // Offsets count from the first of all time namespaces, in which freeze need not be.
        let path = "/proc/self/timens_offsets";
        let own = super::offsets(&std::fs::read_to_string(path).on("read", || path)?);
        // Where there is no namespace of its own to correct, the set gets one.
        let fresh = namespaces.iter().map(|n| n.number).max().unwrap_or(0) + 1;
        for namespace in namespaces.iter_mut() {
            if let What::Time { offsets } = &mut namespace.what {
                for offset in offsets {
                    *offset = moved(offset, lag(&offset.0));
                }
            }
        }
        let is_ours = |f: &Family| f.spaces.of(Kind::Time) == 0;
        if families.iter().any(is_ours) {
            namespaces.push(Namespace {
                kind: Kind::Time,
                number: fresh,
                owner: 0,
                what: What::Time {
                    offsets: own.iter().map(|o| moved(o, lag(&o.0))).collect(),
                },
                bound: None,
                limits: Vec::new(),
                outside: Vec::new(),
                roots: Vec::new(),
            });
        }
        for f in families.iter_mut() {
            if f.time_for_children == Some(0) {
                f.time_for_children = Some(fresh);
            }
            if is_ours(f) {
                f.spaces.0.insert(Kind::Time, fresh);
            }
        }
        Ok(())
    }
}

/// An offset that lies `by` nanoseconds later.
fn moved((clock, seconds, nanoseconds): &(String, i64, i64), by: i64) -> (String, i64, i64) {
    let at = seconds * SECOND + nanoseconds + by;
    // The kernel wants nanoseconds from 0 on, of seconds that may be negative.
    (clock.clone(), at.div_euclid(SECOND), at.rem_euclid(SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nest::space::Membership;

    fn family(space: u32) -> Family {
        let mut f = crate::nest::family::tests::one(10, 1, 10);
        if space != 0 {
            f.spaces = Membership([(Kind::Time, space)].into());
        }
        f
    }

    #[test]
    fn nothing_moves_within_one_boot() {
        let mut families = [family(0)];
        let mut namespaces = Vec::new();
        Clocks::now()
            .unwrap()
            .carry_on(&mut families, &mut namespaces)
            .unwrap();
        assert!(namespaces.is_empty() && families[0].spaces.of(Kind::Time) == 0);
    }

    #[test]
    fn after_another_boot_the_clocks_go_on() {
        let now = Clocks::now().unwrap();
        let then = Clocks {
            boot: "another".into(),
            monotonic: now.monotonic + 100 * SECOND,
            ..now
        };
        let mut families = [family(0), family(7)];
        let own = |seconds| ("monotonic".to_owned(), seconds, 5);
        let mut namespaces = vec![Namespace {
            kind: Kind::Time,
            number: 7,
            owner: 0,
            what: What::Time {
                offsets: vec![own(-50)],
            },
            bound: None,
            limits: Vec::new(),
            outside: Vec::new(),
            roots: Vec::new(),
        }];
        then.carry_on(&mut families, &mut namespaces).unwrap();
        assert_eq!(families[0].spaces.of(Kind::Time), 8);
        assert_eq!(families[1].spaces.of(Kind::Time), 7);
        let offsets = |n: &Namespace| match &n.what {
            What::Time { offsets } => offsets[0].1,
            other => panic!("{other:?}"),
        };
        // What passed between the two looks at the clock is less than a second.
        assert!((99..=100).contains(&offsets(&namespaces[1])), "{namespaces:?}");
        assert!((49..=50).contains(&offsets(&namespaces[0])), "{namespaces:?}");
    }

    #[test]
    fn nanoseconds_are_never_negative() {
        let clock = |s, ns| ("boottime".to_owned(), s, ns);
        assert_eq!(moved(&clock(0, 0), -1), clock(-1, SECOND - 1));
        assert_eq!(moved(&clock(-2, 500), SECOND), clock(-1, 500));
    }
}

//! Which memory may be filled while its program runs already (`freeze restore --lazy`), and handing it to who fills it.

pub mod missing;
pub mod serve;

use super::heritage::Kept;
use super::{Mapping, Record};
use crate::error::{Context, Result};
use crate::ids::{EVERYWHERE, Pid, Range, SpaceId, intersect, normalize, subtract};
use crate::nest::Nest;
use crate::sys::missing::{FLAGS, Filler};
use serve::Server;

/// A mapping with less to be filled is filled at once: it is not worth a fault.
const SMALL: u64 = 256 << 10;
/// So is a whole process with less: it takes no longer than to begin.
const LITTLE: u64 = 16 << 20;

/// What is filled later, for the time of a restore.
#[derive(Debug, Default)]
pub struct Later {
    pub server: Option<Server>,
    /// The kernel will not have it: everything is filled at once.
    refused: bool,
}

/// Leaves to be filled later what can be; tells what has to be filled now.
pub fn put_off(record: &Record, pid: Pid, kept: &Kept, nest: &mut Nest) -> Result<Vec<Range>> {
    let now = kept.todo.clone();
    if nest.state::<Later>().refused {
        return Ok(now);
    }
    let stored = nest.image.ranges(SpaceId::private(pid), EVERYWHERE, false);
    let todo = intersect(&stored, &now);
    let mut areas = Vec::new();
    let mut missing = Vec::new();
    for (_, m) in record
        .vmas
        .iter()
        .enumerate()
        .filter(|(i, m)| !kept.mappings.contains(i) && can_wait(record, m))
    {
        let here = intersect(&todo, &[m.range]);
        if here.iter().map(|r| r.len()).sum::<u64>() >= SMALL {
            areas.push(m.range);
            missing.extend(here);
        }
    }
    let missing = normalize(missing);
    if missing.iter().map(|r| r.len()).sum::<u64>() < LITTLE {
        return Ok(now);
    }
    let filler = match nest.userfaultfd(pid, FLAGS)?.and_then(Filler::start) {
        Ok(filler) => filler,
        Err(errno) => {
            nest.state::<Later>().refused = true;
            nest.warnings.push(format!(
                "this kernel grants no userfaultfd that tells of all changes ({errno}): memory was filled before the program ran"
            ));
            return Ok(now);
        }
    };
    for area in &areas {
        filler
            .register(*area)
            .on("UFFDIO_REGISTER", || format!("{area} of {pid}"))?;
    }
    let (image, rest) = (nest.image.clone(), nest.options.rest);
    let later = nest.state::<Later>();
    let server = match &mut later.server {
        Some(server) => server,
        none => none.insert(Server::start(image, rest)?),
    };
    server.add(pid, filler, &missing)?;
    Ok(subtract(&now, &missing))
}

/// Whether a mapping's pages may come when the program runs: private anonymous memory with nothing special about it.
///
/// Not what is locked (the program was promised never to wait for it), what grows down or is sealed, what is emptied by fork(2), what
/// has a NUMA policy (it would be filled by another's), nor what has guard pages in it.
fn can_wait(record: &Record, m: &Mapping) -> bool {
    const SPECIAL: [&str; 7] = ["lo", "gd", "wf", "dp", "mg", "lf", "sl"];
    m.is_plain()
        && !SPECIAL.iter().any(|flag| m.has(flag))
        && intersect(&record.guards, &[m.range]).is_empty()
}

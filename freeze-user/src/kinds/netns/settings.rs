//! Settings of a network namespace under /proc/sys/net, and what of traffic control is refused.

use super::{GETQDISC, Record, text, word};
use crate::error::Blocker;
use crate::sys::rtnl::{Netlink, attributes};
use nix::Result as Sys;
use std::path::Path;

pub(super) const SETTINGS: &str = "/proc/sys/net";

/// Everything under /proc/sys/net that can be read and written.
pub(super) fn settings() -> Vec<(String, String)> {
    let mut out = Vec::new();
    walk(Path::new(SETTINGS), &mut out);
    out.sort();
    out
}

fn walk(dir: &Path, out: &mut Vec<(String, String)>) {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            walk(&path, out);
        } else if meta.permissions().mode() & 0o600 == 0o600
            && let Ok(text) = std::fs::read_to_string(&path)
            && let Ok(short) = path.strip_prefix(SETTINGS)
        {
            out.push((short.to_string_lossy().into_owned(), text));
        }
    }
}

/// Writes what differs; what is meant for all devices first, since it changes that of each.
pub(super) fn apply_settings(settings: &[(String, String)]) {
    let general = |path: &str| {
        !path.contains("/conf/") || path.contains("/conf/all/") || path.contains("/conf/default/")
    };
    for first in [true, false] {
        for (path, value) in settings.iter().filter(|(p, _)| general(p) == first) {
            let path = Path::new(SETTINGS).join(path);
            if std::fs::read_to_string(&path).is_ok_and(|now| now != *value) {
                // What the machine's owner alone may set stays as it is.
                let _ = std::fs::write(&path, value);
            }
        }
    }
}

/// Refuses queueing disciplines other than the ones devices come with.
pub(super) fn disciplines(
    netlink: &mut Netlink,
    record: &Record,
    label: &str,
    out: &mut Vec<Blocker>,
) -> Sys<()> {
    const TCA_KIND: u16 = 1;
    let usual = std::fs::read_to_string(format!("{SETTINGS}/core/default_qdisc")).unwrap_or_default();
    for message in netlink.dump(GETQDISC, &[0; 20])? {
        let index = message.get(4..).map_or(0, word) as i32;
        let Some((_, kind)) = attributes(&message, 20).into_iter().find(|(k, _)| *k == TCA_KIND) else {
            continue;
        };
        let kind = text(kind);
        if ["noqueue", "noop", "mq", "pfifo_fast", usual.trim()].contains(&kind.as_str()) {
            continue;
        }
        let name = record
            .links
            .iter()
            .find(|l| l.index == index)
            .map_or("", |l| &l.name);
        out.push(
            Blocker::at(format!("network device {name}"), label)
                .why(format!("its queueing discipline {kind} is not carried"))
                .remedy("delete it (tc qdisc del)"),
        );
    }
    Ok(())
}

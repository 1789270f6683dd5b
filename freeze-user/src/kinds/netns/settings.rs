//! Settings of a network namespace under /proc/sys/net.

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
    // How addresses are made up can be by a secret only once that is there.
    let second = |path: &str| path.ends_with("/addr_gen_mode");
    for (first, later) in [(true, false), (true, true), (false, false), (false, true)] {
        let turn = |path: &str| general(path) == first && second(path) == later;
        for (path, value) in settings.iter().filter(|(p, _)| turn(p)) {
            let path = Path::new(SETTINGS).join(path);
            // One that was never set (the secret for stable addresses) can be written only.
            if std::fs::read_to_string(&path).map_or(true, |now| now != *value) {
                // What the machine's owner alone may set stays as it is.
                let _ = std::fs::write(&path, value);
            }
        }
    }
}

/// Keeps the kernel from making up addresses for a while, as it does for each device that comes up: those that there were are
/// set by hand. Ended by [`apply_settings`].
pub(super) fn hush_addresses(settings: &[(String, String)]) {
    const NONE: &str = "1";
    let devices = settings
        .iter()
        .filter(|(path, _)| path.ends_with("/addr_gen_mode"));
    for (path, _) in devices.filter(|(path, _)| !path.contains("/conf/all/")) {
        let _ = std::fs::write(Path::new(SETTINGS).join(path), NONE);
    }
}

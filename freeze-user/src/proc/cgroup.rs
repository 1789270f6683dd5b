//! `/proc/PID/cgroup` and the cgroup mounts of `/proc/PID/mountinfo`.

/// One line of `/proc/PID/cgroup`: where a process is in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// `cpu,cpuacct`, `name=systemd`, or nothing for the unified hierarchy.
    pub hierarchy: String,
    pub path: String,
}

/// Parses `/proc/PID/cgroup`.
pub fn memberships(text: &str) -> Option<Vec<Membership>> {
    let line = |l: &str| {
        let (_, rest) = l.split_once(':')?;
        let (hierarchy, path) = rest.split_once(':')?;
        Some(Membership {
            hierarchy: hierarchy.to_owned(),
            // A group that was removed while a dead process was in it.
            path: path.strip_suffix(" (deleted)").unwrap_or(path).to_owned(),
        })
    };
    text.lines().map(line).collect()
}

/// A mount of a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Controllers and name of version 1; empty for the unified hierarchy.
    pub options: Vec<String>,
    /// Which group is at the mount's root.
    pub root: String,
    pub point: String,
}

/// The cgroup mounts in `/proc/PID/mountinfo`.
pub fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let options = match *right.first()? {
            "cgroup" => right.get(2)?.split(',').map(str::to_owned).collect(),
            "cgroup2" => Vec::new(),
            _ => return None,
        };
        Some(Mount {
            options,
            root: (*left.get(3)?).to_owned(),
            point: unescape(left.get(4)?),
        })
    };
    text.lines().filter_map(mount).collect()
}

/// `\040` and the like are characters that would not fit into the line.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = code.and_then(|c| std::str::from_utf8(c).ok());
        match code.and_then(|c| u8::from_str_radix(c, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Mount {
    /// Whether it is of the hierarchy that `/proc/PID/cgroup` calls so.
    pub fn is(&self, hierarchy: &str) -> bool {
        match hierarchy {
            "" => self.options.is_empty(),
            h => h.split(',').all(|one| self.options.iter().any(|o| o == one)),
        }
    }

    /// Where a group lies, if it lies below this mount.
    pub fn place(&self, group: &str) -> Option<String> {
        let below = match self.root.as_str() {
            "/" => group,
            root => group
                .strip_prefix(root)
                .filter(|r| r.is_empty() || r.starts_with('/'))?,
        };
        (!below.starts_with("/..")).then(|| format!("{}{}", self.point, below.trim_end_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_their_mounts() {
        let m = memberships("9:name=systemd:/\n3:cpu,cpuacct:/a:b\n0::/x y\n").unwrap();
        assert_eq!(
            (m[1].hierarchy.as_str(), m[1].path.as_str()),
            ("cpu,cpuacct", "/a:b")
        );
        assert_eq!((m[2].hierarchy.as_str(), m[2].path.as_str()), ("", "/x y"));
        let text = "30 20 0:25 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    31 20 0:26 /sub /with\\040blank rw - cgroup2 cgroup2 rw\n32 20 0:27 / /x rw - tmpfs none rw\n";
        let mounts = mounts(text);
        assert_eq!(mounts.len(), 2);
        assert!(mounts[0].is("cpu,cpuacct") && mounts[0].is("cpu") && !mounts[0].is("") && mounts[1].is(""));
        assert_eq!(mounts[0].place("/a").as_deref(), Some("/sys/fs/cgroup/cpu/a"));
        assert_eq!(mounts[1].place("/sub/b").as_deref(), Some("/with blank/b"));
        assert_eq!(mounts[1].place("/subway"), None);
        assert_eq!(mounts[0].place("/../x"), None);
    }
}

//! What this machine must be before anything is installed or run: Debian or a child of it, and we root.

use anyhow::{Result, bail};

/// Which distribution this is, from /etc/os-release.
#[derive(Debug, PartialEq)]
pub(crate) enum Distribution {
    Debian12,
    /// Another release, or a child of Debian: the same package names are assumed.
    Kin(String),
    Other(String),
}

/// Refuses with one message that says what to do, or returns the distribution.
pub(crate) fn check(task: &str) -> Result<Distribution> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = read(&text);
    if let Distribution::Other(name) = &distribution {
        bail!(
            "this is {name}, and freeze's tasks install packages of Debian 12.\n\
             In a container of Debian with all rights, for example:\n    \
             docker run --rm -it --privileged -v \"$PWD\":/freeze -w /freeze rust:bookworm cargo xtask {task}\n\
             Or install by hand what xtask/src/setup.rs lists, then\n    \
             cargo build --release && cargo test --workspace"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "freeze stops and rebuilds processes, and so do its tests: root is needed.\n    sudo env \"PATH=$PATH\" cargo xtask {task}"
        );
    }
    Ok(distribution)
}

fn read(os_release: &str) -> Distribution {
    let field = |name: &str| {
        let line = os_release
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\''])
    };
    let name = match field("PRETTY_NAME") {
        "" => "no distribution with an /etc/os-release".to_string(),
        name => name.to_string(),
    };
    match (field("ID"), field("VERSION_ID")) {
        ("debian", "12") => Distribution::Debian12,
        ("debian" | "ubuntu", _) => Distribution::Kin(name),
        _ if field("ID_LIKE").split(' ').any(|like| like == "debian") => Distribution::Kin(name),
        _ => Distribution::Other(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_told_apart() {
        let kin = |name: &str| Distribution::Kin(name.into());
        let cases = [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n",
                Distribution::Debian12,
            ),
            (
                "PRETTY_NAME=\"Debian 13\"\nVERSION_ID=\"13\"\nID=debian\n",
                kin("Debian 13"),
            ),
            (
                "PRETTY_NAME='Mint 22'\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                kin("Mint 22"),
            ),
            (
                "PRETTY_NAME=Fedora\nID=fedora\n",
                Distribution::Other("Fedora".into()),
            ),
            (
                "",
                Distribution::Other("no distribution with an /etc/os-release".into()),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}

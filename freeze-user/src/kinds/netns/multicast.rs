//! Link addresses that devices were told by hand to listen to (`ip maddr add`).

use crate::kinds::pipe::Bytes;
use crate::sys::multicast::listen;
use nix::Result as Sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// One address a device listens to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    pub device: String,
    pub address: Bytes,
}

/// Those of the namespace of the calling thread.
pub(super) fn read() -> Vec<Heard> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").unwrap_or_default();
    text.lines().filter_map(by_hand).collect()
}

/// A line of dev_mcast: number and name of the device, users, whether by hand, the address.
fn by_hand(line: &str) -> Option<Heard> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, device, _, by_hand, address] = words[..] else {
        return None;
    };
    let byte = |at: usize| u8::from_str_radix(address.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..address.len()).step_by(2).map(byte).collect();
    (by_hand != "0").then_some(Heard {
        device: device.to_owned(),
        address: Bytes(bytes?),
    })
}

/// Has the devices of the namespace of the calling thread listen again.
pub(super) fn restore(all: &[Heard]) -> Sys<()> {
    for heard in all {
        match listen(&heard.device, &heard.address.0) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_entered_by_hand_is_told_apart() {
        let line = "2    eth0            1     1     01005e010203";
        let heard = by_hand(line).unwrap();
        assert_eq!(
            (&heard.device[..], &heard.address.0[..]),
            ("eth0", &[1, 0, 0x5e, 1, 2, 3][..])
        );
        assert_eq!(by_hand("2    eth0            1     0     01005e000001"), None);
    }
}

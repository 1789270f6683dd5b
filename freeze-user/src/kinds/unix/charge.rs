//! In what pieces a stream was written: by the bytes that its queue costs the sender (SIOCOUTQ), which say how much more he may
//! write. The same bytes in other pieces would cost him less or more.

use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const SIOCOUTQ: u64 = 0x5411;

/// A pair of sockets on which it is tried out what a piece costs.
struct Scale(OwnedFd, OwnedFd);

impl Scale {
    fn new() -> nix::Result<Scale> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        Ok(Scale(a, b))
    }

    fn cost(&self, len: usize) -> nix::Result<usize> {
        let mut room = vec![0; len];
        if send(self.0.as_raw_fd(), &room, MsgFlags::empty())? != len {
            return Err(Errno::EMSGSIZE);
        }
        let cost = sys::ioctl_int(self.0.as_fd(), SIOCOUTQ)?;
        let mut left = len;
        while left > 0 {
            left -= recv(self.1.as_raw_fd(), &mut room, MsgFlags::empty())?;
        }
        Ok(cost as usize)
    }
}

/// How large the pieces were of which `len` bytes consist that cost `charge`, if all were of one size; as large as may be
/// where that is not known.
pub(super) fn piece(len: usize, charge: u32) -> usize {
    if charge == 0 || len == 0 {
        return usize::MAX;
    }
    found(len, charge as usize).unwrap_or(usize::MAX)
}

fn found(len: usize, charge: usize) -> nix::Result<usize> {
    /// More does not go into a socket that nobody has made larger.
    const MOST: usize = 64 << 10;
    let scale = Scale::new()?;
    let mut best = (usize::MAX, usize::MAX);
    let mut weigh = |piece: usize| -> nix::Result<usize> {
        let all = len.div_ceil(piece) * scale.cost(piece)?;
        // Rather too much: who could not write must not be able to.
        let error = if all < charge {
            (charge - all) * 2
        } else {
            all - charge
        };
        best = best.min((error, piece));
        Ok(all)
    };
    // The smaller they are, the more they cost.
    let (mut small, mut large) = (1, len.min(MOST));
    while small < large {
        let piece = (small + large) / 2;
        if weigh(piece)? > charge {
            small = piece + 1;
        } else {
            large = piece;
        }
    }
    weigh(small)?;
    let sizes = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n <= MOST);
    for size in sizes {
        // So many pieces, if they cost as much as one of this size.
        let count = (charge / scale.cost(size)?).max(1);
        let piece = len.div_ceil(count);
        if piece <= MOST {
            weigh(piece)?;
        }
    }
    Ok(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_by_what_they_cost() {
        let scale = Scale::new().unwrap();
        for size in [1, 77, 1000, 4096, 5000, 30000] {
            let count = 60000 / size;
            let charge = scale.cost(size).unwrap() * count;
            let again = piece(size * count, charge as u32);
            let cost = (size * count).div_ceil(again) * scale.cost(again).unwrap();
            let off = cost.abs_diff(charge);
            assert!(
                off * 50 <= charge,
                "of {size} bytes, {cost} for {charge}, in pieces of {again}"
            );
        }
        assert_eq!(piece(5, 0), usize::MAX);
    }
}

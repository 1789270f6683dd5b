//! Tun and tap devices: made, attached to, and looked at through their descriptors.

use super::{Sys, ioctl_bytes, ioctl_int, ioctl_number, owned};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::{BorrowedFd, OwnedFd};

// IFF_* of TUNSETIFF.
pub const TAP: u32 = 2;
pub const MULTI_QUEUE: u32 = 0x100;
pub const PERSIST: u32 = 0x800;
pub const NO_PI: u32 = 0x1000;
pub const VNET_HDR: u32 = 0x4000;

/// Of TUNGETIFF and TUNSETQUEUE: the queue is off the device for the time being.
pub const DETACH_QUEUE: u32 = 0x400;

const SETIFF: u64 = 0x4004_54ca;
const SETQUEUE: u64 = 0x4004_54d9;
const SETPERSIST: u64 = 0x4004_54cb;
const SETOWNER: u64 = 0x4004_54cc;
const SETGROUP: u64 = 0x4004_54ce;
const GETIFF: u64 = 0x8004_54d2;
const SETIFINDEX: u64 = 0x4004_54da;
const GETSNDBUF: u64 = 0x8004_54d3;
const SETSNDBUF: u64 = 0x4004_54d4;
const GETVNETHDRSZ: u64 = 0x8004_54d7;
const SETVNETHDRSZ: u64 = 0x4004_54d8;
const GETDEVNETNS: u64 = 0x54e3;

/// A descriptor that is attached to no device yet.
pub fn open() -> Sys<OwnedFd> {
    nix::fcntl::open("/dev/net/tun", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
}

/// Attaches it to the device of this name in the network namespace it was opened in, which is made if it is not
/// there, then with this number.
pub fn attach(tun: BorrowedFd<'_>, name: &str, flags: u32, index: Option<i32>) -> Sys<()> {
    if let Some(index) = index {
        ioctl_bytes(tun, SETIFINDEX, &mut index.to_ne_bytes())?;
    }
    ioctl_bytes(tun, SETIFF, &mut request(name, flags & !PERSIST)).map(drop)
}

/// `struct ifreq`: a name and flags.
fn request(name: &str, flags: u32) -> [u8; 40] {
    let mut request = [0u8; 40];
    let length = name.len().min(15);
    request[..length].copy_from_slice(&name.as_bytes()[..length]);
    request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
    request
}

/// Takes its queue off the device for the time being.
pub fn detach(tun: BorrowedFd<'_>) -> Sys<()> {
    ioctl_bytes(tun, SETQUEUE, &mut request("", DETACH_QUEUE)).map(drop)
}

/// Whether the device stays without a descriptor, and who may attach to it (-1 for anybody with the right to).
pub fn set(tun: BorrowedFd<'_>, flags: u32, owner: i64, group: i64) -> Sys<()> {
    if owner >= 0 {
        ioctl_number(tun, SETOWNER, owner as u64)?;
    }
    if group >= 0 {
        ioctl_number(tun, SETGROUP, group as u64)?;
    }
    ioctl_number(tun, SETPERSIST, u64::from(flags & PERSIST != 0)).map(drop)
}

/// Name and flags of the device it is attached to. [`NO_PI`] says nothing there: it stands for the absence of a filter too.
pub fn attached(tun: BorrowedFd<'_>) -> Sys<(String, u32)> {
    let mut request = [0u8; 40];
    ioctl_bytes(tun, GETIFF, &mut request)?;
    let name = request[..16].split(|b| *b == 0).next().unwrap_or_default();
    let flags = u16::from_ne_bytes([request[16], request[17]]);
    Ok((String::from_utf8_lossy(name).into_owned(), u32::from(flags)))
}

/// The network namespace of the device it is attached to.
pub fn netns(tun: BorrowedFd<'_>) -> Sys<OwnedFd> {
    ioctl_number(tun, GETDEVNETNS, 0).map(owned)
}

/// Length of the virtio header.
pub fn header(tun: BorrowedFd<'_>) -> Sys<i32> {
    ioctl_int(tun, GETVNETHDRSZ)
}

/// How many bytes may wait to be sent.
pub fn room(tun: BorrowedFd<'_>) -> Sys<i32> {
    ioctl_int(tun, GETSNDBUF)
}

/// Sets both, where they are not so already.
pub fn set_sizes(tun: BorrowedFd<'_>, header_size: i32, room_size: i32) -> Sys<()> {
    if header(tun)? != header_size {
        ioctl_bytes(tun, SETVNETHDRSZ, &mut header_size.to_ne_bytes())?;
    }
    if room(tun)? != room_size {
        ioctl_bytes(tun, SETSNDBUF, &mut room_size.to_ne_bytes())?;
    }
    Ok(())
}

//! Loop devices (loop(4)): what they show, and attaching a file to one.

use super::{Sys, ioctl_number, raw};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Length of `struct loop_info64`, and where things lie in it.
const INFO: usize = 232;
const DEVICE: usize = 0;
const INODE: usize = 8;
const OFFSET: usize = 24;
const LIMIT: usize = 32;
const FLAGS: usize = 52;
const NAME: usize = 56;
const NAME_LENGTH: usize = 64;

// LO_FLAGS_*
pub const READ_ONLY: u32 = 1;
pub const AUTOCLEAR: u32 = 4;

/// What a loop device shows of which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub device: u64,
    pub inode: u64,
    pub offset: u64,
    /// 0 for none.
    pub limit: u64,
    pub flags: u32,
}

/// What the loop device shows; ENXIO if nothing.
pub fn shown(device: BorrowedFd<'_>) -> Sys<Shown> {
    const GET_STATUS64: u64 = 0x4c05;
    let mut info = [0u8; INFO];
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, which is as long as the buffer.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [
                device.as_raw_fd() as u64,
                GET_STATUS64,
                info.as_mut_ptr() as u64,
                0,
                0,
                0,
            ],
        )
    }?;
    let word = |at: usize| info[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    Ok(Shown {
        device: word(DEVICE),
        inode: word(INODE),
        offset: word(OFFSET),
        limit: word(LIMIT),
        flags: info[FLAGS..FLAGS + 4].try_into().map_or(0, u32::from_ne_bytes),
    })
}

/// Has a loop device that shows nothing show a file, in blocks of this size. Since Linux 5.8; EBUSY if it is in use.
pub fn configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    name: &[u8],
    block: u32,
    shown: Shown,
) -> Sys<()> {
    const CONFIGURE: u64 = 0x4c0a;
    // struct loop_config: the descriptor, the size of a block, the information, and room for more.
    let mut config = [0u8; 8 + INFO + 64];
    config[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    config[4..8].copy_from_slice(&block.to_ne_bytes());
    let info = &mut config[8..8 + INFO];
    info[OFFSET..OFFSET + 8].copy_from_slice(&shown.offset.to_ne_bytes());
    info[LIMIT..LIMIT + 8].copy_from_slice(&shown.limit.to_ne_bytes());
    info[FLAGS..FLAGS + 4].copy_from_slice(&shown.flags.to_ne_bytes());
    let length = name.len().min(NAME_LENGTH - 1);
    info[NAME..NAME + length].copy_from_slice(&name[..length]);
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which is as long as the buffer.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [
                device.as_raw_fd() as u64,
                CONFIGURE,
                config.as_ptr() as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// The number of a loop device that shows nothing.
pub fn free() -> Sys<i64> {
    const GET_FREE: u64 = 0x4c82;
    let control: OwnedFd = nix::fcntl::open(
        "/dev/loop-control",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    match ioctl_number(control.as_fd(), GET_FREE, 0)? {
        number if number >= 0 => Ok(number),
        _ => Err(Errno::ENODEV),
    }
}

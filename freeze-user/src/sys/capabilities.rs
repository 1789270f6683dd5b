//! capget(2) and capset(2), for which no crate is needed to give some up.

use super::{Sys, raw};

/// CAP_SYS_ADMIN.
pub const SYS_ADMIN: u32 = 1 << 21;

/// Takes capabilities, bits of the first word, away from the calling thread, and from it alone. With none it has new
/// credentials that say the same.
pub fn give_up(capabilities: u32) -> Sys<()> {
    // struct __user_cap_header_struct of version 3, and two of __user_cap_data_struct.
    let header = [0x2008_0522u32, 0];
    let mut sets = [0u32; 6];
    // SAFETY: the structures have the sizes of version 3 and live through the calls.
    unsafe {
        raw(
            libc::SYS_capget,
            [header.as_ptr() as u64, sets.as_mut_ptr() as u64, 0, 0, 0, 0],
        )?;
        sets[0] &= !capabilities;
        raw(
            libc::SYS_capset,
            [header.as_ptr() as u64, sets.as_ptr() as u64, 0, 0, 0, 0],
        )
        .map(drop)
    }
}

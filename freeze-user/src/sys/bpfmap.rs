//! eBPF maps: made, looked into, filled and frozen.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::{Sys, owned, raw};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const CREATE: u64 = 0;
const LOOKUP: u64 = 1;
const UPDATE: u64 = 2;
const NEXT_KEY: u64 = 4;
const BY_ID: u64 = 14;
const INFO: u64 = 15;
const FREEZE: u64 = 22;

/// What struct bpf_map_info says of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
    pub name: Vec<u8>,
    /// Ids of types of keys and values, of a network device, of a kernel structure: 0 for none.
    pub types: [u32; 4],
    pub extra: u64,
}

fn bpf(command: u64, attr: &mut [u64]) -> Sys<i64> {
    // SAFETY: private; every caller passes an attr whose pointers lead to buffers that live through the call and are as
    // long as the map's keys and values are.
    unsafe {
        raw(
            libc::SYS_bpf,
            [
                command,
                attr.as_mut_ptr() as u64,
                size_of_val(attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
}

/// BPF_OBJ_GET_INFO_BY_FD.
pub fn info(map: BorrowedFd<'_>) -> Sys<MapInfo> {
    let mut out = [0u32; 32];
    let length = size_of_val(&out) as u64;
    let mut attr = [
        u64::from(map.as_raw_fd() as u32) | length << 32,
        out.as_mut_ptr() as u64,
    ];
    bpf(INFO, &mut attr)?;
    let name: Vec<u8> = out[6..10].iter().flat_map(|w| w.to_ne_bytes()).collect();
    Ok(MapInfo {
        kind: out[0],
        id: out[1],
        key: out[2],
        value: out[3],
        entries: out[4],
        flags: out[5],
        name: name.into_iter().take_while(|b| *b != 0).collect(),
        // ifindex, btf_vmlinux_value_type_id, btf_key_type_id, btf_value_type_id.
        types: [out[10], out[11], out[17], out[18]],
        extra: u64::from(out[20]) | u64::from(out[21]) << 32,
    })
}

/// BPF_MAP_GET_FD_BY_ID; `access` may hold BPF_F_RDONLY or BPF_F_WRONLY.
pub fn by_id(id: u32, access: u32) -> Sys<OwnedFd> {
    let mut attr = [u64::from(id), u64::from(access)];
    bpf(BY_ID, &mut attr).map(owned)
}

/// BPF_MAP_CREATE of a map as `info` has it, without types.
pub fn create(info: &MapInfo) -> Sys<OwnedFd> {
    let mut words = [0u32; 20];
    words[..5].copy_from_slice(&[info.kind, info.key, info.value, info.entries, info.flags]);
    let mut name = [0u8; 16];
    let length = info.name.len().min(15);
    name[..length].copy_from_slice(&info.name[..length]);
    for (word, four) in words[7..11].iter_mut().zip(name.chunks_exact(4)) {
        *word = u32::from_ne_bytes(four.try_into().unwrap_or_default());
    }
    words[16] = info.extra as u32;
    words[17] = (info.extra >> 32) as u32;
    let mut attr: Vec<u64> = words
        .chunks_exact(2)
        .map(|w| u64::from(w[0]) | u64::from(w[1]) << 32)
        .collect();
    bpf(CREATE, &mut attr).map(owned)
}

/// All keys and values of a map whose keys and values have these sizes.
pub fn read(map: BorrowedFd<'_>, key: usize, value: usize) -> Sys<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = u64::from(map.as_raw_fd() as u32);
    let mut out: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    loop {
        let before = out.last().map_or(0, |(k, _)| k.as_ptr() as u64);
        let mut next = vec![0u8; key];
        match bpf(NEXT_KEY, &mut [fd, before, next.as_mut_ptr() as u64]) {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(out),
            Err(e) => return Err(e),
        }
        let mut found = vec![0u8; value];
        let mut attr = [fd, next.as_ptr() as u64, found.as_mut_ptr() as u64, 0];
        bpf(LOOKUP, &mut attr)?;
        out.push((next, found));
    }
}

/// Puts one value into a map; key and value must have the sizes the map was made with.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Sys<()> {
    let now = info(map)?;
    if (key.len(), value.len()) != (now.key as usize, now.value as usize) {
        return Err(Errno::EINVAL);
    }
    let fd = u64::from(map.as_raw_fd() as u32);
    bpf(UPDATE, &mut [fd, key.as_ptr() as u64, value.as_ptr() as u64, 0]).map(drop)
}

/// BPF_MAP_FREEZE: from now on user space cannot change it.
pub fn freeze(map: BorrowedFd<'_>) -> Sys<()> {
    bpf(FREEZE, &mut [u64::from(map.as_raw_fd() as u32)]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_map_is_made_and_read() {
        let wanted = MapInfo {
            kind: 1,
            key: 4,
            value: 12,
            entries: 10,
            name: b"some_name".to_vec(),
            ..MapInfo::default()
        };
        let Ok(map) = create(&wanted) else { return };
        let got = info(map.as_fd()).unwrap();
        assert_eq!((got.kind, got.key, got.value, got.entries), (1, 4, 12, 10));
        assert_eq!(got.name, b"some_name");
        update(map.as_fd(), b"abcd", b"123456789012").unwrap();
        update(map.as_fd(), b"efgh", b"abcdefghijkl").unwrap();
        assert_eq!(update(map.as_fd(), b"x", b""), Err(Errno::EINVAL));
        let mut all = read(by_id(got.id, 0).unwrap().as_fd(), 4, 12).unwrap();
        all.sort();
        assert_eq!(all[0], (b"abcd".to_vec(), b"123456789012".to_vec()));
        assert_eq!(all[1], (b"efgh".to_vec(), b"abcdefghijkl".to_vec()));
    }
}

//! eBPF maps that are plain tables: kind, sizes, flags, name, contents, whether they are frozen.

use super::pipe::Bytes;
use super::{FdKind, Placed, Source, object_space};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid, SpaceId};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View, command_of};
use crate::sys::bpfmap::{MapInfo, by_id, create, freeze, info, read, update};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

#[derive(Debug)]
pub struct BpfMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which map: descriptions of one map have the same number.
    pub map: SpaceId,
    /// Access mode of this description.
    pub flags: i32,
    /// What the map is like, with the first of its descriptions.
    pub table: Option<Table>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
    pub extra: u64,
    pub name: Bytes,
    pub frozen: bool,
    /// Keys and values, in the map's order.
    pub contents: Vec<(Bytes, Bytes)>,
}

/// Hash, array, LRU hash, longest-prefix trie: what holds plain bytes and shows them all.
const PLAIN: [u32; 4] = [1, 2, 9, 11];
const RDONLY: u32 = 1 << 3;
const WRONLY: u32 = 1 << 4;
const NUMA_NODE: u32 = 1 << 2;
const MMAPABLE: u32 = 1 << 10;

/// Who else on the machine has a descriptor of this map, and its number. Pins and programs that use it are not seen.
fn holder_outside(id: u32, view: &View) -> Option<(Pid, i32)> {
    let line = format!("map_id:\t{id}");
    let mut others = view.others(|other| other.link == b"anon_inode:bpf-map");
    let other = others.find(|o| {
        // Whoever ends meanwhile holds nothing that could be named.
        let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", o.pid, o.fd));
        text.is_ok_and(|text| text.lines().any(|l| l == line))
    })?;
    Some((other.pid, other.fd))
}

impl FdKind for BpfMap {
    const TAG: &'static str = "bpf-map";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "eBPF maps of plain tables (hash, array, LRU hash without its order, prefix trie): sizes, flags, name, \
        contents, frozen or not; not maps of other kinds, with types (BTF), for one NUMA node, or \
        held outside too; a pin, or a program that uses the map, keeps the old one";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("bpf-map")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let number = |key: &str| {
            let text = fd.info.get(key)?;
            match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        let remedy = "let the program close it before the checkpoint";
        let (kind, flags) = (number("map_type"), number("map_flags").unwrap_or(0));
        match (kind, number("map_id")) {
            (Some(kind), Some(_)) if !PLAIN.contains(&kind) => out.push(
                fd.blocker()
                    .why(format!(
                        "an eBPF map of kind {kind} is not carried, only plain tables are"
                    ))
                    .remedy(remedy),
            ),
            (Some(_), Some(_)) if flags & (NUMA_NODE | MMAPABLE) != 0 => out.push(
                fd.blocker()
                    .why("an eBPF map for one NUMA node, or to be mapped, is not carried")
                    .remedy(remedy),
            ),
            (Some(_), Some(id)) => match by_id(id, 0).and_then(|m| info(m.as_fd())) {
                Ok(info) if info.types != [0; 4] => out.push(
                    fd.blocker()
                        .why("an eBPF map with types (BTF) or of a device is not carried")
                        .remedy(remedy),
                ),
                Ok(_) => out.extend(holder_outside(id, view).map(|(pid, at)| {
                    fd.blocker()
                        .why(format!(
                            "the map is also held outside the checkpoint, by pid {pid} ({}) as fd {at}: what comes back \
                             would be another map",
                            command_of(pid)
                        ))
                        .remedy(format!("freeze that process too (--also-freeze {pid})"))
                        .held_by(pid)
                })),
                Err(e) => out.push(
                    fd.blocker()
                        .why(format!("the map cannot be looked into: {e}"))
                        .remedy("run freeze with CAP_SYS_ADMIN"),
                ),
            },
            _ => out.push(
                fd.blocker()
                    .why("the kernel does not show what map it is")
                    .remedy(remedy),
            ),
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let name = || fd.label();
        let here = from.process.fd(fd.fd)?;
        let found = info(here.as_fd()).on("bpf(BPF_OBJ_GET_INFO_BY_FD)", name)?;
        // All of them have the same inode: the map's own number tells them apart.
        const DEVICE: u64 = u32::MAX as u64 - 2;
        let table = match from.shared.first_sight(DEVICE, u64::from(found.id)) {
            true => {
                // A descriptor of any access leads to one that can be read.
                let open = by_id(found.id, 0).on("bpf(BPF_MAP_GET_FD_BY_ID)", name)?;
                let contents = read(open.as_fd(), found.key as usize, found.value as usize)
                    .on("bpf(BPF_MAP_LOOKUP_ELEM)", name)?;
                Some(Table {
                    kind: found.kind,
                    key: found.key,
                    value: found.value,
                    entries: found.entries,
                    flags: found.flags,
                    extra: found.extra,
                    name: Bytes(found.name),
                    frozen: fd.info.get("frozen").is_some_and(|f| f != "0"),
                    contents: contents.into_iter().map(|(k, v)| (Bytes(k), Bytes(v))).collect(),
                })
            }
            false => None,
        };
        Ok(Record {
            map: object_space(DEVICE, u64::from(found.id)),
            flags: fd.flags(),
            table,
        })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || "an eBPF map";
        if let Some(table) = &record.table {
            let made = table.make()?;
            nest.state::<Made>().maps.insert(record.map, made);
        }
        let Some(made) = nest.state::<Made>().maps.get(&record.map) else {
            return Err(crate::error::Error::Image {
                file: nest.image.path().to_owned(),
                offset: None,
                expected: "the contents of an eBPF map before its other descriptions".into(),
                found: "no record of it".into(),
            });
        };
        let access = match record.flags & libc::O_ACCMODE {
            libc::O_RDONLY => RDONLY,
            libc::O_WRONLY => WRONLY,
            _ => 0,
        };
        let id = info(made.as_fd()).on("bpf(BPF_OBJ_GET_INFO_BY_FD)", name)?.id;
        by_id(id, access).on("bpf(BPF_MAP_GET_FD_BY_ID)", name)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

impl Table {
    fn make(&self) -> Result<OwnedFd> {
        let name = || "an eBPF map";
        let wanted = MapInfo {
            kind: self.kind,
            id: 0,
            key: self.key,
            value: self.value,
            entries: self.entries,
            flags: self.flags,
            name: self.name.0.clone(),
            types: [0; 4],
            extra: self.extra,
        };
        let map = create(&wanted).on("bpf(BPF_MAP_CREATE)", name)?;
        for (key, value) in &self.contents {
            update(map.as_fd(), &key.0, &value.0).on("bpf(BPF_MAP_UPDATE_ELEM)", name)?;
        }
        if self.frozen {
            freeze(map.as_fd()).on("bpf(BPF_MAP_FREEZE)", name)?;
        }
        Ok(map)
    }
}

/// Maps made so far, each kept open until the nest is done.
#[derive(Debug, Default)]
struct Made {
    maps: BTreeMap<SpaceId, OwnedFd>,
}

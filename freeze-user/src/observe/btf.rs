//! The running kernel's type information (BTF): where a member lies in a structure, what can be attached to.
//!
//! Format: Documentation/bpf/btf.rst.

use crate::error::{Context, Error, Result};
use crate::sys::bpf::Constant;
use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;

/// Types of one kernel, by number and by name.
#[derive(Debug)]
pub struct Btf {
    data: Data,
    /// Where each type begins in `data`; type 0 is `void` and has none.
    types: Vec<u32>,
    strings: (usize, usize),
}

/// Where they are: mapped from the kernel, or read.
#[derive(Debug)]
enum Data {
    Mapped(Constant),
    Read(Vec<u8>),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Data::Mapped(data) => data,
            Data::Read(data) => data,
        }
    }
}

/// One type as it is stored.
#[derive(Clone, Copy, Debug)]
struct Type {
    at: usize,
    name: u32,
    info: u32,
    /// Size or referred-to type, by kind.
    value: u32,
}

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn members(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Bytes that follow the 12 common ones.
    fn tail(self) -> usize {
        match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => self.members() * 12,
            kind::ENUM | kind::FUNC_PROTO => self.members() * 8,
            _ => 0,
        }
    }
}

impl Btf {
    /// That of the running kernel.
    pub fn running() -> Result<Btf> {
        const PATH: &str = "/sys/kernel/btf/vmlinux";
        let data = match Constant::kernel_types(PATH) {
            Ok(mapped) => Data::Mapped(mapped),
            Err(_) => Data::Read(std::fs::read(PATH).on("read", || PATH)?),
        };
        Btf::of(data).ok_or_else(|| Error::Image {
            file: PATH.into(),
            offset: None,
            expected: "BTF, little-endian, version 1".into(),
            found: "something else".into(),
        })
    }

    /// `None` if it is not BTF of the known version, or contradicts itself.
    pub fn parse(data: Vec<u8>) -> Option<Btf> {
        Btf::of(Data::Read(data))
    }

    fn of(data: Data) -> Option<Btf> {
        if data.get(..3)? != [0x9f, 0xeb, 1] {
            return None;
        }
        let header = u32_at(&data, 4)? as usize;
        let section = |at| -> Option<(usize, usize)> {
            let start = header.checked_add(u32_at(&data, at)? as usize)?;
            let end = start.checked_add(u32_at(&data, at + 4)? as usize)?;
            (end <= data.len()).then_some((start, end))
        };
        let (mut at, end) = section(8)?;
        let strings = section(16)?;
        // A type takes some twenty bytes.
        let mut types = Vec::with_capacity(end.saturating_sub(at) / 16);
        types.push(0);
        while at < end {
            types.push(at as u32);
            let t = type_at(&data, at)?;
            at = at.checked_add(12 + t.tail())?;
        }
        (at == end).then_some(Btf { data, types, strings })
    }

    /// The offset in bytes of a member, also one inside unnamed structures and unions.
    pub fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let name = member.as_bytes();
        let bits = self
            .all()
            .filter(|(_, t)| t.kind() == kind::STRUCT && self.is_named(t.name, structure.as_bytes()))
            .find_map(|(_, t)| self.find_member(t, name, 8))?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// The offsets of many members (or of variables of a section), of those that there are, in one look at all types.
    pub fn offsets<'a>(&self, wanted: &[(&'a str, &'a str)]) -> HashMap<(&'a str, &'a str), u32> {
        let structures: BTreeSet<&str> = wanted.iter().map(|(s, _)| *s).collect();
        let mut out = HashMap::new();
        for (_, t) in self.all().filter(|(_, t)| t.kind() == kind::STRUCT) {
            let Some(structure) = structures.iter().find(|s| self.is_named(t.name, s.as_bytes())) else {
                continue;
            };
            for asked in wanted.iter().filter(|(s, _)| s == structure) {
                let bits = self.find_member(t, asked.1.as_bytes(), 8);
                if let Some(bits) = bits.filter(|bits| bits % 8 == 0) {
                    out.entry(*asked).or_insert(bits / 8);
                }
            }
        }
        for (section, variable) in wanted.iter().filter(|(s, _)| s.starts_with('.')) {
            out.extend(
                self.variable(section, variable)
                    .map(|at| ((*section, *variable), at)),
            );
        }
        out
    }

    /// The offset in bytes of a variable in a section (`.data..percpu`).
    pub fn variable(&self, section: &str, variable: &str) -> Option<u32> {
        let named = |t: &Type, name: &str| self.is_named(t.name, name.as_bytes());
        let (id, _) = self
            .all()
            .find(|(_, t)| t.kind() == kind::VAR && named(t, variable))?;
        let (_, t) = self
            .all()
            .find(|(_, t)| t.kind() == kind::DATASEC && named(t, section))?;
        let mut entries = (0..t.members()).map(|n| t.at + 12 + n * 12);
        let at = entries.find(|at| u32_at(&self.data, *at) == Some(id))?;
        u32_at(&self.data, at + 4)
    }

    /// The numbers of functions (`true`) and typedefs (`false`) by name, of those that are asked for.
    pub fn ids<'a>(&self, functions: bool, names: &[&'a str]) -> HashMap<&'a str, u32> {
        let want = if functions { kind::FUNC } else { kind::TYPEDEF };
        let mut out = HashMap::new();
        for (id, t) in self.all().filter(|(_, t)| t.kind() == want) {
            if let Some(asked) = names.iter().find(|n| self.is_named(t.name, n.as_bytes())) {
                out.entry(*asked).or_insert(id);
            }
        }
        out
    }

    fn all(&self) -> impl Iterator<Item = (u32, Type)> {
        let types = self.types.iter().enumerate().skip(1);
        types.filter_map(|(id, &at)| Some((id as u32, type_at(&self.data, at as usize)?)))
    }

    /// Bit offset of the member; `depth` bounds the descent into a BTF that refers to itself.
    fn find_member(&self, t: Type, name: &[u8], depth: u32) -> Option<u32> {
        let bit_fields = t.info >> 31 == 1;
        for i in 0..t.members() {
            let at = t.at + 12 + i * 12;
            let member = u32_at(&self.data, at)?;
            let inner = u32_at(&self.data, at + 4)?;
            let place = u32_at(&self.data, at + 8)?;
            let offset = if bit_fields { place & 0x00ff_ffff } else { place };
            if member != 0 {
                if self.is_named(member, name) {
                    return Some(offset);
                }
            } else if depth > 0
                && let Some(unnamed) = self.plain(inner)
                && matches!(unnamed.kind(), kind::STRUCT | kind::UNION)
                && let Some(deeper) = self.find_member(unnamed, name, depth - 1)
            {
                return offset.checked_add(deeper);
            }
        }
        None
    }

    /// The type behind const, volatile, typedef and tags.
    fn plain(&self, mut id: u32) -> Option<Type> {
        for _ in 0..16 {
            let t = type_at(
                &self.data,
                *self.types.get(id as usize).filter(|&&at| at != 0)? as usize,
            )?;
            match t.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = t.value
                }
                _ => return Some(t),
            }
        }
        None
    }

    /// Whether this is the name there, without a look at the whole of another.
    fn is_named(&self, offset: u32, name: &[u8]) -> bool {
        let at = self.strings.0 + offset as usize;
        let text = self.data.get(at..self.strings.1);
        text.is_some_and(|t| t.starts_with(name) && t.get(name.len()) == Some(&0))
    }
}

fn type_at(data: &[u8], at: usize) -> Option<Type> {
    Some(Type {
        at,
        name: u32_at(data, at)?,
        info: u32_at(data, at + 4)?,
        value: u32_at(data, at + 8)?,
    })
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s { int a; union { int b; const struct { int c; int d; }; }; }` and `typedef struct s t`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0c\0d\0t\0";
        let mut types: Vec<u32> = Vec::new();
        let composite = |kind: u32, members: u32| kind << 24 | members;
        types.extend([1, kind::INT << 24, 4, 0x20]); // 1
        types.extend([0, composite(kind::STRUCT, 2), 8, 11, 1, 0, 13, 1, 32]); // 2
        types.extend([0, kind::CONST << 24, 2]); // 3
        types.extend([0, composite(kind::UNION, 2), 8, 9, 1, 0, 0, 3, 0]); // 4
        types.extend([5, composite(kind::STRUCT, 2), 12, 7, 1, 0, 0, 4, 32]); // 5
        types.extend([15, kind::TYPEDEF << 24, 5]); // 6
        types.extend([13, kind::VAR << 24, 1, 1]); // 7
        types.extend([7, composite(kind::DATASEC, 1), 64, 7, 48, 4]); // 8
        let mut out = vec![0x9f, 0xeb, 1, 0];
        let length = types.len() as u32 * 4;
        for word in [24, 0, length, length, strings.len() as u32].iter().chain(&types) {
            out.extend(word.to_le_bytes());
        }
        out.extend(strings);
        out
    }

    #[test]
    fn members_are_found_inside_unnamed_structures() {
        let btf = Btf::parse(sample()).unwrap();
        let at = |m| btf.offset("s", m);
        assert_eq!(
            (at("a"), at("b"), at("c"), at("d"), at("e")),
            (Some(0), Some(4), Some(4), Some(8), None)
        );
        assert_eq!(btf.offset("nothing", "a"), None);
        assert_eq!(btf.ids(false, &["t", "u"]), HashMap::from([("t", 6)]));
        let many = btf.offsets(&[("s", "d"), ("s", "e"), ("s", "a")]);
        assert_eq!(many, HashMap::from([(("s", "d"), 8), (("s", "a"), 0)]));
        assert_eq!((btf.variable("a", "d"), btf.variable("a", "t")), (Some(48), None));
    }

    #[test]
    fn damaged_btf_is_refused_or_answers_nothing() {
        let whole = sample();
        for cut in 0..whole.len() {
            assert!(Btf::parse(whole[..cut].to_vec()).is_none(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bent = whole.clone();
                bent[at] ^= 1 << bit;
                if let Some(btf) = Btf::parse(bent) {
                    let _ = btf.offset("s", "d");
                }
            }
        }
    }

    #[test]
    fn the_running_kernel_has_every_member() {
        let Ok(btf) = Btf::running() else {
            return assert!(!std::path::Path::new("/sys/kernel/btf/vmlinux").exists());
        };
        for (_, structure, member) in freeze_common::Member::ALL {
            assert!(btf.offset(structure, member).is_some(), "{structure}.{member}");
        }
        assert_eq!(btf.offset("task_struct", "no such member"), None);
    }
}

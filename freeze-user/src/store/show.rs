//! A checkpoint for a human's eyes: what `freeze show` prints, records of unknown kinds too.

use super::index::{OWN, ZERO};
use super::manifest::{Manifest, utc};
use super::opened::Opened;
use super::pages::Form;
use crate::ids::SpaceId;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// A checkpoint for a human's eyes.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub path: PathBuf,
    pub manifest: Manifest,
    pub spaces: Vec<ShownSpace>,
    pub records: Vec<ShownRecord>,
}

/// A record for a human's eyes.
#[derive(Clone, Debug, Serialize)]
pub struct ShownRecord {
    pub tag: String,
    pub version: u16,
    pub offset: u64,
    pub record: serde_json::Value,
}

/// How many pages a space has, and where.
#[derive(Clone, Debug, Serialize)]
pub struct ShownSpace {
    pub space: SpaceId,
    pub name: String,
    pub runs: u64,
    pub pages: u64,
    pub zero: u64,
    pub own: u64,
    pub inherited: u64,
}

impl Default for ShownSpace {
    fn default() -> ShownSpace {
        ShownSpace {
            space: SpaceId(0),
            name: String::new(),
            runs: 0,
            pages: 0,
            zero: 0,
            own: 0,
            inherited: 0,
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.manifest;
        writeln!(f, "checkpoint {} in {}", m.id, self.path.display())?;
        writeln!(
            f,
            "  made      {} by freeze {}, format {}",
            utc(m.created_ms),
            m.writer,
            m.format
        )?;
        writeln!(f, "  command   {}", m.about.command.join(" "))?;
        if let Some(group) = &m.about.group {
            writeln!(f, "  group     {group}")?;
        }
        let roots: Vec<String> = m.about.roots.iter().map(|p| p.to_string()).collect();
        writeln!(
            f,
            "  processes {} (roots: {})",
            m.about.processes,
            roots.join(", ")
        )?;
        writeln!(
            f,
            "  pause     {} µs, of {} µs in all",
            m.about.pause_us, m.about.total_us
        )?;
        if let Some(p) = &m.parent {
            writeln!(f, "  parent    {} ({})", p.id, p.path)?;
        }
        let needs: Vec<&str> = m.chain.iter().map(|a| a.id.as_str()).collect();
        writeln!(
            f,
            "  needs     {}",
            if needs.is_empty() {
                "no other".into()
            } else {
                needs.join(", ")
            }
        )?;
        let c = &m.counts;
        writeln!(
            f,
            "  pages     {}: {} here, {} inherited, {} zero; {} dead, {} copied",
            c.pages, c.own, c.inherited, c.zero, c.dead, c.copied
        )?;
        let form = match m.files.pages.form {
            Form::Hot => "hot".into(),
            Form::Cold { level } => format!("cold, zstd {level}"),
        };
        writeln!(
            f,
            "  bytes     {} of pages ({form}), {} of index, {} of records",
            m.files.pages.bytes, m.files.index.bytes, m.files.records.bytes
        )?;
        for (key, value) in &m.about.notes {
            writeln!(f, "  {key:<9} {value}")?;
        }
        for s in &self.spaces {
            write!(f, "{}: {} pages in {} runs", s.name, s.pages, s.runs)?;
            writeln!(f, " ({} here, {} inherited, {} zero)", s.own, s.inherited, s.zero)?;
        }
        for r in &self.records {
            writeln!(
                f,
                "{} (version {}, at {}): {}",
                r.tag, r.version, r.offset, r.record
            )?;
        }
        Ok(())
    }
}

impl Opened {
    /// All of it that can be shown, records of unknown kinds too.
    pub fn show(&self) -> Shown {
        let records = self.records().iter().map(|f| ShownRecord {
            tag: f.tag.clone(),
            version: f.version,
            offset: f.offset,
            record: f.json(),
        });
        let spaces = self.spaces().map(|space| {
            let mut shown = ShownSpace {
                space,
                name: space.to_string(),
                ..ShownSpace::default()
            };
            for e in self.entries(space).unwrap_or_default() {
                let pages = u64::from(e.pages);
                shown.runs += 1;
                shown.pages += pages;
                *match e.source {
                    ZERO => &mut shown.zero,
                    OWN => &mut shown.own,
                    _ => &mut shown.inherited,
                } += pages;
            }
            shown
        });
        Shown {
            path: self.path().into(),
            manifest: self.manifest().clone(),
            spaces: spaces.collect(),
            records: records.collect(),
        }
    }
}

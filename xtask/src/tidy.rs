//! Checks what the compiler does not: the order of modules, first sentences, twin files, where unsafe may be.

use anyhow::{Context, Result};
use std::path::Path;

/// The modules of freeze-user, each of which names only those before it. ARCHITECTURE.md shows the same list.
const ORDER: &[&str] = &[
    "ids",
    "ospath",
    "error",
    "crew",
    "sys",
    "proc",
    "store",
    "observe",
    "probe",
    "tracee",
    "dirty",
    "nest",
    "kinds",
    "plan",
    "stop",
    "precopy",
    "collect",
    "checkpoint",
    "restore",
    "agent",
    "cli",
    "bin",
];

/// Where unsafe may be, as beginnings of paths.
const UNSAFE: &[&str] = &["freeze-user/src/sys/", "freeze-user/src/tracee/", "freeze-ebpf/"];

/// What lies in kinds/ and is no kind: what they have in common.
const NO_KINDS: &[&str] = &["mod.rs", "ipcspace.rs", "socket.rs"];

/// A file longer than this surely holds two things; a list of tests (`tests.rs`) may be longer.
const LINES: usize = 800;

/// Words that say that something is not finished, taken apart so that this file may name them.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

/// Macros that say the same.
const UNFINISHED_MACROS: &[&str] = &[concat!("todo", "!"), concat!("unimplemented", "!")];

/// Directories that exist on a developer's machine only.
const PRIVATE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/fa", "rm/"),
];

/// A file of the workspace.
#[derive(Clone, Debug)]
struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// Everything that is wrong with the sources below `root`, as `path:line: what`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut sources = Vec::new();
    read_below(root, root, &mut sources)?;
    Ok(judge(&sources))
}

fn read_below(root: &Path, dir: &Path, into: &mut Vec<Source>) -> Result<()> {
    let what = || dir.display().to_string();
    for entry in std::fs::read_dir(dir).with_context(what)? {
        let entry = entry.with_context(what)?;
        let (path, kind) = (entry.path(), entry.file_type().with_context(what)?);
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        } else if kind.is_dir() {
            read_below(root, &path, into)?;
        } else if kind.is_file() {
            // What is not text (a golden image) has nothing to say about style.
            if let Ok(text) = std::fs::read_to_string(&path) {
                let path = path
                    .strip_prefix(root)
                    .unwrap_or(&path)
                    .to_string_lossy()
                    .into_owned();
                into.push(Source { path, text });
            }
        }
    }
    Ok(())
}

fn judge(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        let mut say =
            |line: usize, what: String| faults.push(format!("{}:{}: {what}", source.path, line + 1));
        words(source, &mut say);
        if source.path.ends_with(".rs") {
            let code = code_only(&source.text);
            first_sentence(source, &mut say);
            placed_unsafe(source, &code, &mut say);
            module_order(source, &code, &mut say);
            length(source, &mut say);
        }
    }
    faults.extend(twins(sources));
    faults.sort();
    faults
}

type Say<'a> = &'a mut dyn FnMut(usize, String);

/// Every file opens with one sentence that says what it is.
fn first_sentence(source: &Source, say: Say<'_>) {
    let paragraph: Vec<&str> = source
        .text
        .lines()
        .map_while(|line| line.strip_prefix("//! "))
        .map(str::trim)
        .collect();
    let text = paragraph.join(" ");
    if !(text.ends_with('.') || text.contains(". ")) {
        say(
            0,
            "does not open with a `//!` sentence, ended by a period, that says what it is".into(),
        );
    }
}

/// No unfinished business, nothing that is true on one machine only.
fn words(source: &Source, say: Say<'_>) {
    for (number, line) in source.text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| has_word(line, word)) {
            say(number, format!("{word}: finish it, or file an issue"));
        }
        for mac in UNFINISHED_MACROS.iter().filter(|mac| line.contains(**mac)) {
            say(number, format!("{mac}: finish it"));
        }
        for dir in PRIVATE.iter().filter(|dir| names_dir(line, dir)) {
            say(number, format!("{dir} exists on a developer's machine only"));
        }
    }
}

/// Whether `line` has `word` with no letter, digit or `_` on either side.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// Whether `line` has the absolute directory `dir`, not only a longer path that contains its name.
fn names_dir(line: &str, dir: &str) -> bool {
    line.match_indices(dir).any(|(at, _)| {
        !line[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || "_.-}*".contains(c))
    })
}

/// Unsafe has an address.
fn placed_unsafe(source: &Source, code: &str, say: Say<'_>) {
    if UNSAFE.iter().any(|dir| source.path.starts_with(dir)) {
        return;
    }
    for (number, line) in code.lines().enumerate() {
        if has_word(line, "unsafe") || line.contains("(unsafe_code") {
            say(number, format!("unsafe is allowed in {} only", UNSAFE.join(", ")));
        }
    }
}

/// Nothing names a module that comes later.
fn module_order(source: &Source, code: &str, say: Say<'_>) {
    let Some(inside) = source.path.strip_prefix("freeze-user/src/") else {
        return;
    };
    let place = |module: &str| ORDER.iter().position(|m| *m == module);
    if inside == "lib.rs" {
        let mut last = 0;
        for (number, line) in code.lines().enumerate() {
            let Some(module) = line.strip_prefix("pub mod ").or(line.strip_prefix("mod ")) else {
                continue;
            };
            match place(module.trim_end_matches(';')) {
                None => say(
                    number,
                    format!("{module} has no place in xtask/src/tidy.rs's ORDER"),
                ),
                Some(at) if at < last => say(number, format!("{module} comes after {}", ORDER[last])),
                Some(at) => last = at,
            }
        }
        return;
    }
    let own = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    let Some(here) = place(own) else {
        return say(
            0,
            format!("module {own} has no place in xtask/src/tidy.rs's ORDER"),
        );
    };
    for (number, module) in named(code) {
        // What is no module (an item reexported by lib.rs) is judged where it is defined.
        if place(&module).is_some_and(|there| there > here) {
            say(
                number,
                format!("{own} names {module}, which comes later: see ARCHITECTURE.md"),
            );
        }
    }
}

/// The first names after `crate::`, with their lines; `crate::{a, b::c}` has two.
fn named(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count();
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((line, word(rest)));
            continue;
        };
        let mut depth = 0;
        let mut expected = true;
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => expected = true,
                c if expected && (c.is_alphabetic() || c == '_') => {
                    found.push((
                        line + group[..offset].matches('\n').count(),
                        word(&group[offset..]),
                    ));
                    expected = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// A file much past this length holds two things.
fn length(source: &Source, say: Say<'_>) {
    let lines = source.text.lines().count();
    if lines > LINES && !source.path.ends_with("/tests.rs") {
        say(
            LINES,
            format!("{lines} lines, more than {LINES}: this is two things"),
        );
    }
}

/// Every kind of resource is put to the test in a file of the same name below `tests/tests/`, where it goes
/// through a freeze and a restore, or in its own.
fn twins(sources: &[Source]) -> Vec<String> {
    let tests: Vec<&str> = sources
        .iter()
        .filter_map(|s| s.path.strip_prefix("tests/tests/"))
        .collect();
    if tests.is_empty() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for source in sources {
        let Some(file) = source.path.strip_prefix("freeze-user/src/kinds/") else {
            continue;
        };
        if NO_KINDS.contains(&file) || !file.ends_with(".rs") || source.text.contains("#[cfg(test)]") {
            continue;
        }
        // `kinds/pipe.rs` meets `tests/tests/pipe.rs`, and `kinds/unix/queue.rs` meets `tests/tests/unix.rs`.
        let kind = file.split('/').next().unwrap_or(file).trim_end_matches(".rs");
        if !tests
            .iter()
            .any(|test| test.rsplit('/').next() == Some(&format!("{kind}.rs")))
        {
            faults.push(format!(
                "{}:1: is tested neither here nor by a twin in tests/tests/",
                source.path
            ));
        }
    }
    faults
}

/// The same text with everything in comments, strings and character literals blanked, lines kept.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let blank = |out: &mut Vec<u8>, from: usize, to: usize| {
        for b in &mut out[from..to.min(bytes.len())] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + comment(rest)
        } else if let Some(hashes) = raw_string(bytes, at) {
            let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            let open = hashes + 2;
            let body = rest.get(open..).unwrap_or_default();
            at + open
                + body
                    .windows(close.len())
                    .position(|w| w == close)
                    .unwrap_or(body.len())
                + close.len()
        } else if rest[0] == b'"' {
            at + quoted(rest, b'"')
        } else if rest[0] == b'\'' && is_char(rest) {
            at + quoted(rest, b'\'')
        } else {
            at += 1;
            continue;
        };
        blank(&mut out, at, end);
        at = end;
    }
    // Only whole literals and comments were blanked, byte by byte with ASCII: it is UTF-8 still.
    String::from_utf8_lossy(&out).into_owned()
}

/// The length of a comment in `/* */`, which nests.
fn comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// How many `#` a raw string has whose `r` stands here.
fn raw_string(bytes: &[u8], at: usize) -> Option<usize> {
    let inside_word =
        at > 0 && (bytes[at - 1].is_ascii_alphanumeric() && bytes[at - 1] != b'b' || bytes[at - 1] == b'_');
    if bytes[at] != b'r' || inside_word {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some(hashes)
}

/// The length of a literal that opens and closes with `quote`.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Whether the `'` opens a character and not a lifetime.
fn is_char(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(b) if b.is_ascii() => rest.get(2) == Some(&b'\''),
        Some(_) => rest[2..].iter().take(4).any(|b| *b == b'\''),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of one file, without its path.
    fn faults(path: &str, text: &str) -> Vec<String> {
        let list = judge(&[Source {
            path: path.into(),
            text: text.into(),
        }]);
        list.iter()
            .map(|f| f.strip_prefix(path).unwrap_or(f).to_string())
            .collect()
    }

    #[test]
    fn these_sources_are_tidy() {
        let faults = check(&crate::root()).unwrap();
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn a_later_module_is_not_named() {
        let said = |file: &str, code: &str| {
            faults(
                &format!("freeze-user/src/{file}"),
                &format!("//! A file.\n{code}"),
            )
        };
        assert_eq!(
            said(
                "store/frame.rs",
                "use crate::ids::Pid;\nuse crate::error::{Error, Fate};"
            ),
            [""; 0]
        );
        assert_eq!(said("store/frame.rs", "use crate::plan::Plan;").len(), 1);
        assert_eq!(
            said(
                "plan/mod.rs",
                "use crate::{error::{Error, restore}, kinds,\n stop};"
            )
            .len(),
            1
        );
        assert!(
            said(
                "plan/mod.rs",
                "use crate::{error::{Error, restore}, kinds,\n stop};"
            )[0]
            .starts_with(":3: ")
        );
        assert_eq!(
            said(
                "plan/mod.rs",
                "// crate::restore\nconst X: &str = \"crate::restore\";"
            ),
            [""; 0]
        );
        assert_eq!(said("collect.rs", "fn f() -> crate::restore::Opened {}").len(), 1);
        assert_eq!(said("novelty.rs", "").len(), 1);
        assert_eq!(
            said("lib.rs", "pub mod ids;\npub mod error;\npub mod plan;"),
            [""; 0]
        );
        assert_eq!(said("lib.rs", "pub mod error;\npub mod ids;").len(), 1);
        assert_eq!(said("lib.rs", "pub mod novelty;").len(), 1);
    }

    #[test]
    fn a_file_says_what_it_is() {
        assert_eq!(faults("a.rs", "//! Says so.\nfn f() {}"), [""; 0]);
        assert_eq!(
            faults("a.rs", "//! Says so over\n//! two lines.\n//!\n//! And more"),
            [""; 0]
        );
        assert_eq!(faults("a.rs", "//! No period\n//!\n//! There.").len(), 1);
        assert_eq!(faults("a.rs", "fn f() {}").len(), 1);
    }

    #[test]
    fn unsafe_has_an_address() {
        let block = "//! A file.\nfn f() { unsafe { g() } }";
        assert_eq!(faults("freeze-user/src/sys/mem.rs", block), [""; 0]);
        assert_eq!(faults("freeze-user/src/ids.rs", block).len(), 1);
        assert_eq!(
            faults("tests/tests/a.rs", "//! A file.\n#![allow(unsafe_code)]").len(),
            1
        );
        assert_eq!(
            faults("a.rs", "//! unsafe is a word.\nconst A: &str = r#\"unsafe \"\"#;"),
            [""; 0]
        );
    }

    #[test]
    fn nothing_is_left_unfinished_or_private() {
        for word in UNFINISHED.iter().chain(UNFINISHED_MACROS).chain(PRIVATE) {
            assert_eq!(faults("a.md", &format!("see {word} there")).len(), 1, "{word}");
        }
        assert_eq!(faults("a.sh", concat!("echo TO", "DOS; cd /wo", "rk/")).len(), 1);
        assert_eq!(faults("a.sh", concat!("cd $DIR/wo", "rk/")), [""; 0]);
    }

    #[test]
    fn a_kind_has_its_twin() {
        let source = |path: &str, text: &str| Source {
            path: path.into(),
            text: format!("//! A file.\n{text}"),
        };
        let untested = source("freeze-user/src/kinds/pipe.rs", "");
        let tested = source("freeze-user/src/kinds/pipe.rs", "#[cfg(test)] mod tests {}");
        let (twin, other) = (
            source("tests/tests/pipe.rs", ""),
            source("tests/tests/other.rs", ""),
        );
        assert_eq!(judge(&[untested.clone(), twin]), [""; 0]);
        assert_eq!(judge(&[tested, other.clone()]), [""; 0]);
        assert_eq!(judge(&[untested, other]).len(), 1);
    }

    #[test]
    fn only_code_is_code() {
        let cases = [
            ("a // b\nc", "a     \nc"),
            ("a /* /* b */ */ c", "a               c"),
            ("'x' 'a '\\'' b", "    'a      b"),
            ("\"a\\\"b\" c", "       c"),
            ("r\"a\\\" c br#\"x\"#", "      c b      "),
            ("'é' x", "     x"),
            ("\"open", "     "),
        ];
        for (text, expected) in cases {
            assert_eq!(code_only(text), expected, "{text}");
        }
    }
}

//! Printing: results on stdout, errors and progress on stderr, and no panic when nobody reads either.

use crate::agent::wire::Failure;
use crate::error::Error;
use crate::ids::Pid;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It failed itself.
    Own(Error),
    /// It was refused, and would be refused less if these were frozen too.
    Alone(Error, Vec<Pid>),
    /// The agent would not, or could not.
    Agent(Failure),
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble::Own(e)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Agent(failure)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Own(e) | Trouble::Alone(e, _) => e.fmt(f),
            Trouble::Agent(failure) => failure.fmt(f),
        }
    }
}

pub(super) type Done = Result<ExitCode, Trouble>;

/// Prints the trouble, as JSON on stdout or as a line on stderr, and says with which status to end.
pub(super) fn report(trouble: &Trouble, as_json: bool) -> ExitCode {
    let (kind, reasons, code) = match trouble {
        Trouble::Own(e) | Trouble::Alone(e, _) => {
            let reasons = if let Error::Refused(list) = e {
                json!(list)
            } else {
                json!([])
            };
            (e.kind(), reasons, e.exit_code())
        }
        Trouble::Agent(failure) => (failure.kind(), failure.reasons(), failure.exit_code()),
    };
    if as_json {
        let mut answer = json!({ "error": kind, "message": trouble.to_string(), "reasons": reasons });
        if let Trouble::Alone(_, company) = trouble {
            answer["also_freeze"] = json!(company);
        }
        line(&answer);
    } else {
        warn(trouble);
        if let Trouble::Alone(_, company) = trouble {
            let with: String = company
                .iter()
                .map(|pid| format!(" --also-freeze {pid}"))
                .collect();
            warn(&format_args!("nothing would be held outside any more with{with}"));
        }
    }
    ExitCode::from(code)
}

/// Prints a line on stdout; `false` if nobody reads it any more, which is no error.
pub(super) fn line(text: &dyn fmt::Display) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Prints a value, for machines or for people.
pub(super) fn value<T: Serialize + fmt::Display>(value: &T, as_json: bool) {
    match serde_json::to_string(value) {
        Ok(text) if as_json => line(&text),
        _ => line(&value.to_string().trim_end()),
    };
}

/// Prints a line on stderr: in one write, since a restored program may have the same terminal.
pub(super) fn warn(text: &dyn fmt::Display) {
    let _ = std::io::stderr().write_all(format!("freeze: {text}\n").as_bytes());
}

/// Says on a terminal what takes long; nothing anywhere else.
pub(super) fn progress(text: &dyn fmt::Display) {
    if std::io::stderr().is_terminal() {
        warn(text);
    }
}

/// Some text that the agent has made for people, or the JSON beside it.
pub(super) fn either(answer: &Value, field: &str, as_json: bool) {
    match answer.get("text").and_then(Value::as_str) {
        Some(text) if !as_json => line(&text.trim_end()),
        _ => line(answer.get(field).unwrap_or(&Value::Null)),
    };
}

/// A number of bytes for people.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..10_240 => format!("{n} B"),
        10_240..10_485_760 => format!("{} KiB", n >> 10),
        _ => format!("{} MiB", n >> 20),
    }
}

//! What crosses the agent's socket: varlink messages (JSON ended by a NUL), and the types of `org.freeze.Agent`.
//!
//! The protocol is described at <https://varlink.org/Method-Call>; the interface in `org.freeze.Agent.varlink`.

use crate::agent::policy::OnCrash;
use crate::checkpoint::Report;
use crate::error::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the agent listens unless told otherwise.
pub const SOCKET: &str = "/run/freeze/freezed.sock";

/// The name of the interface.
pub const INTERFACE: &str = "org.freeze.Agent";
/// Its description, as `org.varlink.service` hands it out.
pub const DESCRIPTION: &str = include_str!("org.freeze.Agent.varlink");
/// The interface that describes the others.
pub const SERVICE: &str = "org.varlink.service";
/// Its description, word for word that of the varlink project.
pub const SERVICE_DESCRIPTION: &str = "\
# The Varlink Service Interface is provided by every varlink service. It
# describes the service and the interfaces it implements.
interface org.varlink.service

# Get a list of all the interfaces a service provides and information
# about the implementation.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# Get the description of an interface that is implemented by this service.
method GetInterfaceDescription(interface: string) -> (description: string)

# The requested interface was not found.
error InterfaceNotFound (interface: string)

# The requested method was not found
error MethodNotFound (method: string)

# The interface defines the requested method, but the service does not
# implement it.
error MethodNotImplemented (method: string)

# One of the passed parameters is invalid.
error InvalidParameter (parameter: string)

# Client is denied access
error PermissionDenied ()

# Method is expected to be called with 'more' set to true, but wasn't
error ExpectedMore ()
";

/// A longer call is no call of ours, in bytes.
pub const LONGEST_CALL: usize = 1 << 20;

/// A method call.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Call {
    pub method: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
    /// The caller takes several replies.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// The caller takes none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// The caller wants the connection for another protocol afterwards, which no method here offers.
    #[serde(default, skip_serializing_if = "is_false")]
    pub upgrade: bool,
}

/// A reply, or one of several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
    /// There will be another.
    #[serde(default, skip_serializing_if = "is_false")]
    pub continues: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn is_false(b: &bool) -> bool {
    !b
}

/// A message as it goes over the socket.
pub fn frame<T: Serialize>(message: &T) -> Vec<u8> {
    // Only maps with keys that are no strings cannot be written, and there are none.
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    bytes.push(0);
    bytes
}

/// Why the agent did not do what it was asked: a varlink error.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The error's full name.
    pub name: String,
    pub parameters: Value,
}

impl Failure {
    /// An error of the agent's interface.
    pub fn own(name: &str, message: impl Into<String>) -> Failure {
        Failure {
            name: format!("{INTERFACE}.{name}"),
            parameters: json!({ "message": message.into() }),
        }
    }

    /// An error that every varlink service knows.
    pub fn service(name: &str, parameters: Value) -> Failure {
        Failure {
            name: format!("{SERVICE}.{name}"),
            parameters,
        }
    }

    /// The exit status of the commands for it, the same as for an error of their own.
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            "kernel" => 4,
            "died" => 5,
            "image" => 6,
            "internal" => 70,
            _ => 3,
        }
    }

    /// One word for machines, as [`Error::kind`] has it.
    pub fn kind(&self) -> &'static str {
        match self
            .name
            .strip_prefix(INTERFACE)
            .and_then(|n| n.strip_prefix('.'))
        {
            Some("Kernel") => "kernel",
            Some("Died") => "died",
            Some("Image") => "image",
            Some("Internal") => "internal",
            Some("NotWatched") => "not_watched",
            Some("NotPermitted") => "not_permitted",
            _ => "refused",
        }
    }

    /// The reasons of a refusal.
    pub fn reasons(&self) -> Value {
        self.parameters
            .get("reasons")
            .cloned()
            .unwrap_or_else(|| json!([]))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parameters.get("message").and_then(Value::as_str) {
            Some(message) => f.write_str(message),
            None => write!(f, "the agent says {} {}", self.name, self.parameters),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let name = match &e {
            Error::Refused(_) => "Refused",
            Error::Kernel { .. } => "Kernel",
            Error::Died { .. } => "Died",
            Error::Image { .. } => "Image",
        };
        let mut failure = Failure::own(name, e.to_string());
        if let Error::Refused(list) = &e {
            failure.parameters["reasons"] = json!(list);
        }
        failure
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// A checkpoint of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub id: String,
    pub at_ms: u64,
    pub processes: usize,
    pub threads: usize,
    pub pages: u64,
    pub own_pages: u64,
    pub bytes: u64,
    pub pause_us: u64,
    pub total_us: u64,
}

impl From<&Report> for Checkpoint {
    fn from(r: &Report) -> Checkpoint {
        Checkpoint {
            id: r.id.clone(),
            at_ms: now_ms(),
            processes: r.processes,
            threads: r.threads,
            pages: r.pages,
            own_pages: r.own_pages,
            bytes: r.bytes,
            pause_us: r.pause_us,
            total_us: r.total_us,
        }
    }
}

/// How long the processes of a group stood still, over all checkpoints since the watch began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    /// How many took up to 64 µs, how many of the others up to 128 µs, and so on, doubling; the last count is of all
    /// longer ones.
    pub counts: Vec<u64>,
    pub longest_us: u64,
    /// Nanoseconds of all of them together, by part.
    pub parts_ns: BTreeMap<String, u64>,
    /// How often written pages were found by which means, a process counting once a checkpoint; and what was in the way
    /// of better means.
    pub means: BTreeMap<String, u64>,
}

impl Pauses {
    /// The first limit, in microseconds, and how many there are.
    const SHORTEST: u64 = 64;
    const LIMITS: usize = 16;

    /// Counts one more.
    pub fn add(&mut self, report: &Report, means: &BTreeMap<&'static str, u64>) {
        self.counts.resize(Pauses::LIMITS + 1, 0);
        let at = (0..Pauses::LIMITS).find(|n| report.pause_us <= Pauses::SHORTEST << n);
        self.counts[at.unwrap_or(Pauses::LIMITS)] += 1;
        self.longest_us = self.longest_us.max(report.pause_us);
        for (part, ns) in &report.pause_parts {
            *self.parts_ns.entry((*part).into()).or_default() += ns;
        }
        self.means = means.iter().map(|(name, n)| ((*name).into(), *n)).collect();
    }

    /// Limits in microseconds (none for the last) with their counts, of those that occurred.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let limit = |n: usize| (n < Pauses::LIMITS).then_some(Pauses::SHORTEST << n);
        let all = self.counts.iter().enumerate();
        all.filter(|(_, count)| **count > 0)
            .map(move |(n, count)| (limit(n), *count))
    }
}

/// What a group is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Watching,
    Restoring,
    Crashed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Watching => "watching",
            State::Restoring => "restoring",
            State::Crashed => "crashed",
        })
    }
}

/// A watched process with its descendants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    pub root: i32,
    pub uid: Option<u32>,
    pub command: String,
    pub state: State,
    pub every_ms: u64,
    pub keep: usize,
    pub on_crash: OnCrash,
    pub since_ms: u64,
    pub checkpoints: u64,
    pub failures: u32,
    pub restores: u64,
    pub problem: Option<String>,
    pub last: Option<Checkpoint>,
    #[serde(default)]
    pub pauses: Pauses,
}

/// Kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Watched,
    Unwatched,
    Checkpoint,
    Failed,
    Crashed,
    Restored,
    GaveUp,
    Ended,
}

/// Something that happened to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub event: What,
    pub group: String,
    pub root: i32,
    pub at_ms: u64,
    pub message: Option<String>,
    pub checkpoint: Option<Checkpoint>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Blocker;
    use crate::ids::Pid;

    #[test]
    fn a_call_is_read_with_what_is_optional_left_out() {
        let call: Call = serde_json::from_str(r#"{"method":"org.freeze.Agent.Status"}"#).unwrap();
        assert!(!call.more && !call.oneway && call.parameters.is_null());
        assert_eq!(frame(&call), b"{\"method\":\"org.freeze.Agent.Status\"}\0");
        assert_eq!(frame(&Reply::default()), b"{}\0");
    }

    #[test]
    fn an_error_keeps_its_kind_its_words_and_its_reasons() {
        let e = Blocker::of(Pid(7), "fd 3", "io_uring").why("in flight").refuse();
        let (text, code) = (e.to_string(), e.exit_code());
        let failure = Failure::from(e);
        assert_eq!(
            (failure.to_string(), failure.exit_code(), failure.kind()),
            (text, code, "refused")
        );
        assert_eq!(failure.reasons()[0]["place"], "fd 3");
        let e = Error::Died {
            pid: Pid(7),
            how: "ended".into(),
        };
        let code = e.exit_code();
        assert_eq!(Failure::from(e).exit_code(), code);
    }

    #[test]
    fn pauses_are_counted_by_their_length() {
        let mut pauses = Pauses::default();
        for us in [1, 64, 65, 300, 1 << 40] {
            let report = Report {
                pause_us: us,
                pause_parts: vec![("halt", 7)],
                ..Report::default()
            };
            pauses.add(&report, &BTreeMap::from([("scan", 2)]));
        }
        let found: Vec<_> = pauses.buckets().collect();
        assert_eq!(found, [(Some(64), 2), (Some(128), 1), (Some(512), 1), (None, 1)]);
        assert_eq!(
            (pauses.longest_us, pauses.parts_ns["halt"], pauses.means["scan"]),
            (1 << 40, 35, 2)
        );
    }

    /// The description is written by hand: what the types say must be in it.
    #[test]
    fn the_description_names_every_field() {
        let of_type = |name: &str| {
            let start = DESCRIPTION.find(&format!("type {name} (")).unwrap();
            let end = DESCRIPTION[start..].find("\n)").unwrap();
            &DESCRIPTION[start..start + end]
        };
        let checkpoint = Checkpoint::from(&Report::default());
        let group = Group {
            name: String::new(),
            root: 0,
            uid: None,
            command: String::new(),
            state: State::Watching,
            every_ms: 0,
            keep: 0,
            on_crash: OnCrash::Leave,
            since_ms: 0,
            checkpoints: 0,
            failures: 0,
            restores: 0,
            problem: None,
            last: None,
            pauses: Pauses::default(),
        };
        let event = Event {
            event: What::Ended,
            group: String::new(),
            root: 0,
            at_ms: 0,
            message: None,
            checkpoint: None,
        };
        for (name, value) in [
            ("Pauses", json!(group.pauses)),
            ("Checkpoint", json!(checkpoint)),
            ("Group", json!(group)),
            ("Event", json!(event)),
        ] {
            let described = of_type(name);
            let fields = value.as_object().unwrap();
            for field in fields.keys() {
                assert!(described.contains(&format!("  {field}: ")), "{name}.{field}");
            }
            assert_eq!(described.matches(": ").count(), fields.len(), "{name}");
        }
    }
}

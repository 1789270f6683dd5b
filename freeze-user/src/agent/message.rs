//! What the engine thread is told, by callers and by the restores it has started.

use crate::agent::policy::{Caller, OnCrash};
use crate::agent::wire::Failure;
use nix::sys::eventfd::EventFd;
use serde::Deserialize;
use serde_json::Value;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// What the engine is asked for by a caller.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Watch(WatchRequest),
    Unwatch(Target),
    Map(Target),
    Audit(Target),
    Checkpoint(Target),
}

/// Parameters of `Watch`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchRequest {
    pub(super) pid: i32,
    pub(super) name: Option<String>,
    pub(super) every_ms: Option<u64>,
    pub(super) keep: Option<usize>,
    pub(super) on_crash: Option<OnCrash>,
}

/// A group, by name or by the pid of its root.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub(super) target: String,
}

pub(super) type Answer = Result<Value, Failure>;

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Message {
    Job {
        caller: Caller,
        request: Request,
        reply: oneshot::Sender<Answer>,
    },
    Restored {
        name: String,
        since_ms: u64,
        outcome: Outcome,
    },
    Stop,
}

/// What came of a restore.
#[derive(Debug)]
pub(super) enum Outcome {
    Runs {
        warnings: Vec<String>,
        took: Duration,
    },
    /// The image is damaged.
    Damaged(String),
    Failed(String),
}

/// Where messages to the engine are put.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) bell: Arc<EventFd>,
}

impl Post {
    /// Puts a message in and wakes the engine; `false` if it is gone.
    pub(super) fn send(&self, message: Message) -> bool {
        // A full counter is as good as a rung bell.
        self.messages.send(message).is_ok() && {
            let _ = self.bell.write(1);
            true
        }
    }
}

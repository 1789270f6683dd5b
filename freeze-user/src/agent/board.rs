//! The board: what everybody may look at while the engine works.

use crate::agent::wire::{Event, Group};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::broadcast;

/// What everybody may look at without waiting for the engine.
#[derive(Debug)]
pub(super) struct Board {
    groups: Mutex<BTreeMap<String, Group>>,
    pub(super) events: broadcast::Sender<Event>,
}

impl Board {
    pub(super) fn new() -> Board {
        Board {
            groups: Mutex::default(),
            events: broadcast::Sender::new(256),
        }
    }

    /// The groups as they are.
    pub(super) fn groups(&self) -> Vec<Group> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

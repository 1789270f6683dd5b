//! freeze: takes running, unmodified Linux processes apart into a checkpoint and puts them back together.
//!
//! One way through, each arrow a type that the next step consumes:
//! `View → Plan → Frozen → Image → Committed`, and back `Opened → Nest → Running`.
//! The module order below is the order of dependence: nothing names a module that comes later
//! (`cargo xtask tidy` checks it). See ARCHITECTURE.md for the map and the invariants.

pub mod ids;
pub mod ospath;
pub mod error;
pub mod crew;
pub mod sys;
pub mod proc;
pub mod store;
pub mod observe;
pub mod probe;
pub mod tracee;
pub mod dirty;
pub mod nest;
pub mod kinds;
pub mod plan;
pub mod stop;
pub mod precopy;
pub mod collect;
pub mod checkpoint;
pub mod restore;
pub mod agent;
pub mod cli;

pub use error::{Blocker, Error, Fate, Result};

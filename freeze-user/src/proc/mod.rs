//! Pure parsers of /proc text: text in, plain state out, no file is opened here.
//!
//! Formats: proc(5) and Documentation/filesystems/proc.rst. Every parser answers `None` for text that does
//! not have the documented form; none panics on foreign input.

pub mod cgroup;
pub mod fdinfo;
pub mod maps;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod timers;

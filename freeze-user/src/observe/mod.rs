//! What is known of processes without stopping them: a snapshot of /proc, or a map kept current by kernel events.

pub mod alike;
pub mod audit;
pub mod btf;
pub mod changes;
pub mod ends;
pub mod events;
pub mod faults;
mod fds;
pub mod filestat;
pub mod foreign;
pub mod index;
pub mod lasting;
pub mod livemap;
mod load;
pub mod looks;
pub mod mapview;
pub mod observer;
pub mod peek;
pub mod peers;
pub mod procfile;
pub mod sharing;
pub(crate) mod sockets;
pub mod sweep;
mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod view;
mod vmflags;

pub use audit::Difference;
pub use events::Event;
pub use faults::FaultLog;
pub use mapview::MapView;
pub use observer::Observer;

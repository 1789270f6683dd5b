//! What is known of processes without stopping them: a snapshot of /proc, or a map kept current by kernel events.

pub mod view;

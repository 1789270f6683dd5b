//! The command `freezed`.

fn main() {}

//! The command `freeze`.

fn main() {}

//! The project's own tasks: setup, run, test, bench, tidy.
fn main() {}

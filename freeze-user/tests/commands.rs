//! The commands as programs: what they say without being asked for anything. (Beside this, that there is such a
//! test makes cargo build the commands whenever tests are run, and those in `tests/` use them.)

use std::process::Command;

#[test]
fn help_lists_the_exit_statuses() {
    let help = Command::new(env!("CARGO_BIN_EXE_freeze"))
        .arg("--help")
        .output()
        .expect("freeze --help");
    let text = String::from_utf8_lossy(&help.stdout);
    for line in [
        "0  done",
        "3  refused",
        "4  a system call failed",
        "5  a process ended",
        "6  an image is damaged",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

#[test]
fn a_misspelled_command_is_status_2() {
    let status = Command::new(env!("CARGO_BIN_EXE_freeze"))
        .arg("chekpoint")
        .output()
        .expect("freeze")
        .status;
    assert_eq!(status.code(), Some(2));
}

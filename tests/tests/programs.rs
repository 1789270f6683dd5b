//! Whole programs from Debian, unmodified, in use while they are checkpointed, killed, restored, and used on.
//!
//! What each does before and after the cut is a script in `tests/programs/`; it ends with status 0 if all is well.

use freeze_tests::cycle::survive;
use freeze_tests::{Subject, command};

/// A script for bash, after what all of them share.
fn shell(text: &str) -> Subject {
    let whole = format!("{}\n{text}", include_str!("../programs/common.sh"));
    command(&["/bin/bash", "-c", &whole])
}

macro_rules! program {
    ($name:ident, $subject:expr) => {
        #[test]
        fn $name() {
            survive(concat!(module_path!(), "::", stringify!($name)), $subject);
        }
    };
}

program!(postgresql, shell(include_str!("../programs/postgresql.sh")));
program!(mariadb, shell(include_str!("../programs/mariadb.sh")));
program!(nginx, shell(include_str!("../programs/nginx.sh")));
program!(redis, shell(include_str!("../programs/redis.sh")));
program!(memcached, shell(include_str!("../programs/memcached.sh")));
program!(haproxy, shell(include_str!("../programs/haproxy.sh")));
program!(bind9, shell(include_str!("../programs/bind9.sh")));
program!(sqlite, shell(include_str!("../programs/sqlite.sh")));
program!(tmux, shell(include_str!("../programs/tmux.sh")).alone());
program!(make, shell(include_str!("../programs/make.sh")));
program!(ffmpeg, shell(include_str!("../programs/ffmpeg.sh")));
program!(stress_ng, shell(include_str!("../programs/stress-ng.sh")));
program!(pipeline, shell(include_str!("../programs/pipeline.sh")));
program!(
    python,
    command(&[
        "/usr/bin/python3",
        "-c",
        include_str!("../programs/multiprocessing.py")
    ])
);
program!(
    less,
    command(&["/usr/bin/python3", "-c", include_str!("../programs/less.py")]).alone()
);
program!(
    nodejs,
    command(&["node", "-e", include_str!("../programs/node.js")])
);
program!(
    openjdk,
    command(&[
        "java",
        "-Xmx64m",
        concat!(env!("CARGO_MANIFEST_DIR"), "/programs/Jvm.java")
    ])
);

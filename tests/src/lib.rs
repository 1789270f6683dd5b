//! Shared parts of the tests: starting subjects, cycling them, comparing what /proc shows.
//!
//! A subject is a program with a hole in the middle: it sets something up, says [`Here::freeze_here`] (or
//! `freeze_here()` in C and Python), and afterwards finds everything as it was, or fails. Between the two it is
//! checkpointed and restored in every [`Mode`], and looked at from outside. [`conformance!`] makes the tests.

pub mod across;
pub mod cycle;
pub mod here;
pub mod house;
pub mod portrait;
pub mod subject;

pub use cycle::{Mode, run};
pub use here::Here;
pub use portrait::Portrait;
pub use subject::{IntoSubject, Running, Subject, c, command, freeze, python, rust, scratch};

/// Prints why a test cannot be run here, in the form that `cargo xtask test` counts.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("SKIP: {}", format_args!($($reason)*));
        return;
    }};
}

/// A subject in every mode, each a test of its own: `conformance!(name, subject)`.
///
/// The subject is a function of [`Here`], or what [`c`], [`python`], [`rust`] or [`command`] make. It is also taken
/// through in namespaces of its own ([`house`]), unless a third argument says that it cannot: `only: root` is not tried
/// in a user namespace, `only: host` in none at all.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $subject:expr) => {
        $crate::conformance!($name, $subject, [in_namespaces InNamespaces in_user_namespace InUserNamespace]);
    };
    // It needs the rights of the host's root.
    ($name:ident, $subject:expr, only: root) => {
        $crate::conformance!($name, $subject, [in_namespaces InNamespaces]);
    };
    // It makes its own namespaces, or needs what belongs to the host.
    ($name:ident, $subject:expr, only: host) => {
        $crate::conformance!($name, $subject, []);
    };
    ($name:ident, $subject:expr, [$($house:ident $mode:ident)*]) => {
        mod $name {
            #[allow(unused_imports, reason = "the subject's text may need nothing from around it")]
            use super::*;

            $crate::conformance!(@ resume, Resume, $subject);
            $crate::conformance!(@ restore, Restore, $subject);
            $crate::conformance!(@ restore_twice, RestoreTwice, $subject);
            $crate::conformance!(@ incremental_3, Incremental3, $subject);
            $crate::conformance!(@ other_agent, OtherAgent, $subject);
            $crate::conformance!(@ fault_at_step, FaultAtStep, $subject);
            $($crate::conformance!(@ $house, $mode, $subject);)*
        }
    };
    (@ $test:ident, $mode:ident, $subject:expr) => {
        #[test]
        fn $test() {
            let name = concat!(module_path!(), "::", stringify!($test));
            $crate::run($crate::Mode::$mode, name, || $crate::IntoSubject::into_subject($subject));
        }
    };
}

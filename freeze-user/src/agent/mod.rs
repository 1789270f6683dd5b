//! The agent: watches groups of processes, checkpoints them on a schedule, and notices when they crash.
//!
//! ```text
//! callers ── varlink ──► serve (tokio) ── Message ──► engine (one thread: ptrace, trackings, kernel events)
//!                          ▲                             │
//!                          └───────── Board ◄────────────┘
//! ```
//! All of this is one process, and before it stands another, the front, whose death it is told: so freezed may be
//! killed at any instant. What was stopped is let go, closing a userfaultfd ends the tracking, a draft is swept at
//! the next start, and what was restored is nobody's child.

mod board;
pub mod client;
mod crash;
mod engine;
pub mod front;
mod group;
mod message;
pub mod notify;
pub mod policy;
mod requests;
mod serve;
pub mod wire;

use crate::error::{Context, Error, Result};
use crate::kinds::credentials::must_be_root;
use crate::store::Store;
use crate::sys;
use board::Board;
use engine::Engine;
use message::Message;
use serve::Door;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{debug, error, info};

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of checkpoints.
    pub store: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// The command `freeze`, which brings crashed groups back.
    pub freeze: PathBuf,
}

/// Runs the agent until SIGTERM, SIGINT or SIGHUP.
pub fn run(config: &Config) -> Result<()> {
    must_be_root()?;
    let store = Store::open(&config.store)?;
    let lock = group::lock(store.dir())?;
    for path in store.sweep() {
        info!(
            "{}: left unfinished by a writer that died, removed",
            path.display()
        );
    }
    sys::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.on("start the runtime", || "freezed")?;
    let done = runtime.block_on(live(config, store));
    drop(lock);
    done
}

async fn live(config: &Config, store: Store) -> Result<()> {
    let mut signals = Vec::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        signals.push(signal(kind).on("sigaction", || "freezed")?);
    }
    let door = Door::open(&config.socket).await?;
    let board = Arc::new(Board::new());
    let (engine, post) = Engine::new(store, board.clone(), config.freeze.clone())?;
    let (is_ready, ready) = oneshot::channel();
    // Dropped when the thread ends, however it ends.
    let (lives, mut died) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _lives = lives;
        engine.run(is_ready);
    });
    let thread = thread.on("clone", || "the engine thread")?;
    if ready.await.is_ok() {
        info!(
            "freezed {} listens at {}",
            env!("CARGO_PKG_VERSION"),
            config.socket.display()
        );
        notify::tell("READY=1\nSTATUS=Watching");
    }
    let mut failed = false;
    tokio::select! {
        () = door.answer(board, post.clone()) => {}
        () = feed_watchdog() => {}
        () = any(&mut signals) => debug!("asked to stop"),
        _ = &mut died => failed = true,
    }
    notify::tell("STOPPING=1");
    // A checkpoint under way is cut short: what it had stopped runs on, its draft is removed.
    sys::interrupt::raise(libc::SIGTERM);
    post.send(Message::Stop);
    drop(door);
    let ended = tokio::task::spawn_blocking(move || thread.join()).await;
    if failed || !matches!(ended, Ok(Ok(()))) {
        error!("the engine ended by a bug; every process runs on as it was found");
        return Err(Error::kernel(
            "run",
            "the engine thread",
            nix::errno::Errno::EOWNERDEAD,
        ));
    }
    info!("freezed ends; what it watched runs on");
    Ok(())
}

/// Waits for any of some signals.
async fn any(signals: &mut [tokio::signal::unix::Signal]) {
    std::future::poll_fn(|context| {
        let came = signals.iter_mut().any(|s| s.poll_recv(context).is_ready());
        if came {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// Tells systemd again and again that the agent lives, if it wants to hear it; never ends.
async fn feed_watchdog() {
    match notify::watchdog() {
        None => std::future::pending().await,
        Some(period) => loop {
            notify::tell("WATCHDOG=1");
            tokio::time::sleep(period).await;
        },
    }
}

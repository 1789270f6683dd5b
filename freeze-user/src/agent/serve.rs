//! The agent's end of its socket: who calls is asked of the kernel, what they want is asked of the engine.

use crate::agent::board::Board;
use crate::agent::message::{Message, Post, Request};
use crate::agent::policy::Caller;
use crate::agent::wire::{
    Call, DESCRIPTION, Failure, INTERFACE, LONGEST_CALL, Reply, SERVICE, SERVICE_DESCRIPTION, frame,
};
use crate::error::{Blocker, Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, oneshot};
use tracing::{debug, warn};

/// How many connections a user may have at a time, so that none keeps the others out.
const PER_USER: usize = 64;

/// The listening socket. Dropping it removes it from the file system.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Door {
    /// Listens at `path`, which everybody may connect to; refused if somebody listens there already.
    pub(super) async fn open(path: &Path) -> Result<Door> {
        let name = || path.display().to_string();
        if UnixStream::connect(path).await.is_ok() {
            return Err(Blocker::at(name(), "")
                .why("an agent listens there already")
                .remedy("use that one, or another --socket")
                .refuse());
        }
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .on("mkdir", || dir.display().to_string())?;
        }
        // It appears with its mode, and in place of what a killed agent left.
        let fresh = path.with_extension(format!("new-{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).on("bind", name)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o666)).on("chmod", name)?;
        let inode = std::fs::metadata(&fresh).on("stat", name)?.ino();
        std::fs::rename(&fresh, path).on("rename", name)?;
        Ok(Door {
            listener,
            path: path.into(),
            inode,
        })
    }

    /// Answers everybody who comes, for ever.
    pub(super) async fn answer(&self, board: Arc<Board>, post: Post) {
        let guests: Arc<Mutex<BTreeMap<u32, usize>>> = Arc::default();
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors: some will be closed.
                    warn!("accept: {e}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            };
            let uid = match stream.peer_cred() {
                Ok(credentials) => credentials.uid(),
                Err(e) => {
                    warn!("peer credentials: {e}");
                    continue;
                }
            };
            let Some(guest) = Guest::admit(uid, &guests) else {
                debug!("uid {uid} has {PER_USER} connections already");
                continue;
            };
            let (board, post) = (board.clone(), post.clone());
            tokio::spawn(async move {
                let (read, write) = stream.into_split();
                let mut talk = Talk {
                    caller: Caller { uid },
                    read: BufReader::new(read),
                    write,
                    board,
                    post,
                };
                if let Err(e) = talk.hold().await {
                    debug!("uid {uid}: {e}");
                }
                drop(guest);
            });
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Another agent may have taken the place.
        if std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// One of a user's connections.
struct Guest {
    uid: u32,
    all: Arc<Mutex<BTreeMap<u32, usize>>>,
}

impl Guest {
    fn admit(uid: u32, all: &Arc<Mutex<BTreeMap<u32, usize>>>) -> Option<Guest> {
        let mut count = all.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = count.entry(uid).or_default();
        if *mine >= PER_USER {
            return None;
        }
        *mine += 1;
        Some(Guest {
            uid,
            all: all.clone(),
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut count = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = count.get_mut(&self.uid) {
            *mine -= 1;
            if *mine == 0 {
                count.remove(&self.uid);
            }
        }
    }
}

/// A conversation with one caller.
struct Talk {
    caller: Caller,
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    board: Arc<Board>,
    post: Post,
}

impl Talk {
    /// Answers call after call until the caller hangs up.
    async fn hold(&mut self) -> std::io::Result<()> {
        while let Some(bytes) = self.next_message().await? {
            let call: Call = serde_json::from_slice(&bytes)?;
            debug!("uid {} calls {}", self.caller.uid, call.method);
            if call.more && call.method == format!("{INTERFACE}.Status") && !call.oneway {
                return self.follow().await;
            }
            let answer = self.answer(&call).await;
            if call.oneway {
                continue;
            }
            self.write.write_all(&frame(&reply(answer, false))).await?;
        }
        Ok(())
    }

    async fn next_message(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut bounded = (&mut self.read).take(LONGEST_CALL as u64);
        bounded.read_until(0, &mut bytes).await?;
        match bytes.pop() {
            None => Ok(None),
            Some(0) => Ok(Some(bytes)),
            Some(_) => Err(std::io::Error::other("a call without end")),
        }
    }

    async fn answer(&self, call: &Call) -> Result<Value, Failure> {
        let Some((interface, method)) = call.method.rsplit_once('.') else {
            return Err(Failure::service(
                "MethodNotFound",
                json!({ "method": call.method }),
            ));
        };
        match interface {
            SERVICE => service(method, call),
            INTERFACE => match method {
                "Watch" => self.ask(Request::Watch(parameters(call)?)).await,
                "Unwatch" => self.ask(Request::Unwatch(parameters(call)?)).await,
                "Map" => self.ask(Request::Map(parameters(call)?)).await,
                "Audit" => self.ask(Request::Audit(parameters(call)?)).await,
                "Checkpoint" => self.ask(Request::Checkpoint(parameters(call)?)).await,
                "Status" => Ok(self.status()),
                _ => Err(Failure::service(
                    "MethodNotFound",
                    json!({ "method": call.method }),
                )),
            },
            _ => Err(Failure::service(
                "InterfaceNotFound",
                json!({ "interface": interface }),
            )),
        }
    }

    /// The groups that the caller may see.
    fn status(&self) -> Value {
        let groups: Vec<_> = self
            .board
            .groups()
            .into_iter()
            .filter(|g| self.caller.may_use(g.uid))
            .collect();
        json!({ "groups": groups })
    }

    /// The groups, and then what happens to them, until the caller hangs up.
    async fn follow(&mut self) -> std::io::Result<()> {
        let mut events = self.board.events.subscribe();
        self.write
            .write_all(&frame(&reply(Ok(self.status()), true)))
            .await?;
        // Who ends may be gone from the board when it is told: what was once the caller's stays it.
        let mut own: BTreeMap<String, bool> = BTreeMap::new();
        loop {
            for g in self.board.groups() {
                own.insert(g.name, self.caller.may_use(g.uid));
            }
            let mut nothing = [0; 1];
            let event = tokio::select! {
                event = events.recv() => event,
                // A caller who says anything now, or hangs up, has had enough.
                _ = self.read.read(&mut nothing) => return Ok(()),
            };
            let event = match event {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    // Too slow for single events: the groups as they are now.
                    self.write
                        .write_all(&frame(&reply(Ok(self.status()), true)))
                        .await?;
                    continue;
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            for g in self.board.groups() {
                own.insert(g.name, self.caller.may_use(g.uid));
            }
            if self.caller.uid == 0 || own.get(&event.group) == Some(&true) {
                self.write
                    .write_all(&frame(&reply(Ok(json!({ "event": event })), true)))
                    .await?;
            }
        }
    }

    /// Has the engine do it.
    async fn ask(&self, request: Request) -> Result<Value, Failure> {
        let (reply, answer) = oneshot::channel();
        let gone = || Failure::own("Internal", "the agent is stopping");
        match self.post.send(Message::Job {
            caller: self.caller,
            request,
            reply,
        }) {
            true => answer.await.map_err(|_| gone())?,
            false => Err(gone()),
        }
    }
}

fn reply(answer: Result<Value, Failure>, continues: bool) -> Reply {
    match answer {
        Ok(parameters) => Reply {
            parameters,
            continues,
            error: None,
        },
        Err(failure) => Reply {
            parameters: failure.parameters,
            continues: false,
            error: Some(failure.name),
        },
    }
}

/// The call's parameters as the method has them.
fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T, Failure> {
    let given = if call.parameters.is_null() {
        json!({})
    } else {
        call.parameters.clone()
    };
    serde_json::from_value(given)
        .map_err(|e| Failure::service("InvalidParameter", json!({ "parameter": e.to_string() })))
}

/// The interface that every varlink service has.
fn service(method: &str, call: &Call) -> Result<Value, Failure> {
    match method {
        "GetInfo" => Ok(json!({
            "vendor": "freeze",
            "product": "freezed",
            "version": env!("CARGO_PKG_VERSION"),
            "url": env!("CARGO_PKG_REPOSITORY"),
            "interfaces": [SERVICE, INTERFACE],
        })),
        "GetInterfaceDescription" => match call.parameters.get("interface").and_then(Value::as_str) {
            Some(INTERFACE) => Ok(json!({ "description": DESCRIPTION })),
            Some(SERVICE) => Ok(json!({ "description": SERVICE_DESCRIPTION })),
            Some(other) => Err(Failure::service(
                "InterfaceNotFound",
                json!({ "interface": other }),
            )),
            None => Err(Failure::service(
                "InvalidParameter",
                json!({ "parameter": "interface" }),
            )),
        },
        _ => Err(Failure::service(
            "MethodNotFound",
            json!({ "method": call.method }),
        )),
    }
}

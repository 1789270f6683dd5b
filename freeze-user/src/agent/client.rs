//! The commands' end of the agent's socket: one call, then one reply or many.

use crate::agent::wire::{Call, Failure, INTERFACE, Reply, frame};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A connection to the agent.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

/// What became of a call: the agent's answer, or its refusal.
pub type Answer = std::result::Result<Value, Failure>;

impl Agent {
    /// Connects; refused with what to do if nobody listens.
    pub fn connect(socket: &Path) -> Result<Agent> {
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Agent {
                socket: socket.into(),
                stream: BufReader::new(stream),
            }),
            Err(e) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&e.kind()) => {
                Err(Blocker::at(socket.display().to_string(), "")
                    .why("no agent listens there")
                    .remedy("start one: systemctl start freezed, or freezed & as root")
                    .refuse())
            }
            Err(e) => Err(e).on("connect", || socket.display().to_string()),
        }
    }

    /// The agent's pid, if one listens.
    pub fn pid(socket: &Path) -> Option<Pid> {
        let stream = UnixStream::connect(socket).ok()?;
        // Of a connected client's end: those of the process that listens.
        let credentials = getsockopt(&stream, PeerCredentials).ok()?;
        Some(Pid(credentials.pid())).filter(|pid| pid.0 > 0)
    }

    /// Calls a method of `org.freeze.Agent` and waits for its one reply.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Answer> {
        self.send(method, parameters, false)?;
        match self.receive()? {
            Some((answer, _)) => Ok(answer),
            None => Err(self.hung_up()),
        }
    }

    /// Calls a method that replies many times; `each` says whether it wants more.
    pub fn follow(
        &mut self,
        method: &str,
        parameters: Value,
        mut each: impl FnMut(Value) -> bool,
    ) -> Result<std::result::Result<(), Failure>> {
        self.send(method, parameters, true)?;
        loop {
            match self.receive()? {
                None => return Err(self.hung_up()),
                Some((Err(failure), _)) => return Ok(Err(failure)),
                Some((Ok(value), continues)) => {
                    if !each(value) || !continues {
                        return Ok(Ok(()));
                    }
                }
            }
        }
    }

    fn send(&mut self, method: &str, parameters: Value, more: bool) -> Result<()> {
        let call = Call {
            method: format!("{INTERFACE}.{method}"),
            parameters,
            more,
            ..Call::default()
        };
        let sent = self.stream.get_mut().write_all(&frame(&call));
        sent.on("write", || self.socket.display().to_string())
    }

    fn receive(&mut self) -> Result<Option<(Answer, bool)>> {
        let name = || self.socket.display().to_string();
        let mut bytes = Vec::new();
        self.stream.read_until(0, &mut bytes).on("read", name)?;
        if bytes.pop() != Some(0) {
            return Ok(None);
        }
        let reply: Reply = serde_json::from_slice(&bytes)
            .map_err(|e| Error::io("read a reply of", name(), &std::io::Error::from(e)))?;
        let answer = match reply.error {
            Some(name) => Err(Failure {
                name,
                parameters: reply.parameters,
            }),
            None => Ok(reply.parameters),
        };
        Ok(Some((answer, reply.continues)))
    }

    fn hung_up(&self) -> Error {
        Error::kernel(
            "read",
            self.socket.display().to_string(),
            nix::errno::Errno::ECONNRESET,
        )
    }
}

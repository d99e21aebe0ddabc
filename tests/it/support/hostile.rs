//! A proxy before a real server that can replace the replies to one command.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use redis::{Parser, Value};

/// The bytes of a bad reply, and what the proxy does after them.
#[derive(Clone, Debug)]
pub(crate) struct BadReply {
    pub(crate) says: Vec<u8>,
    pub(crate) then: Then,
}

/// What the proxy does after the bytes of a bad reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The connection continues, as after a real reply.
    GoOn,
    /// As `GoOn`, but the reply is sent byte by byte with pauses.
    Slowly,
    Close,
    /// Sends nothing until the client closes the connection.
    Hang,
    /// Repeats the last bytes of this count without pause.
    Flood(usize),
    /// Repeats the last bytes of this count byte by byte with pauses.
    Drip(usize),
}

/// The pause between two bytes of a [`Then::Drip`].
const DROP: Duration = Duration::from_millis(5);

/// Proxy before a real server that can replace the replies to one command. A drop closes all
/// connections.
#[derive(Debug)]
pub(crate) struct Hostile {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    at: SocketAddr,
    /// The real server.
    target: String,
    /// The command with bad replies, and the bad reply.
    bad_reply: Mutex<Option<(String, BadReply)>>,
    bad_replies: AtomicU64,
    over: AtomicBool,
    clients: Mutex<Vec<TcpStream>>,
}

impl Hostile {
    pub(crate) fn before(target: String) -> Hostile {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let shared = Arc::new(Shared {
            at: listener.local_addr().expect("it is bound"),
            target,
            bad_reply: Mutex::new(None),
            bad_replies: AtomicU64::new(0),
            over: AtomicBool::new(false),
            clients: Mutex::new(Vec::new()),
        });
        let serving = Arc::clone(&shared);
        Hostile {
            shared,
            acceptor: Some(start(move || serving.accept(&listener))),
        }
    }

    pub(crate) fn addr(&self) -> String {
        self.shared.at.to_string()
    }

    /// Replaces the replies to this command on all connections from now on.
    pub(crate) fn set_bad_reply(&self, command: &str, bad_reply: &BadReply) {
        *lock(&self.shared.bad_reply) = Some((command.to_owned(), bad_reply.clone()));
    }

    /// Forwards all replies again, and closes the connections that hang, flood or drip.
    pub(crate) fn restore(&self) {
        *lock(&self.shared.bad_reply) = None;
        self.shared.cut();
    }

    /// Returns the number of bad replies sent.
    pub(crate) fn bad_replies(&self) -> u64 {
        self.shared.bad_replies.load(SeqCst)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        _ = TcpStream::connect(self.shared.at);
        self.shared.cut();
        if let Some(acceptor) = self.acceptor.take() {
            _ = acceptor.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Shared>, listener: &TcpListener) {
        let mut threads = Vec::new();
        for client in listener.incoming().flatten() {
            let Ok(kept) = client.try_clone() else { break };
            lock(&self.clients).push(kept);
            if self.over.load(SeqCst) {
                break;
            }
            let shared = Arc::clone(self);
            threads.push(start(move || {
                // The client reports the failure, whichever side ends the connection.
                _ = shared.serve(&client);
                _ = client.shutdown(Shutdown::Both);
            }));
        }
        self.cut();
        for thread in threads {
            _ = thread.join();
        }
    }

    fn cut(&self) {
        for client in lock(&self.clients).drain(..) {
            _ = client.shutdown(Shutdown::Both);
        }
    }

    fn serve(&self, mut client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut server = TcpStream::connect(&self.target)?;
        server.set_nodelay(true)?;
        let (mut requests, mut replies) = (Parser::new(), Parser::new());
        let mut wire = Vec::new();
        loop {
            let request = requests.parse_value(client).map_err(io::Error::other)?;
            let command = command(&request);
            let bad_reply = lock(&self.bad_reply).clone();
            if let Some((_, bad_reply)) = bad_reply.filter(|(at, _)| *at == command) {
                self.bad_replies.fetch_add(1, SeqCst);
                bad_reply.commit(client)?;
                continue;
            }
            wire.clear();
            write(&request, &mut wire);
            server.write_all(&wire)?;
            if command == "SUBSCRIBE" {
                return pass_on(client, &server);
            }
            let reply = replies.parse_value(&server).map_err(io::Error::other)?;
            wire.clear();
            write(&reply, &mut wire);
            client.write_all(&wire)?;
        }
    }
}

impl BadReply {
    fn commit(&self, mut client: &TcpStream) -> io::Result<()> {
        if self.then == Then::Slowly {
            return drip(client, &self.says);
        }
        client.write_all(&self.says)?;
        let last = |count: usize| &self.says[self.says.len() - count..];
        match self.then {
            Then::GoOn | Then::Slowly => Ok(()),
            Then::Close => Err(io::ErrorKind::ConnectionAborted.into()),
            Then::Hang => {
                io::copy(&mut client, &mut io::sink())?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Then::Flood(count) => {
                let many = last(count).repeat(4096 / count);
                loop {
                    client.write_all(&many)?;
                }
            }
            Then::Drip(count) => loop {
                drip(client, last(count))?;
            },
        }
    }
}

fn drip(mut client: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    for byte in bytes {
        client.write_all(&[*byte])?;
        pause();
    }
    Ok(())
}

/// Forwards both directions until one of them ends.
fn pass_on(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let done = io::copy(&mut from, &mut to);
        _ = to.shutdown(Shutdown::Both);
        done.map(|_| ())
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(server, client));
        copy(client, server)
    })
}

/// Returns the name of the command in upper case; empty if the request has none.
fn command(request: &Value) -> String {
    match request {
        Value::Array(words) => match words.first() {
            Some(Value::BulkString(word)) => String::from_utf8_lossy(word).to_uppercase(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// Appends the bytes of one RESP value.
///
/// # Panics
/// If the value is of a type that a real server does not send here.
fn write(value: &Value, wire: &mut Vec<u8>) {
    match value {
        Value::Nil => wire.extend(b"$-1\r\n"),
        Value::Okay => wire.extend(b"+OK\r\n"),
        Value::Int(number) => wire.extend(format!(":{number}\r\n").bytes()),
        Value::SimpleString(text) => wire.extend(format!("+{text}\r\n").bytes()),
        Value::BulkString(bytes) => {
            wire.extend(format!("${}\r\n", bytes.len()).bytes());
            wire.extend(bytes);
            wire.extend(b"\r\n");
        }
        Value::Array(values) => {
            wire.extend(format!("*{}\r\n", values.len()).bytes());
            values.iter().for_each(|value| write(value, wire));
        }
        Value::ServerError(error) => {
            let detail = error.details().unwrap_or_default();
            wire.extend(format!("-{} {detail}\r\n", error.code()).bytes());
        }
        other => panic!("{other:?}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "a server of the test's own")]
fn start(body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::spawn(body)
}

#[expect(clippy::disallowed_methods, reason = "it is slow on purpose")]
fn pause() {
    thread::sleep(DROP);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

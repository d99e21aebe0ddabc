//! A proxy before a server: it delays in both directions, and can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::servers::Server;

/// How often a cut is looked for.
const POLL: Duration = Duration::from_millis(2);

pub(crate) struct Proxy {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts a proxy with a delay per direction.
    pub(crate) fn start(server: &Server, delay: Duration) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let (target, is_cut) = (server.addr(), Arc::clone(&cut));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let (c, s) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                pump(client, server, delay, Arc::clone(&is_cut));
                pump(s, c, delay, Arc::clone(&is_cut));
            }
        });
        Proxy { address, cut }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Holds back all bytes from now on, as a network does that drops packets.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }
}

/// Copies one direction, in two threads: one reads, the other writes when it is time.
fn pump(mut from: TcpStream, mut to: TcpStream, delay: Duration, cut: Arc<AtomicBool>) {
    let (queue, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            if queue
                .send((Instant::now() + delay, bytes[..length].to_vec()))
                .is_err()
            {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (time, bytes) in due {
            thread::sleep(time.saturating_duration_since(Instant::now()));
            while cut.load(Ordering::Acquire) {
                thread::sleep(POLL);
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

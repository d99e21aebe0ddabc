//! A plain socket with a reply parser, which can be polled (L2: no reply blocks or overflows a
//! caller).

use std::io;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::path::Path;
use std::time::{Duration, Instant};

use redis::{Parser, RedisResult, Value};

use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::array_headers::ArrayHeaders;

/// The size of the read buffer, in bytes.
const READ_BUFFER: usize = 4096;
/// The minimal timeout of a connect; zero would be an error.
const MIN_SHARE: Duration = Duration::from_millis(1);

/// A socket, and the bytes read from it that belong to no returned reply.
pub(crate) struct PlainStream {
    input: ReadBuffer,
    /// Parses replies other than short lines. It reads one line at a time, so it never reads beyond
    /// the reply.
    parser: Parser,
    /// Whether the parser holds a part of a reply.
    is_parsing: bool,
}

struct ReadBuffer {
    socket: Socket,
    /// Whether the socket is in blocking mode.
    blocking: bool,
    bytes: Box<[u8; READ_BUFFER]>,
    start: usize,
    end: usize,
    /// Whether a nested reply is an error.
    reject_nested: bool,
    /// The array headers of the present reply that the parser has read.
    array_headers: ArrayHeaders,
}

enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl PlainStream {
    /// Connects to the first address of a host that accepts. Blocks until `end`, and longer while
    /// the name is resolved.
    pub(crate) fn connect(host: &str, port: u16, end: Instant) -> io::Result<PlainStream> {
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        let is_name = host.parse::<IpAddr>().is_err();
        let socket = connect_to_any(&addresses, is_name, end)?;
        socket.set_nodelay(true)?;
        Ok(PlainStream::new(Socket::Tcp(socket)))
    }

    /// Connects to a Unix socket. On Linux blocks without a limit while the backlog of a server that
    /// hangs is full; `std` has no timeout for this connect.
    #[cfg(unix)]
    pub(crate) fn connect_unix(path: &Path) -> io::Result<PlainStream> {
        Ok(PlainStream::new(Socket::Unix(UnixStream::connect(path)?)))
    }

    fn new(socket: Socket) -> PlainStream {
        PlainStream {
            input: ReadBuffer {
                socket,
                blocking: true,
                bytes: Box::new([0; READ_BUFFER]),
                start: 0,
                end: 0,
                reject_nested: false,
                array_headers: ArrayHeaders::default(),
            },
            parser: Parser::new(),
            is_parsing: false,
        }
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.input.socket, Socket::Tcp(_))
    }

    pub(crate) fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.input.socket {
            Socket::Tcp(tcp) => {
                tcp.set_read_timeout(timeout)?;
                tcp.set_write_timeout(timeout)
            }
            #[cfg(unix)]
            Socket::Unix(unix) => {
                unix.set_read_timeout(timeout)?;
                unix.set_write_timeout(timeout)
            }
        }
    }

    /// Sends all bytes; each write blocks at most for the timeout set by
    /// [`set_timeouts`](PlainStream::set_timeouts).
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.set_blocking(true)?;
        self.write(bytes)
    }

    /// Sends all bytes without blocking; an error is returned if the socket does not accept them.
    pub(crate) fn send_nonblocking(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.set_blocking(false)?;
        self.write(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.input.socket.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Blocks until the next reply: each read at most for the timeout, and all reads of a reply
    /// that arrives in parts until `end`.
    pub(crate) fn receive(&mut self, end: Instant) -> RedisResult<Value> {
        self.input.set_blocking(true)?;
        let mut has_read = false; // bytes that arrived before `end` are read even after it
        loop {
            if let Some(reply) = self.buffered_reply()? {
                return Ok(reply);
            }
            if has_read && clock::now() > end {
                return Err(io::Error::from(ErrorKind::TimedOut).into());
            }
            self.input.fill()?;
            has_read = true;
        }
    }

    /// Returns the next reply if all of it was read before, without a system call.
    pub(crate) fn buffered_reply(&mut self) -> RedisResult<Option<Value>> {
        self.input.reject_nested = false;
        self.parse_buffered()
    }

    /// Returns the next reply if it has arrived. Reads once, so a long reply does not keep the
    /// caller. A nested reply is an error, because the parser recurses on the stack of the caller's
    /// thread.
    pub(crate) fn poll_reply(&mut self) -> RedisResult<Option<Value>> {
        self.input.set_blocking(false)?;
        self.input.reject_nested = true;
        if !self.input.unread().is_empty()
            && let Some(reply) = self.parse_buffered()?
        {
            return Ok(Some(reply));
        }
        match self.input.fill() {
            Ok(()) => self.parse_buffered(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Checks an idle connection by one non-blocking read.
    ///
    /// # Errors
    /// - `UnexpectedEof` or the system's error: the peer closed the connection.
    /// - `InvalidData`: the peer sent an unexpected reply.
    pub(crate) fn check_idle(&mut self) -> io::Result<()> {
        self.input.set_blocking(false)?;
        while !self.is_parsing && self.input.unread().is_empty() {
            match self.input.fill() {
                Ok(()) => {} // interrupted, or bytes have arrived
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::InvalidData.into())
    }

    /// Returns the next reply if all of it has been read.
    fn parse_buffered(&mut self) -> RedisResult<Option<Value>> {
        if !self.is_parsing
            && let Some(line) = self.input.line()
            && let Some(reply) = parse_short_reply(line)
        {
            self.input.start += line.len();
            return Ok(Some(reply));
        }
        if self.input.unread().is_empty() {
            return Ok(None);
        }
        match self.parser.parse_value(&mut self.input) {
            Ok(reply) => {
                self.is_parsing = false;
                self.input.array_headers = ArrayHeaders::default();
                Ok(Some(reply))
            }
            // The parser keeps the part that it has read.
            Err(error) if error.is_timeout() => {
                self.is_parsing = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns the number of addresses of a host. Blocks while the name is resolved.
#[cfg(feature = "tls")]
pub(crate) fn count_addresses(host: &str, port: u16) -> io::Result<u32> {
    Ok((host, port).to_socket_addrs()?.count() as u32)
}

/// Connects to the first address that accepts. Each address gets an equal share of the time that is
/// left, so that an address that drops all packets uses only its share. (RFC 8305 connects in
/// parallel, which needs a thread per address.)
///
/// # Errors
/// - For a host name, the text names each address and its error.
fn connect_to_any(addresses: &[SocketAddr], is_name: bool, end: Instant) -> io::Result<TcpStream> {
    let mut failures: Vec<String> = Vec::new();
    let mut last = io::Error::new(ErrorKind::NotFound, "the host name has no address");
    for (address, others) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        let share = remaining_timeout(end) / others;
        last = match TcpStream::connect_timeout(address, share.max(MIN_SHARE)) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        failures.push(match last.kind() {
            ErrorKind::TimedOut => format!("{address}: no answer within {share:.0?}"),
            _ => format!("{address}: {last}"),
        });
    }
    if is_name && !failures.is_empty() {
        // The text of a `TimedOut` error is not shown, and no peer has closed a connection.
        let kind = match last.kind() {
            ErrorKind::TimedOut => ErrorKind::HostUnreachable,
            kind => kind,
        };
        return Err(io::Error::new(kind, failures.join("; ")));
    }
    Err(last)
}

/// Parses the common replies: `+OK`, an integer, nil. All others are left to the parser.
fn parse_short_reply(line: &[u8]) -> Option<Value> {
    match line.strip_suffix(b"\r\n")? {
        b"+OK" => Some(Value::Okay),
        b"$-1" => Some(Value::Nil),
        [b':', digits @ ..] if (1..=18).contains(&digits.len()) => {
            let is_number = digits.iter().all(u8::is_ascii_digit);
            let digits = is_number.then(|| std::str::from_utf8(digits))?;
            Some(Value::Int(digits.ok()?.parse().ok()?))
        }
        _ => None,
    }
}

impl ReadBuffer {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Returns the next complete line, with its end.
    fn line(&self) -> Option<&[u8]> {
        let unread = self.unread();
        let end = unread.iter().position(|byte| *byte == b'\n')?;
        Some(&unread[..=end])
    }

    /// Reads once from the socket.
    fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.socket.read(&mut self.bytes[self.end..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => {
                self.end += more;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Switches the socket to blocking or non-blocking mode, if it is not in it already.
    fn set_blocking(&mut self, blocking: bool) -> io::Result<()> {
        if self.blocking != blocking {
            match &self.socket {
                Socket::Tcp(tcp) => tcp.set_nonblocking(!blocking)?,
                #[cfg(unix)]
                Socket::Unix(unix) => unix.set_nonblocking(!blocking)?,
            }
            self.blocking = blocking;
        }
        Ok(())
    }
}

/// Reads for the parser: at most the rest of a line, so that the parser never buffers bytes of the
/// next reply. Bytes that have not been read from the socket are `WouldBlock`.
impl Read for ReadBuffer {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let available = self.line().unwrap_or(self.unread());
        let length = available.len().min(bytes.len());
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        bytes[..length].copy_from_slice(&available[..length]);
        self.start += length;
        if self.array_headers.read(&bytes[..length]) > 1 && self.reject_nested {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(length)
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(tcp) => tcp.read(bytes),
            #[cfg(unix)]
            Socket::Unix(unix) => unix.read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(tcp) => tcp.write(bytes),
            #[cfg(unix)]
            Socket::Unix(unix) => unix.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;
    use crate::time::clock;

    /// Returns a stream and the peer's socket.
    #[expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
    fn pair() -> (PlainStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpStream::connect(address).unwrap();
        let (peer, _) = listener.accept().unwrap();
        (PlainStream::new(Socket::Tcp(socket)), peer)
    }

    const REPLIES: [&str; 15] = [
        "+OK\r\n",
        "+QUEUED\r\n",
        ":0\r\n",
        ":-1\r\n",
        ":1771000000000000\r\n",
        ":9223372036854775807\r\n",
        "$-1\r\n",
        "$0\r\n\r\n",
        "$9\r\n:1\r\n+OK\r\n\r\n",
        "*2\r\n:0\r\n:-1\r\n",
        "*2\r\n$2\r\na\n\r\n:7\r\n",
        "*2\r\n:0\r\n$2\r\n*a\r\n",
        "*3\r\n:0\r\n$5\r\n%\n~\n|\r\n$3\r\n\r\n>\r\n",
        "$2\r\n*1\r\n",
        "-NOSCRIPT No matching script.\r\n",
    ];

    proptest! {
        #[test]
        fn replies_in_any_parts_are_those_of_the_parser(
            which in proptest::collection::vec(0..REPLIES.len(), 1..8),
            cuts in proptest::collection::vec(1..9_usize, 1..8),
            blocks in any::<bool>(),
        ) {
            let (mut stream, mut peer) = pair();
            let end = clock::now() + Duration::from_secs(60);
            let text: String = which.iter().map(|which| REPLIES[*which]).collect();
            let mut left = text.as_bytes();
            let mut cuts = cuts.iter().cycle();
            let mut read = Vec::new();
            while !left.is_empty() {
                let cut = cuts.next().map_or(1, |cut| *cut).min(left.len());
                peer.write_all(&left[..cut]).unwrap();
                left = &left[cut..];
                while !blocks && let Some(reply) = stream.poll_reply().unwrap() {
                    read.push(reply);
                }
            }
            while read.len() < which.len() {
                read.push(stream.receive(end).unwrap());
            }
            let parse = |which: &usize| redis::parse_redis_value(REPLIES[*which].as_bytes());
            let expected: Result<Vec<Value>, _> = which.iter().map(parse).collect();
            prop_assert_eq!(read, expected.unwrap());
            prop_assert!(stream.poll_reply().unwrap().is_none());
            drop(peer);
            prop_assert!(stream.receive(end).is_err() && stream.poll_reply().is_err());
        }
    }

    #[test]
    fn polled_reply_in_two_parts_is_that_of_the_parser() {
        for reply in REPLIES {
            let expected = redis::parse_redis_value(reply.as_bytes()).unwrap();
            for cut in 1..reply.len() {
                let (mut stream, mut peer) = pair();
                let mut polled = None;
                for part in [&reply[..cut], &reply[cut..]] {
                    assert_eq!(polled, None, "{reply:?} at {cut}");
                    peer.write_all(part.as_bytes()).unwrap();
                    polled = stream.poll_reply().unwrap();
                }
                assert_eq!(polled.as_ref(), Some(&expected), "{reply:?} at {cut}");
            }
        }
    }

    /// Returns a listener with a full backlog, to which connects hang, and the sockets that fill
    /// it.
    #[cfg(target_os = "linux")]
    #[expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
    fn hung_listener() -> (TcpListener, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connects = std::iter::repeat_with(|| {
            TcpStream::connect_timeout(&address, Duration::from_millis(200))
        });
        let fill = connects.map_while(Result::ok).collect();
        (listener, fill)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn host_with_hung_addresses_first_connects_in_time() {
        let (hung_server, _backlog) = hung_listener();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses =
            [&hung_server, &hung_server, &server].map(|listener| listener.local_addr().unwrap());
        let end = clock::now() + Duration::from_secs(6);
        let socket = connect_to_any(&addresses, true, end).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), addresses[2]);
        assert!(clock::now() < end);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn host_without_an_accepting_address_is_an_error_that_names_each() {
        let (hung_server, _backlog) = hung_listener();
        let hung = hung_server.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        for addresses in [[hung, closed], [closed, hung]] {
            let end = clock::now() + Duration::from_millis(200);
            let error = connect_to_any(&addresses, true, end).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&format!("{hung}: no answer within ")),
                "{text}"
            );
            assert!(
                text.contains(&format!("{closed}: Connection refused")),
                "{text}"
            );
        }
        assert!(connect_to_any(&[], true, clock::now()).is_err());
    }

    #[test]
    fn endless_reply_is_aborted_at_the_deadline() {
        let (mut stream, mut peer) = pair();
        peer.write_all(b"*1000000000\r\n").unwrap();
        let end = clock::now();
        std::thread::scope(|scope| {
            let drips = scope.spawn(move || while peer.write_all(b":1\r\n").is_ok() {});
            assert!(stream.receive(end).is_err_and(|error| error.is_timeout()));
            drop(stream);
            drips.join().unwrap();
        });
    }

    #[test]
    fn poll_rejects_a_nested_reply_and_returns_during_a_long_one() {
        for nested in [
            "*2\r\n:1\r\n*1\r\n:2\r\n",
            "*2\r\n$2\r\n*a\r\n*1\r\n:2\r\n",
            "*2\r\n+x\n$9999\r\n*1\r\n:2\r\n",
        ] {
            let (mut stream, mut peer) = pair();
            peer.write_all(nested.as_bytes()).unwrap();
            let polls = std::iter::repeat_with(|| stream.poll_reply());
            let mut ended = polls.skip_while(|polled| matches!(polled, Ok(None)));
            assert!(ended.next().is_some_and(|polled| polled.is_err()));
        }
        let (mut stream, mut peer) = pair();
        std::thread::scope(|scope| {
            let floods = scope.spawn(move || {
                peer.write_all(b"*1000000000\r\n").unwrap();
                while peer.write_all(&b":1\r\n".repeat(1000)).is_ok() {}
            });
            for _ in 0..100 {
                assert!(stream.poll_reply().unwrap().is_none());
            }
            drop(stream);
            floods.join().unwrap();
        });
    }

    #[test]
    fn check_idle_fails_on_a_closed_reset_or_unexpected_connection() {
        let end = clock::now() + Duration::from_secs(60);
        // Over loopback, the peer's bytes have arrived when its call returns.
        let (mut stream, mut peer) = pair();
        stream.check_idle().unwrap();
        peer.write_all(b"+OK\r\n").unwrap();
        stream.receive(end).unwrap();
        stream.check_idle().unwrap();
        drop(peer);
        let kinds =
            [stream.check_idle(), stream.check_idle()].map(|checked| checked.unwrap_err().kind());
        assert_eq!(kinds, [ErrorKind::UnexpectedEof; 2]);
        // A close with unread bytes resets the connection.
        let (mut stream, peer) = pair();
        stream.send_nonblocking(b"PING\r\n").unwrap();
        drop(peer);
        assert_eq!(
            stream.check_idle().unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            stream.check_idle().unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
        // Unexpected bytes: read with the expected reply, in a read of its own, and in part.
        for (expected, more) in [
            ("+OK\r\n:1\r\n", ""),
            ("+OK\r\n", "+OK\r\n"),
            ("+OK\r\n", "*"),
        ] {
            let (mut stream, mut peer) = pair();
            peer.write_all(expected.as_bytes()).unwrap();
            stream.receive(end).unwrap();
            peer.write_all(more.as_bytes()).unwrap();
            let kinds = [stream.check_idle(), stream.check_idle()]
                .map(|checked| checked.unwrap_err().kind());
            assert_eq!(kinds, [ErrorKind::InvalidData; 2], "{expected:?} {more:?}");
        }
    }

    #[test]
    fn write_to_a_full_socket_blocks_or_fails() {
        let (mut stream, mut peer) = pair();
        assert!(stream.poll_reply().unwrap().is_none());
        let bytes = vec![b'x'; 16 << 20];
        let (mut full, _other) = pair();
        assert!(full.send_nonblocking(&bytes).is_err());
        std::thread::scope(|scope| {
            let reads = scope.spawn(move || {
                let mut all = vec![0; 16 << 20];
                peer.read_exact(&mut all).map(|()| all)
            });
            stream.send(&bytes).unwrap();
            assert!(reads.join().unwrap().unwrap() == bytes);
        });
    }
}

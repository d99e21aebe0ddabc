//! A socket of our own, and the replies that come out of it.

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

/// So much is read at once.
const READ_BUFFER: usize = 4096;
/// A share of no time at all would be an error.
const MIN_SHARE: Duration = Duration::from_millis(1);

/// A socket, and what has been read from it and not been taken yet.
pub(crate) struct PlainStream {
    input: ReadBuffer,
    /// For replies that are no short line. It is given one line at a time, so it has nothing of the reply that follows.
    parser: Parser,
    /// It has a part of a reply.
    is_parsing: bool,
}

struct ReadBuffer {
    socket: Socket,
    /// Whether a read waits for what is not there yet.
    blocking: bool,
    bytes: Box<[u8; READ_BUFFER]>,
    start: usize,
    end: usize,
    /// Whether a reply that is nested is an error, and how often the parser has been given the beginning of an array of this one.
    reject_nested: bool,
    array_headers: u32,
}

enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl PlainStream {
    /// Connects to the first of a name's addresses that answers.
    pub(crate) fn connect(host: &str, port: u16, end: Instant) -> io::Result<PlainStream> {
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        let is_name = host.parse::<IpAddr>().is_err();
        let socket = connect_to_any(&addresses, is_name, end)?;
        socket.set_nodelay(true)?;
        Ok(PlainStream::new(Socket::Tcp(socket)))
    }

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
                array_headers: 0,
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

    /// Writes all of it, waiting for the socket for as long as [`set_timeouts`](Own::set_timeouts) has said.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.set_blocking(true)?;
        self.write(bytes)
    }

    /// Writes all of it without waiting.
    pub(crate) fn send_at_once(&mut self, bytes: &[u8]) -> io::Result<()> {
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

    /// Waits for the next reply: for each read as long as [`set_timeouts`](Own::set_timeouts) has said, and until `end` where it
    /// comes bit by bit.
    pub(crate) fn receive(&mut self, end: Instant) -> RedisResult<Value> {
        self.input.set_blocking(true)?;
        self.input.reject_nested = false;
        let mut has_read = false; // what has come by the end is read also after it
        loop {
            if let Some(reply) = self.take()? {
                return Ok(reply);
            }
            if has_read && clock::now() > end {
                return Err(io::Error::from(ErrorKind::TimedOut).into());
            }
            self.input.fill()?;
            has_read = true;
        }
    }

    /// The next reply, if it has come. Reads once: who looks does not stay, however much there is. A reply that is nested is an
    /// error: the parser would need more of the stack than who looks may have.
    pub(crate) fn poll_reply(&mut self) -> RedisResult<Option<Value>> {
        self.input.set_blocking(false)?;
        self.input.reject_nested = true;
        if let Some(reply) = self.take()? {
            return Ok(Some(reply));
        }
        match self.input.fill() {
            Ok(()) => self.take(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads once, without blocking, while no reply is outstanding.
    ///
    /// # Errors
    /// `UnexpectedEof` or the system's error if the other side has closed the connection; `InvalidData` if it has sent something.
    pub(crate) fn check_idle(&mut self) -> io::Result<()> {
        self.input.set_blocking(false)?;
        while !self.is_parsing && self.input.unread().is_empty() {
            match self.input.fill() {
                Ok(()) => {} // interrupted, or there is something now
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::InvalidData.into())
    }

    /// A reply out of what has been read, if all of it has.
    fn take(&mut self) -> RedisResult<Option<Value>> {
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
                self.input.array_headers = 0;
                Ok(Some(reply))
            }
            // It keeps what it has.
            Err(error) if error.is_timeout() => {
                self.is_parsing = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns how many addresses a name has.
#[cfg(feature = "tls")]
pub(crate) fn count_addresses(host: &str, port: u16) -> io::Result<u32> {
    Ok((host, port).to_socket_addrs()?.count() as u32)
}

/// Connects to the first address that answers. Each has an equal share of the time that is left, so that an address that
/// swallows everything costs a part of it. (RFC 8305 starts them side by side, which takes a thread for each.)
///
/// # Errors
/// Of an address that stands for a name, the one that the name led to is told, and of several each.
fn connect_to_any(addresses: &[SocketAddr], is_name: bool, end: Instant) -> io::Result<TcpStream> {
    let mut failures: Vec<String> = Vec::new();
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
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
        // As a time-out it would be told without its words.
        let kind = match last.kind() {
            ErrorKind::TimedOut => ErrorKind::NotConnected,
            kind => kind,
        };
        return Err(io::Error::new(kind, failures.join("; ")));
    }
    Err(last)
}

/// The replies that locks are about: `+OK`, a number, nothing. What is longer or has another form is the parser's.
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

    /// The next line that has been read, with its end.
    fn line(&self) -> Option<&[u8]> {
        let unread = self.unread();
        let end = unread.iter().position(|byte| *byte == b'\n')?;
        Some(&unread[..=end])
    }

    /// Reads more.
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

    /// Makes reads wait or not, if they do not already.
    fn set_blocking(&mut self, wait: bool) -> io::Result<()> {
        if self.blocking != wait {
            match &self.socket {
                Socket::Tcp(tcp) => tcp.set_nonblocking(!wait)?,
                #[cfg(unix)]
                Socket::Unix(unix) => unix.set_nonblocking(!wait)?,
            }
            self.blocking = wait;
        }
        Ok(())
    }
}

/// For the parser: no more than the rest of a line, so that nothing is in its hands that is not the reply's. What has not been
/// read yet is not there.
impl Read for ReadBuffer {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let some = self.line().unwrap_or(self.unread());
        let length = some.len().min(bytes.len());
        let Some(first) = some.first().copied().filter(|_| length > 0) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        bytes[..length].copy_from_slice(&some[..length]);
        // A line in a text may look like one, too: who looks expects no text.
        self.array_headers += u32::from(matches!(first, b'*' | b'%' | b'~' | b'>' | b'|'));
        if self.reject_nested && self.array_headers > 1 {
            return Err(ErrorKind::InvalidData.into());
        }
        self.start += length;
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

    /// A socket, and its other end.
    #[expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
    fn pair() -> (PlainStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpStream::connect(address).unwrap();
        let (other, _) = listener.accept().unwrap();
        (PlainStream::new(Socket::Tcp(socket)), other)
    }

    const REPLIES: [&str; 12] = [
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
        "-NOSCRIPT No matching script.\r\n",
    ];

    proptest! {
        #[test]
        fn replies_come_out_as_the_parser_reads_them(
            which in proptest::collection::vec(0..REPLIES.len(), 1..8),
            cuts in proptest::collection::vec(1..9_usize, 1..8),
            waits in any::<bool>(),
        ) {
            let (mut own, mut other) = pair();
            let end = clock::now() + Duration::from_secs(60);
            let text: String = which.iter().map(|which| REPLIES[*which]).collect();
            let mut left = text.as_bytes();
            let mut cuts = cuts.iter().cycle();
            let mut read = Vec::new();
            while !left.is_empty() {
                let cut = cuts.next().map_or(1, |cut| *cut).min(left.len());
                other.write_all(&left[..cut]).unwrap();
                left = &left[cut..];
                while !waits && let Some(reply) = own.poll_reply().unwrap() {
                    read.push(reply);
                }
            }
            while read.len() < which.len() {
                read.push(own.receive(end).unwrap());
            }
            let parse = |which: &usize| redis::parse_redis_value(REPLIES[*which].as_bytes());
            let expected: Result<Vec<Value>, _> = which.iter().map(parse).collect();
            prop_assert_eq!(read, expected.unwrap());
            prop_assert!(own.poll_reply().unwrap().is_none());
            drop(other);
            prop_assert!(own.receive(end).is_err() && own.poll_reply().is_err());
        }
    }

    /// A listener whose queue is full, so that connects to it hang, and what fills it.
    #[cfg(target_os = "linux")]
    #[expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
    fn black_hole() -> (TcpListener, Vec<TcpStream>) {
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
    fn name_with_black_hole_before_its_server_connects_in_time() {
        let (hole, _fill) = black_hole();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [&hole, &hole, &server].map(|listener| listener.local_addr().unwrap());
        let end = clock::now() + Duration::from_secs(6);
        let socket = connect_to_any(&addresses, true, end).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), addresses[2]);
        assert!(clock::now() < end);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn name_none_of_whose_addresses_answers_is_an_error_that_names_each() {
        let (hole, _fill) = black_hole();
        let hung = hole.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        for addresses in [[hung, closed], [closed, hung]] {
            let end = clock::now() + Duration::from_millis(200);
            let error = connect_to_any(&addresses, true, end).unwrap_err();
            let told = error.to_string();
            assert!(
                told.contains(&format!("{hung}: no answer within ")),
                "{told}"
            );
            assert!(
                told.contains(&format!("{closed}: Connection refused")),
                "{told}"
            );
        }
        assert!(connect_to_any(&[], true, clock::now()).is_err());
    }

    #[test]
    fn a_reply_without_an_end_is_not_read_for_ever() {
        let (mut own, mut other) = pair();
        other.write_all(b"*1000000000\r\n").unwrap();
        let end = clock::now();
        std::thread::scope(|scope| {
            let drips = scope.spawn(move || while other.write_all(b":1\r\n").is_ok() {});
            assert!(own.receive(end).is_err_and(|error| error.is_timeout()));
            drop(own);
            drips.join().unwrap();
        });
    }

    #[test]
    fn who_looks_reads_no_reply_that_is_nested_and_does_not_stay_for_one_that_is_long() {
        let (mut own, mut other) = pair();
        other.write_all(b"*2\r\n:1\r\n*1\r\n:2\r\n").unwrap();
        let looked = std::iter::repeat_with(|| own.poll_reply());
        let mut ended = looked.skip_while(|looked| matches!(looked, Ok(None)));
        assert!(ended.next().is_some_and(|looked| looked.is_err()));
        let (mut own, mut other) = pair();
        std::thread::scope(|scope| {
            let floods = scope.spawn(move || {
                other.write_all(b"*1000000000\r\n").unwrap();
                while other.write_all(&b":1\r\n".repeat(1000)).is_ok() {}
            });
            for _ in 0..100 {
                assert!(own.poll_reply().unwrap().is_none());
            }
            drop(own);
            floods.join().unwrap();
        });
    }

    #[test]
    fn check_idle_finds_a_connection_that_is_closed_reset_or_out_of_step() {
        let end = clock::now() + Duration::from_secs(60);
        // What the other side has done has arrived, over loopback, when it returns; or is waited for by a reply.
        let (mut own, mut other) = pair();
        own.check_idle().unwrap();
        other.write_all(b"+OK\r\n").unwrap();
        own.receive(end).unwrap();
        own.check_idle().unwrap();
        drop(other);
        let kinds = [own.check_idle(), own.check_idle()].map(|checked| checked.unwrap_err().kind());
        assert_eq!(kinds, [ErrorKind::UnexpectedEof; 2]);
        // What has not been read when it is closed resets the connection.
        let (mut own, other) = pair();
        own.send_at_once(b"PING\r\n").unwrap();
        drop(other);
        assert_eq!(
            own.check_idle().unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            own.check_idle().unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
        // Behind the reply that was asked for, read along with it; one by itself; and a part of one.
        for (asked, more) in [
            ("+OK\r\n:1\r\n", ""),
            ("+OK\r\n", "+OK\r\n"),
            ("+OK\r\n", "*"),
        ] {
            let (mut own, mut other) = pair();
            other.write_all(asked.as_bytes()).unwrap();
            own.receive(end).unwrap();
            other.write_all(more.as_bytes()).unwrap();
            let kinds =
                [own.check_idle(), own.check_idle()].map(|checked| checked.unwrap_err().kind());
            assert_eq!(kinds, [ErrorKind::InvalidData; 2], "{asked:?} {more:?}");
        }
    }

    #[test]
    fn what_cannot_be_written_at_once_is_waited_for_or_an_error() {
        let (mut own, mut other) = pair();
        assert!(own.poll_reply().unwrap().is_none());
        let much = vec![b'x'; 16 << 20];
        let (mut hasty, _kept) = pair();
        assert!(hasty.send_at_once(&much).is_err());
        std::thread::scope(|scope| {
            let reads = scope.spawn(move || {
                let mut all = vec![0; 16 << 20];
                other.read_exact(&mut all).map(|()| all)
            });
            own.send(&much).unwrap();
            assert!(reads.join().unwrap().unwrap() == much);
        });
    }
}

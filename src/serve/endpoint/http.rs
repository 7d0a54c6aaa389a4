//! A plain HTTP/1.1 client for one request a connection: what an endpoint on the same machine or network needs. No TLS.
//!
//! Reads wait in slices, so that a request whose caller has gone ends soon; whoever calls runs on a thread of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a read waits before it looks whether it should end.
const SLICE: Duration = Duration::from_millis(50);
/// Most bytes of a line of the head, and most lines.
const MOST_LINE: u64 = 16 << 10;
const MOST_LINES: usize = 100;

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    /// Without a slash at the end.
    pub path: String,
}

impl Address {
    /// Reads `http://host[:port][/path]`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Address> {
        let rest = text.strip_prefix("http://")?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, 80),
        };
        let plain = |text: &str| text.chars().all(|letter| letter.is_ascii_graphic());
        (!host.is_empty() && plain(host) && plain(path)).then(|| Address {
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

/// When a request has to end.
pub struct Limits<'a> {
    pub until: Instant,
    /// The caller has gone.
    pub gone: &'a AtomicBool,
}

/// A connection whose reads end at the limits.
struct Timed<'a> {
    stream: TcpStream,
    limits: &'a Limits<'a>,
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.limits.gone.load(Ordering::Relaxed) || Instant::now() >= self.limits.until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.stream.read(into) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// How the end of a body is known.
enum Extent {
    Chunked { left: u64, first: bool },
    Length(u64),
    Close,
}

/// The body of a response, unpacked.
pub struct Body<'a> {
    from: BufReader<Timed<'a>>,
    extent: Extent,
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let left = match &mut self.extent {
            Extent::Close => return self.from.read(into),
            Extent::Length(left) => left,
            Extent::Chunked { left, first } => {
                if *left == 0 {
                    // Each chunk but the first stands behind the line end of the one before.
                    if !std::mem::take(first) {
                        line(&mut self.from)?;
                    }
                    let size = line(&mut self.from)?;
                    let digits = size.split(';').next().unwrap_or_default().trim();
                    *left = u64::from_str_radix(digits, 16).map_err(|_| io::Error::other("a bad chunk"))?;
                    if *left == 0 {
                        self.extent = Extent::Length(0);
                        return Ok(0);
                    }
                }
                left
            }
        };
        let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let into = into.get_mut(..most).unwrap_or_default();
        match self.from.read(into)? {
            0 => Err(ended()),
            count => {
                *left -= count as u64;
                Ok(count)
            }
        }
    }
}

/// A line of the head without its end.
fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MOST_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned())
}

/// Posts `body` (JSON) to `address` + `path`: the status, and the response's body.
///
/// # Errors
/// Of the connection; [`io::ErrorKind::TimedOut`] at the limits.
pub fn post<'a>(
    address: &Address,
    path: &str,
    key: Option<&str>,
    body: &[u8],
    limits: &'a Limits<'a>,
) -> io::Result<(u16, Body<'a>)> {
    let left = || limits.until.saturating_duration_since(Instant::now());
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut connected = None;
    for place in (host, address.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, left().max(Duration::from_millis(1))) {
            Ok(stream) => {
                connected = Some(stream);
                break;
            }
            Err(error) => last = error,
        }
    }
    let mut stream = connected.ok_or(last)?;
    stream.set_write_timeout(Some(left().max(Duration::from_millis(1))))?;
    stream.set_read_timeout(Some(SLICE))?;
    let Address { host, port, path: base } = address;
    let mut head = format!(
        "POST {base}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n",
        body.len()
    );
    if let Some(key) = key {
        head.push_str(&format!("Authorization: Bearer {key}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;

    let mut from = BufReader::new(Timed { stream, limits });
    let status = line(&mut from)?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code
        .filter(|_| status.starts_with("HTTP/1."))
        .ok_or_else(|| io::Error::other("no HTTP response"))?;
    let mut extent = Extent::Close;
    for _ in 0..MOST_LINES {
        let header = line(&mut from)?;
        let Some((name, value)) = header.split_once(':') else {
            return Ok((code, Body { from, extent }));
        };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "transfer-encoding" && value.to_ascii_lowercase().contains("chunked") {
            extent = Extent::Chunked { left: 0, first: true };
        } else if name == "content-length" && matches!(extent, Extent::Close) {
            extent = Extent::Length(value.parse().map_err(|_| io::Error::other("a bad length"))?);
        }
    }
    Err(io::Error::other("a response with too many headers"))
}

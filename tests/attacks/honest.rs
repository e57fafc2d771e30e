//! A sender that keeps the rules, beside whatever else goes on: a request every few milliseconds on one connection, each
//! answered with success. Says how long it waited and judges nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prost::Message as _;

use crate::spans;

const PAUSE: Duration = Duration::from_millis(3);

/// At work until it is asked.
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Sender {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut dice = spans::Dice(5);
            let mut waits = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let body = spans::request("honest", spans::trace(dice.trace_id(), 20)).encode_to_vec();
                waits.push(post(&mut stream, &body));
                pause();
            }
            waits
        });
        Self { stop, thread }
    }

    /// How long each request waited for its answer. Fails if one was not answered with success.
    pub(crate) fn stop(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[expect(clippy::disallowed_methods, reason = "a sender has its pace in real time")]
fn pause() {
    thread::sleep(PAUSE);
}

#[expect(clippy::disallowed_methods, reason = "what a sender feels is real time")]
fn post(stream: &mut TcpStream, body: &[u8]) -> Duration {
    let length = body.len();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: {length}\r\n\r\n"
    );
    let sent_at = Instant::now();
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 1_024]);
    while !answer.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the honest sender was cut: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    sent_at.elapsed()
}

/// In milliseconds, the value that `share` of all lie below.
pub(crate) fn quantile_ms(waits: &mut [Duration], per_mille: usize) -> f64 {
    waits.sort_unstable();
    let at = (waits.len() * per_mille / 1_000).min(waits.len() - 1);
    waits[at].as_secs_f64() * 1e3
}

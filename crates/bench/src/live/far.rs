use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use lab::StopSource;

use crate::throughput::{Limits, listen};
use crate::voice::{Stamps, echo, open};

pub const MOST_TRANSFERS: usize = 8;

/// A far end that serves until it is dropped.
#[derive(Debug)]
pub struct Far {
    pub address: SocketAddr,
    stop: StopSource,
    threads: Vec<JoinHandle<()>>,
}

/// Echoes voice and serves transfers on `address`, at most [`MOST_TRANSFERS`] at once, each of at most 90 s and 100 GB. Voice is answered with
/// as many bytes as came, and bulk is sent only to whoever holds a TCP connection.
pub fn serve(address: SocketAddr) -> io::Result<Far> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let socket = open(address)?;
    let stop = StopSource::new()?;
    let limits = Limits {
        duration: Duration::from_secs(90),
        bytes: 100_000_000_000,
        transfers_at_once: MOST_TRANSFERS,
    };
    let (voice, bulk) = (stop.token(), stop.token());
    let threads = vec![
        spawn(move || echo(&socket, &voice, false, Stamps::Wall)),
        spawn(move || listen(&listener, &bulk, limits)),
    ];
    Ok(Far { address, stop, threads })
}

impl Drop for Far {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            // One that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

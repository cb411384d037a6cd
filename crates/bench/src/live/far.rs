use std::io;
use std::net::SocketAddr;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use lab::StopSource;

use crate::dual;
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

/// Echoes voice and serves transfers on `address` (any of IPv6 means IPv4 too), at most [`MOST_TRANSFERS`] at once, each of at most 90 s and
/// 100 GB. Voice is answered with as many bytes as came, and bulk is sent only to whoever holds a TCP connection.
pub fn serve(address: SocketAddr) -> io::Result<Far> {
    let listener = dual::listener(address)?;
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::throughput::{Direction, Protocol, Transfer};
    use crate::voice::{Calls, EF_TOS};

    #[test]
    fn any_address_of_ipv6_is_any_of_ipv4_too() {
        let far = match serve((Ipv6Addr::UNSPECIFIED, 0).into()) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                return lab::skip("this kernel has no IPv6");
            }
            far => far.unwrap(),
        };
        for to in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            .map(|ip| SocketAddr::new(ip, far.address.port()))
        {
            let heard = Calls { to, calls: 1, packets: 2, tos: EF_TOS }.run().unwrap();
            assert_eq!(heard.samples.len(), 2, "{to}");
            let (protocol, direction, duration) =
                (Protocol::Udp(1200), Direction::Both, Duration::from_millis(100));
            let rate = Some(1_000_000);
            let moved = Transfer { to, protocol, direction, streams: 1, duration, rate }.run().unwrap();
            assert!(moved.up.unwrap().bytes > 0 && moved.down.unwrap().bytes > 0, "{to}");
        }
    }
}

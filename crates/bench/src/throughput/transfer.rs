use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use super::far::{self, Limits};
use super::protocol::{Count, Kind, Request};
use super::udp;
use super::watch::Watch;
use crate::plan::Plan;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    /// Datagrams of this payload, in bytes.
    Udp(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the agent.
    Up,
    Down,
    Both,
}

/// A transfer with a far end that [`super::serve`] or [`super::listen`] is.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub to: SocketAddr,
    pub protocol: Protocol,
    pub direction: Direction,
    /// In each direction.
    pub streams: u16,
    /// That is counted, after [`Plan::WARM_UP`].
    pub duration: Duration,
    /// Of each stream, in bit/s of payload; `None`: as fast as it goes.
    pub rate: Option<u64>,
}

/// What arrived in each direction, all streams together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    pub up: Option<Count>,
    pub down: Option<Count>,
}

impl Moved {
    pub fn total_bytes(&self) -> u64 {
        self.counts().map(|count| count.total_bytes).sum()
    }

    pub fn bit_rate(&self) -> f64 {
        self.counts().map(|count| count.bit_rate()).sum()
    }

    pub fn packet_rate(&self) -> f64 {
        self.counts().map(|count| count.packet_rate()).sum()
    }

    fn counts(&self) -> impl Iterator<Item = Count> {
        [self.up, self.down].into_iter().flatten()
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

impl Transfer {
    /// Moves the data from the calling thread's namespace, and waits for the end of it.
    pub fn run(&self) -> io::Result<Moved> {
        self.run_watched(&Watch::default())
    }

    /// As [`Transfer::run`]; others see how far it is, and may end it unless it is UDP that comes down.
    pub fn run_watched(&self, watch: &Watch) -> io::Result<Moved> {
        let kinds: &[Kind] = match (self.protocol, self.direction) {
            (Protocol::Tcp, Direction::Up) => &[Kind::TcpSink],
            (Protocol::Tcp, Direction::Down) => &[Kind::TcpSource],
            (Protocol::Tcp, Direction::Both) => &[Kind::TcpSink, Kind::TcpSource],
            (Protocol::Udp(_), Direction::Up) => &[Kind::UdpSink],
            (Protocol::Udp(_), Direction::Down) => &[Kind::UdpSource],
            (Protocol::Udp(_), Direction::Both) => &[Kind::UdpSink, Kind::UdpSource],
        };
        thread::scope(|scope| {
            let streams: Vec<_> = kinds
                .iter()
                .flat_map(|kind| (0..self.streams).map(move |_| *kind))
                .map(|kind| (kind, scope.spawn(move || self.stream(kind, watch))))
                .collect();
            let mut moved = Moved::default();
            for (kind, stream) in streams {
                let count = stream.join().map_err(|_| io::Error::other("a transfer's thread panicked"))??;
                let total = match kind {
                    Kind::TcpSink | Kind::UdpSink => &mut moved.up,
                    Kind::TcpSource | Kind::UdpSource => &mut moved.down,
                };
                total.get_or_insert_default().add(&count);
            }
            Ok(moved)
        })
    }

    fn stream(&self, kind: Kind, watch: &Watch) -> io::Result<Count> {
        let payload = match self.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp(payload) => payload,
        };
        let (warm_up, duration, rate) = (Plan::WARM_UP, self.duration, self.rate);
        let request = Request { kind, payload, warm_up, duration, rate };
        let mut stream = TcpStream::connect_timeout(&self.to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        request.write(&mut stream)?;
        match kind {
            Kind::TcpSink => {
                far::send(&mut stream, &request, u64::MAX, watch)?;
                Count::read(&mut stream)
            }
            Kind::TcpSource => far::receive(&mut stream, &request, Limits::default(), watch),
            Kind::UdpSink => {
                let socket = self.beside(&mut stream)?;
                let sent_for = udp::send(&socket, &request, u64::MAX, watch);
                let count = Count::read(&mut stream)?;
                Ok(if sent_for < request.length() { count.of_all(sent_for, payload) } else { count })
            }
            Kind::UdpSource => {
                let socket = self.beside(&mut stream)?;
                socket.send(&[0])?;
                udp::receive(&socket, &request)
            }
        }
    }

    /// The UDP socket that goes with a connection.
    fn beside(&self, stream: &mut TcpStream) -> io::Result<UdpSocket> {
        let mut port = [0; 2];
        stream.read_exact(&mut port)?;
        let socket = UdpSocket::bind((stream.local_addr()?.ip(), 0))?;
        socket.connect((self.to.ip(), u16::from_be_bytes(port)))?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use lab::StopSource;

    use super::*;

    #[test]
    fn an_upload_that_is_ended_counts_for_as_long_as_it_was() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (to, mut stop) = (listener.local_addr().unwrap(), StopSource::new().unwrap());
        let token = stop.token();
        let far = thread::spawn(move || far::listen(&listener, &token, Limits::default()));
        let (direction, duration, rate) = (Direction::Up, Duration::from_secs(60), Some(8_000_000));
        for protocol in [Protocol::Udp(1000), Protocol::Tcp] {
            let watch = Watch::default();
            let transfer = Transfer { to, protocol, direction, streams: 1, duration, rate };
            let moved = thread::scope(|scope| {
                let running = scope.spawn(|| transfer.run_watched(&watch));
                // Longer than the warm-up, of which TCP counts nothing.
                thread::sleep(Plan::WARM_UP * 2);
                watch.end();
                running.join().unwrap().unwrap()
            });
            let count = moved.up.unwrap();
            assert!(watch.moved() > 0 && count.bytes > 0, "{protocol:?}: {count:?}");
            assert!(count.window < duration / 2, "{protocol:?}: {count:?}");
        }
        stop.stop();
        far.join().unwrap();
    }
}

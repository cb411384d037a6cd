use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::receive::{prepare, receive};
use super::{INTERVAL, Packet};
use crate::clock;
use crate::scheduling::take_realtime;

/// Some calls at once, each from a socket of its own.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    pub to: SocketAddr,
    pub calls: u16,
    /// Of each call.
    pub packets: u32,
    /// The type-of-service byte; for IPv4.
    pub tos: u8,
}

/// A packet that came back. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub call: u32,
    pub number: u32,
    /// When it was to be sent.
    pub due: u64,
    /// When the far end received it, by its clock.
    pub far: u64,
    pub back: u64,
}

/// What came back, in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub sent: u64,
    pub samples: Vec<Sample>,
    /// Whether both ends of the caller ran real-time; otherwise receive times are the kernel's.
    pub realtime: bool,
}

/// How long answers are waited for after the last packet.
const PATIENCE: Duration = Duration::from_secs(1);
/// For the first answer of each call: a first packet may wait for a handshake.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// The number of packets that only open the way.
const OPENING: u32 = u32::MAX;
/// The sender has not finished yet.
const RUNNING: u64 = u64::MAX;

impl Calls {
    /// Makes the calls from the calling thread's namespace. Packets are due at fixed times, the calls' spread evenly over the interval.
    ///
    /// # Errors
    /// If a call gets no answer at all, or a socket fails. A packet that the network refuses counts as lost.
    pub fn run(&self) -> io::Result<Heard> {
        let sockets = self.open()?;
        let end = AtomicU64::new(RUNNING);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let realtime = take_realtime();
                let sent = self.send(&sockets);
                end.store(clock::now_ns() + PATIENCE.as_nanos() as u64, Ordering::Relaxed);
                (sent, realtime)
            });
            let receiver = scope.spawn(|| {
                let realtime = take_realtime();
                for socket in &sockets {
                    prepare(socket, !realtime)?;
                    socket.set_nonblocking(true)?;
                }
                Ok::<_, io::Error>((self.collect(&sockets, &end)?, realtime))
            });
            let panicked = |_| io::Error::other("a voice thread panicked");
            let (sent, sends_on_time) = sender.join().map_err(panicked)?;
            let (samples, receives_on_time) = receiver.join().map_err(panicked)??;
            Ok(Heard { sent, samples, realtime: sends_on_time && receives_on_time })
        })
    }

    fn open(&self) -> io::Result<Vec<UdpSocket>> {
        let any: SocketAddr = if self.to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let mut sockets = Vec::with_capacity(usize::from(self.calls));
        for call in 0..self.calls {
            let socket = UdpSocket::bind(any)?;
            socket.connect(self.to)?;
            if self.to.is_ipv4() {
                SockRef::from(&socket).set_tos_v4(u32::from(self.tos))?;
            }
            open_the_way(&socket, call)?;
            sockets.push(socket);
        }
        Ok(sockets)
    }

    fn send(&self, sockets: &[UdpSocket]) -> u64 {
        let interval = INTERVAL.as_nanos() as u64;
        let begun = clock::now_ns() + interval;
        let mut sent = 0;
        for number in 0..self.packets {
            for (call, socket) in (0_u64..).zip(sockets) {
                let due =
                    begun + u64::from(number) * interval + call * interval / u64::from(self.calls.max(1));
                clock::sleep_until(due);
                sent += 1;
                // Refused by an earlier packet's ICMP error or a full queue: it counts as lost.
                let _ = socket.send(&Packet { call: call as u32, number, due, far: 0 }.write());
            }
        }
        sent
    }

    /// Until all are there or `end` has come.
    fn collect(&self, sockets: &[UdpSocket], end: &AtomicU64) -> io::Result<Vec<Sample>> {
        const WAIT: u8 = 100;
        let all = self.packets as usize * sockets.len();
        let mut samples = Vec::with_capacity(all);
        let mut buffer = [0; 2048];
        while samples.len() < all && clock::now_ns() < end.load(Ordering::Relaxed) {
            let mut polled: Vec<PollFd<'_>> =
                sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut polled, PollTimeout::from(WAIT)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            for (socket, poll) in sockets.iter().zip(&polled) {
                if poll.any() != Some(true) {
                    continue;
                }
                // An error is the end of what waits, or an ICMP error about a packet that is counted as lost anyway.
                while let Ok(received) = receive(socket, &mut buffer) {
                    let Some(packet) = buffer.get(..received.len).and_then(Packet::read) else { continue };
                    if packet.number != OPENING {
                        let Packet { call, number, due, far } = packet;
                        samples.push(Sample { call, number, due, far, back: received.at });
                    }
                }
            }
        }
        Ok(samples)
    }
}

/// Sends until something comes back, so that neither a handshake nor a neighbour's address is measured as voice.
fn open_the_way(socket: &UdpSocket, call: u16) -> io::Result<()> {
    let begun = Instant::now();
    socket.set_read_timeout(Some(CONNECT_PAUSE))?;
    let mut buffer = [0; 2048];
    while begun.elapsed() < CONNECT_PATIENCE {
        let opening = Packet { call: u32::from(call), number: OPENING, due: clock::now_ns(), far: 0 };
        let _ = socket.send(&opening.write());
        match socket.recv(&mut buffer) {
            Ok(len) if buffer.get(..len).and_then(Packet::read).is_some() => return Ok(()),
            _ => {}
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer to voice packets within {} s", CONNECT_PATIENCE.as_secs()),
    ))
}

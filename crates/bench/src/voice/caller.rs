use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
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
    /// The type-of-service or traffic-class byte.
    pub tos: u8,
}

/// Calls that have been answered once, so that neither a handshake nor a neighbour's address is measured as voice.
#[derive(Debug)]
pub struct OpenCalls {
    calls: Calls,
    sockets: Vec<UdpSocket>,
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
    /// For each packet, by how much its sending came after it was due, in nanoseconds.
    pub late: Vec<u64>,
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
    /// Makes the calls from the calling thread's namespace.
    ///
    /// # Errors
    /// If a call gets no answer at all, or a socket fails. A packet that the network refuses counts as lost.
    pub fn run(&self) -> io::Result<Heard> {
        self.open()?.run()
    }

    /// Opens a way for each call, from the calling thread's namespace.
    ///
    /// # Errors
    /// If a call gets no answer within 10 s, or a socket fails.
    pub fn open(&self) -> io::Result<OpenCalls> {
        let any: SocketAddr = if self.to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let mut sockets = Vec::with_capacity(usize::from(self.calls));
        for call in 0..self.calls {
            let socket = UdpSocket::bind(any)?;
            socket.connect(self.to)?;
            match self.to {
                SocketAddr::V4(_) => SockRef::from(&socket).set_tos_v4(u32::from(self.tos))?,
                SocketAddr::V6(_) => SockRef::from(&socket).set_tclass_v6(u32::from(self.tos))?,
            }
            open_the_way(&socket, call)?;
            socket.set_nonblocking(true)?;
            sockets.push(socket);
        }
        Ok(OpenCalls { calls: *self, sockets })
    }
}

impl OpenCalls {
    /// Where each call comes from.
    pub fn ports(&self) -> io::Result<Vec<u16>> {
        self.sockets.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
    }

    /// Talks from now on.
    ///
    /// # Errors
    /// As [`OpenCalls::talk`].
    pub fn run(&self) -> io::Result<Heard> {
        self.talk(clock::now_ns() + INTERVAL.as_nanos() as u64)
    }

    /// Talks, from any thread. Packets are due at fixed times, the first at `begin` nanoseconds since the machine started, the calls' spread
    /// evenly over the interval.
    ///
    /// # Errors
    /// If a socket fails. A packet that the network refuses counts as lost.
    pub fn talk(&self, begin: u64) -> io::Result<Heard> {
        let end = AtomicU64::new(RUNNING);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let realtime = take_realtime();
                let late = self.send(begin);
                end.store(clock::now_ns() + PATIENCE.as_nanos() as u64, Ordering::Relaxed);
                (late, realtime)
            });
            let receiver = scope.spawn(|| {
                let realtime = take_realtime();
                for socket in &self.sockets {
                    prepare(socket, !realtime)?;
                }
                Ok::<_, io::Error>((self.collect(&end)?, realtime))
            });
            let panicked = |_| io::Error::other("a voice thread panicked");
            let (late, sends_on_time) = sender.join().map_err(panicked)?;
            let (samples, receives_on_time) = receiver.join().map_err(panicked)??;
            let realtime = sends_on_time && receives_on_time;
            Ok(Heard { sent: late.len() as u64, samples, late, realtime })
        })
    }

    /// Returns for each packet by how much it was late.
    fn send(&self, begin: u64) -> Vec<u64> {
        let interval = INTERVAL.as_nanos() as u64;
        let Calls { calls, packets, .. } = self.calls;
        let mut late = Vec::with_capacity(packets as usize * self.sockets.len());
        for number in 0..packets {
            for (call, socket) in (0_u64..).zip(&self.sockets) {
                let due = begin + u64::from(number) * interval + call * interval / u64::from(calls.max(1));
                clock::sleep_until(due);
                late.push(clock::now_ns().saturating_sub(due));
                // Refused by an earlier packet's ICMP error or a full queue: it counts as lost.
                let _ = socket.send(&Packet { call: call as u32, number, due, far: 0 }.write());
            }
        }
        late
    }

    /// Until all are there or `end` has come.
    fn collect(&self, end: &AtomicU64) -> io::Result<Vec<Sample>> {
        const WAIT: u8 = 100;
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        for (index, socket) in (0..).zip(&self.sockets) {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index))?;
        }
        let all = self.calls.packets as usize * self.sockets.len();
        let mut samples = Vec::with_capacity(all);
        let mut buffer = [0; 2048];
        let mut events = [EpollEvent::empty(); 64];
        while samples.len() < all && clock::now_ns() < end.load(Ordering::Relaxed) {
            let ready = match epoll.wait(&mut events, EpollTimeout::from(WAIT)) {
                Err(Errno::EINTR) => 0,
                ready => ready?,
            };
            for event in events.iter().take(ready) {
                let Some(socket) = self.sockets.get(event.data() as usize) else { continue };
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

/// Sends until something comes back.
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

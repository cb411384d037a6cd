//! What it costs to carry one small packet beside the tunnel: back-to-back round trips, and the most packets per second. Sender, carrier and
//! echo share one processor: otherwise where the scheduler happens to put them is what is measured.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use lab::{During, Host, LabError, StopSource};
use socket2::SockRef;

use crate::clock;
use crate::scheduling::{Pinned, pin_this_thread, take_realtime};
use crate::voice::{self, Delays, Packet, Stamps};

/// How long round trips are made.
pub const PING_PONG: Duration = Duration::from_millis(500);
/// How long packets are sent as fast as it goes; the first part of it does not count.
pub const PACKET_RATE: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(300);
/// That counts.
const WINDOW: Duration = Duration::from_secs(1);
/// Round trips before the first that counts.
const COLD: u32 = 100;
const PATIENCE: Duration = Duration::from_millis(100);
/// Packets that open the flow, with a pause behind each as between a call's: whoever takes over established flows does it in one.
pub const OPENING: u32 = 3;
pub const PAUSE: Duration = Duration::from_millis(20);
/// Of a small packet, in bytes.
const PAYLOAD: usize = 200;
/// As voice begins: RTP (RFC 3550 §5.1).
const FIRST: [u8; 2] = [0x80, 111];
/// The processor, counted among those that may be used.
const PROCESSOR: usize = 0;

/// Two hosts, and what carries packets from one to the other.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    pub near: &'a Host,
    pub far: &'a Host,
    /// An address of the far host; nobody may have the port.
    pub to: SocketAddr,
    /// The type-of-service byte that packets are sent with; without one they have to arrive marked EF.
    pub tos: u8,
    /// The process that carries packets, if it is one.
    pub carrier: Option<u32>,
}

/// What was found, and the port that it was found from.
#[derive(Clone, Debug)]
pub struct Sent<T> {
    pub found: T,
    pub port: u16,
    pub packets: u64,
}

/// Sends a voice packet each time the one before has come back, and returns the round trips in nanoseconds.
pub fn ping_pong(way: &Way<'_>) -> Result<Sent<Histogram<u64>>, LabError> {
    let what = || format!("send packets to {} and back", way.to);
    let _bound = way.pin().during(what)?;
    let (to, tos) = (way.to, way.tos);
    let socket = way.far.run(move || voice::open(to))?.during(what)?;
    let mut stop = StopSource::new().during(what)?;
    let token = stop.token();
    let echo = way.far.thread("echo", move || {
        pin_this_thread(PROCESSOR)?;
        voice::echo(&socket, &token, tos == 0, Stamps::Machine);
        Ok::<_, io::Error>(())
    })?;
    let trips = way.near.thread("ping-pong", move || round_trips(to, tos))?.join();
    stop.stop();
    let panicked = |_| "its thread panicked".to_owned();
    echo.join().map_err(panicked).during(what)?.during(what)?;
    trips.map_err(panicked).during(what)?.during(what)
}

fn round_trips(to: SocketAddr, tos: u8) -> io::Result<Sent<Histogram<u64>>> {
    pin_this_thread(PROCESSOR)?;
    take_realtime();
    let socket = socket_to(to, tos)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut delays = Delays::default().round_trip;
    let mut buffer = [0; 2048];
    let begun = Instant::now();
    for number in 0.. {
        if begun.elapsed() > PING_PONG {
            break;
        }
        if (1..=OPENING).contains(&number) {
            sleep(PAUSE);
        }
        let due = clock::now_ns();
        let _ = socket.send(&Packet { call: 0, number, due, far: 0 }.write());
        // An answer to an earlier packet, given up on, is passed over; none in time: the next one is sent.
        while let Ok(len) = socket.recv(&mut buffer) {
            if buffer.get(..len).and_then(Packet::read).is_some_and(|packet| packet.number == number) {
                if number >= COLD {
                    // A histogram that grows by itself takes any delay.
                    let _ = delays.record(clock::now_ns().saturating_sub(due));
                }
                break;
            }
        }
    }
    if delays.is_empty() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came back"));
    }
    let (packets, port) = (delays.len(), socket.local_addr()?.port());
    Ok(Sent { found: delays, port, packets })
}

/// Packets per second of [`PAYLOAD`] bytes that arrive on the far host's wire. Nobody reads them there, so that only sending and carrying
/// them is work.
pub fn packet_rate(way: &Way<'_>) -> Result<Sent<f64>, LabError> {
    let what = || format!("send small packets to {}", way.to);
    let _bound = way.pin().during(what)?;
    let (to, tos) = (way.to, way.tos);
    // Without it each packet would be answered by an ICMP error.
    let _sink = way.far.run(move || UdpSocket::bind(to))?.during(what)?;
    let sender = way.near.thread("flood", move || flood(to, tos))?;
    sleep(PAUSE * OPENING + WARM_UP);
    let before = (arrived(way.far).during(what)?, Instant::now());
    sleep(WINDOW);
    let after = (arrived(way.far).during(what)?, Instant::now());
    let port = sender.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)?;
    let packets = after.0.saturating_sub(before.0);
    Ok(Sent { found: packets as f64 / (after.1 - before.1).as_secs_f64(), port, packets })
}

/// Returns the port it sent from.
fn flood(to: SocketAddr, tos: u8) -> io::Result<u16> {
    pin_this_thread(PROCESSOR)?;
    let socket = socket_to(to, tos)?;
    let mut packet = [0; PAYLOAD];
    for (at, byte) in packet.iter_mut().zip(FIRST) {
        *at = byte;
    }
    for _ in 0..OPENING {
        socket.send(&packet)?;
        sleep(PAUSE);
    }
    let begun = Instant::now();
    while begun.elapsed() + PAUSE * OPENING < PACKET_RATE {
        for _ in 0..32 {
            // A full queue loses this one.
            let _ = socket.send(&packet);
        }
    }
    Ok(socket.local_addr()?.port())
}

/// Packets that the host's wire has brought so far.
fn arrived(host: &Host) -> Result<u64, LabError> {
    let what = || "read /proc/net/dev".to_owned();
    let text = host.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?.during(what)?;
    received(&text, "eth0").ok_or("it has no line of eth0").during(what)
}

/// The second field after the device's name (proc_pid_net(5)).
fn received(dev: &str, device: &str) -> Option<u64> {
    let line = dev.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn socket_to(to: SocketAddr, tos: u8) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    SockRef::from(&socket).set_tos_v4(u32::from(tos))?;
    Ok(socket)
}

impl Way<'_> {
    fn pin(&self) -> io::Result<Option<Pinned>> {
        self.carrier.map(|pid| Pinned::pin(pid, PROCESSOR)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_packets_are_found() {
        let dev = "Inter-|   Receive\n face |bytes    packets errs\n    lo:  10  1 0\n  eth0: 2000 30 0 0\n";
        assert_eq!(
            (received(dev, "eth0"), received(dev, "lo"), received(dev, "eth1")),
            (Some(30), Some(1), None)
        );
    }
}

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane::{Feature, FlowReport};

use super::capture::Capture;
use crate::machine::{Family, Machine, V4, skip};
use crate::marked;

pub const STUN: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];
pub const PATIENCE: Duration = Duration::from_secs(5);
/// After which the second packet of a flow is the kernel's.
pub const SETTLED: Duration = Duration::from_millis(5);

/// A call between an application under `source` and a far end.
pub struct Call {
    pub app: UdpSocket,
    pub far: UdpSocket,
    pub remote: SocketAddr,
    pub sent: u32,
}

impl Call {
    pub fn new(machine: &Machine, source: IpAddr, family: Family) -> Self {
        let app = UdpSocket::bind((source, 0)).unwrap();
        marked::prepare(&app, PATIENCE);
        // Port 0: any.
        let far = machine.far_socket(family.media, 0);
        let remote = far.local_addr().unwrap();
        Self { app, far, remote, sent: 0 }
    }

    /// A call that the kernel moves, and where the far end sees it come from.
    pub fn in_kernel(machine: &Machine) -> (Self, SocketAddr) {
        let mut call = Self::new(machine, V4.tun, V4);
        let external = call.there_and_back();
        call.wait_for_kernel(machine);
        (call, external)
    }

    /// Talks until the kernel moves the call, which takes two packets mostly.
    pub fn wait_for_kernel(&mut self, machine: &Machine) {
        // Of what is sent the TUN shows what the pump gets.
        let pump = Capture::start(&machine.tun);
        for _ in 0..100 {
            std::thread::sleep(SETTLED);
            self.there_and_back();
            if !pump.waiting().any(|seen| seen.outgoing && seen.destination == self.remote) {
                return;
            }
        }
        panic!("it stays with the pump; {}", feature(machine).2);
    }

    /// The next packet, numbered.
    pub fn next(&mut self) -> [u8; 24] {
        self.sent += 1;
        let mut packet = [0; 24];
        packet[..20].copy_from_slice(&STUN);
        packet[3] = 4;
        packet[20..].copy_from_slice(&self.sent.to_be_bytes());
        packet
    }

    /// Sends a packet and has it answered; returns where the far end saw it come from.
    pub fn there_and_back(&mut self) -> SocketAddr {
        let packet = self.next();
        self.app.send_to(&packet, self.remote).unwrap();
        let received = marked::receive(&self.far);
        assert_eq!((received.payload.as_slice(), received.tos, received.ttl), (packet.as_slice(), 0xb8, 64));
        self.far.send_to(&packet, received.from).unwrap();
        let answer = marked::receive(&self.app);
        assert_eq!((answer.payload.as_slice(), answer.from), (packet.as_slice(), self.remote));
        received.from
    }
}

/// `None`, with the reason told, where there is none.
pub fn machine_with_fast_path() -> Option<Machine> {
    let machine = Machine::new()?;
    let (_, on, why) = feature(&machine);
    if !on {
        skip(&why);
    }
    on.then_some(machine)
}

pub fn feature(machine: &Machine) -> Feature {
    machine.pump.features().unwrap().into_iter().find(|(name, ..)| *name == "kernel-fast-path").unwrap()
}

/// Whether the kernel has an entry for the call.
pub fn is_in_kernel(machine: &Machine, call: &Call) -> bool {
    flow(machine, call).is_some_and(|flow| flow.in_kernel)
}

pub fn flow(machine: &Machine, call: &Call) -> Option<FlowReport> {
    let source = call.app.local_addr().unwrap();
    machine.pump.flows().unwrap().into_iter().find(|flow| flow.tuple.source == source)
}

pub fn set_options(socket: &UdpSocket, options: &[u8]) {
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel reads as many bytes as it is told of, all of which outlive the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as libc::socklen_t,
        )
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

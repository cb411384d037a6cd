use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use packet::{OuterDscp, Tos};
use socket2::Socket;

use crate::Feature;
use crate::buffers::Buffers;
use crate::io::probe;
use crate::io::receive::Receiver;
use crate::io::send::{Datagram, Retry, Sender};
use crate::io::sockets;
use crate::sealed::SealedBatch;

/// A datagram of any size, or several that the kernel gathered.
const DATAGRAM: usize = 65_535;
/// Messages taken at once. Gathered, each holds up to 45 datagrams of 1452 bytes, so this bounds a turn to about 1 ms of cipher.
const MESSAGES: usize = 16;

/// Sends sealed datagrams, many of one size as one where the kernel segments them.
pub(crate) struct Outbox {
    sender: Sender,
    sealed: SealedBatch,
    dscp: OuterDscp,
    segments: Switch,
}

/// Receives datagrams, many of one size as one where the kernel gathers them.
pub(crate) struct Inbox {
    receiver: Receiver,
    buffers: Buffers,
    gathers: Switch,
}

/// Whether a feature is used, and why.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) on: bool,
    why: String,
}

/// Whether the kernel is given several datagrams at once, if it is `wanted`: where it offers that, and does it right.
pub(crate) fn segmentation(socket: &Socket, wanted: bool) -> Switch {
    let offered = Switch::new(wanted, || sockets::segments_datagrams(socket));
    if !offered.on {
        return offered;
    }
    match probe::segmentation() {
        Ok(why) => Switch { on: true, why },
        Err(why) => Switch { on: false, why },
    }
}

impl Outbox {
    /// `segments`: see [`segmentation`].
    pub(crate) fn new(segments: Switch, dscp: OuterDscp) -> Self {
        Self { sender: Sender::new(), sealed: SealedBatch::new(), dscp, segments }
    }

    pub(crate) fn feature(&self) -> Feature {
        self.segments.feature("udp-segmentation")
    }

    /// Whether to [`Outbox::send`] before anything else is sealed.
    pub(crate) fn is_full(&self) -> bool {
        self.sealed.is_full()
    }

    /// Where the next datagram is to be sealed.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.sealed.room()
    }

    /// Takes what was sealed into the first `len` bytes of [`Outbox::room`]. `inner` is the TOS of the packet inside, if there is one.
    pub(crate) fn push(&mut self, len: usize, inner: Option<Tos>, destination: SocketAddr) {
        self.sealed.push(len, destination, self.dscp.encapsulated(inner), self.segments.on);
    }

    /// Sends what was pushed. Returns how many sends failed.
    pub(crate) fn send(&mut self, socket: &Socket) -> usize {
        if self.sealed.is_empty() {
            return 0;
        }
        let mut failed = 0;
        let unsegmented = self
            .sender
            .send_all(socket.as_fd(), self.sealed.datagrams(), |_, error| not_sent(error, &mut failed));
        if let Some(error) = unsegmented {
            tracing::warn!(%error, "tunnel datagrams are sent one by one from now on");
            self.segments = Switch { on: false, why: format!("a segmented send was refused: {error}") };
        }
        self.sealed.clear();
        failed
    }

    /// Sends one datagram without a packet inside at once. Returns how many sends failed.
    pub(crate) fn send_now(&mut self, payload: &[u8], destination: SocketAddr, socket: &Socket) -> usize {
        let tos = self.dscp.encapsulated(None);
        let datagram = Datagram { payload, destination, tos, ttl: None, segment: None };
        let mut failed = 0;
        self.sender
            .load(std::iter::once(datagram))
            .send(socket.as_fd(), |_, error| not_sent(error, &mut failed));
        failed
    }
}

impl Inbox {
    /// With `offload` it uses what the kernel offers.
    pub(crate) fn new(socket: &Socket, offload: bool) -> Self {
        let gathers = Switch::new(offload, || sockets::gather_datagrams(socket));
        Self { receiver: Receiver::new(), buffers: Buffers::new(MESSAGES, DATAGRAM), gathers }
    }

    /// To be told when another socket is used from now on.
    pub(crate) fn socket_changed(&mut self, socket: &Socket) {
        if self.gathers.on {
            self.gathers = Switch::new(true, || sockets::gather_datagrams(socket));
        }
    }

    pub(crate) fn feature(&self) -> Feature {
        self.gathers.feature("udp-gathering")
    }

    /// Receives one batch: how many messages, and whether there may be more.
    pub(crate) fn receive(&mut self, socket: &Socket) -> (usize, bool) {
        match self.receiver.receive(socket.as_fd(), &mut self.buffers, 0) {
            Ok(count) => (count, count == MESSAGES),
            // Any other error stands for one event of the socket; what else is there still has to be read.
            Err(error) => (0, error.kind() != io::ErrorKind::WouldBlock),
        }
    }

    /// Who sent the message at a place below what [`Inbox::receive`] returned, what its header said, and the datagrams that it holds: the kernel
    /// gathers only those with the same TOS.
    pub(crate) fn message(&self, place: usize) -> Option<(SocketAddr, Tos, impl Iterator<Item = &[u8]>)> {
        let received = self.receiver.get(place)?;
        let bytes = self.buffers.get(place).get(..received.len)?;
        Some((received.from, received.tos, bytes.chunks(received.segment)))
    }
}

impl Switch {
    fn new(wanted: bool, ask: impl FnOnce() -> io::Result<()>) -> Self {
        if !wanted {
            return Self { on: false, why: "switched off in the configuration".to_owned() };
        }
        match ask() {
            Ok(()) => Self { on: true, why: "the kernel does it".to_owned() },
            Err(error) => Self { on: false, why: format!("the kernel does not know it: {error}") },
        }
    }

    fn feature(&self, name: &'static str) -> Feature {
        (name, self.on, self.why.clone())
    }
}

fn not_sent(error: &io::Error, failed: &mut usize) -> Retry {
    tracing::debug!(%error, "a tunnel datagram was not sent");
    *failed += 1;
    Retry::No
}

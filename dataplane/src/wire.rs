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

/// The socket that carries WireGuard's datagrams, and what goes out and comes in through it.
pub(crate) struct Wire {
    pub(crate) socket: Socket,
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Inbox,
}

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
struct Switch {
    on: bool,
    why: String,
}

impl Wire {
    /// With `offload` it uses what the kernel offers. `dscp` is for what goes out.
    pub(crate) fn new(socket: Socket, offload: bool, dscp: OuterDscp) -> Self {
        let asked = |ask: fn(&Socket) -> io::Result<()>| match offload {
            true => Switch::of(ask(&socket)),
            false => Switch { on: false, why: "switched off in the configuration".to_owned() },
        };
        let mut segments = asked(sockets::segments_datagrams);
        if segments.on {
            segments = match probe::segmentation() {
                Ok(why) => Switch { on: true, why },
                Err(why) => Switch { on: false, why },
            };
        }
        let gathers = asked(sockets::gather_datagrams);
        Self {
            socket,
            outbox: Outbox { sender: Sender::new(), sealed: SealedBatch::new(), dscp, segments },
            inbox: Inbox { receiver: Receiver::new(), buffers: Buffers::new(MESSAGES, DATAGRAM), gathers },
        }
    }

    /// Goes on with another socket.
    pub(crate) fn replace(&mut self, socket: Socket) {
        if self.inbox.gathers.on {
            self.inbox.gathers = Switch::of(sockets::gather_datagrams(&socket));
        }
        self.socket = socket;
    }

    pub(crate) fn features(&self) -> [Feature; 2] {
        [("udp-segmentation", &self.outbox.segments), ("udp-gathering", &self.inbox.gathers)]
            .map(|(name, switch)| (name, switch.on, switch.why.clone()))
    }
}

impl Outbox {
    /// Where the next datagram is to be sealed.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.sealed.room()
    }

    /// Takes what was sealed into the first `len` bytes of [`Outbox::room`], and sends if no more fits. `inner` is the TOS of the packet inside,
    /// if there is one. Returns how many sends failed.
    pub(crate) fn push(
        &mut self,
        len: usize,
        inner: Option<Tos>,
        destination: SocketAddr,
        socket: &Socket,
    ) -> usize {
        self.sealed.push(len, destination, self.dscp.encapsulated(inner), self.segments.on);
        if self.sealed.is_full() { self.send(socket) } else { 0 }
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
    fn of(asked: io::Result<()>) -> Self {
        match asked {
            Ok(()) => Self { on: true, why: "the kernel does it".to_owned() },
            Err(error) => Self { on: false, why: format!("the kernel does not know it: {error}") },
        }
    }
}

fn not_sent(error: &io::Error, failed: &mut usize) -> Retry {
    tracing::debug!(%error, "a tunnel datagram was not sent");
    *failed += 1;
    Retry::No
}

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use packet::{OuterDscp, Tos};
use socket2::Socket;

use crate::Feature;
use crate::buffers::Buffers;
use crate::io::error_queue;
use crate::io::probe;
use crate::io::receive::Receiver;
use crate::io::send::{Datagram, Next, Sender};
use crate::io::sockets;
use crate::path_mtu::LEAST_LINK_MTU;
use crate::sealed::SealedBatch;

/// A datagram of any size, or several that the kernel gathered.
const DATAGRAM: usize = 65_535;
/// Messages taken at once. Gathered, each holds up to 45 datagrams of 1452 bytes, so this bounds a turn of the bulk thread to 1 MB, 0.9 ms of
/// cipher at 1.2 GB/s. The peer's lock is given back after each.
const MESSAGES: usize = 16;

/// Sends sealed datagrams, many of one size as one where the kernel segments them.
pub(crate) struct Outbox {
    sender: Sender,
    sealed: SealedBatch,
    dscp: OuterDscp,
    segmentation: Arc<UdpSegmentation>,
    fragmenting: Fragmenting,
}

/// To whom what is sent may be fragmented on the way, of a socket that otherwise sends with DF.
#[derive(Default)]
struct Fragmenting {
    destinations: Vec<SocketAddr>,
    /// The outer size to which the kernel fragments IPv6, which nobody on the way does.
    least: Option<u16>,
}

/// Receives datagrams, many of one size as one where the kernel gathers them.
pub(crate) struct Inbox {
    receiver: Receiver,
    buffers: Buffers,
    gathers: Switch,
}

/// Whether the kernel is given several datagrams at once: by all threads or by none, since a path that refuses them does so for each.
pub(crate) struct UdpSegmentation {
    /// As the kernel offers it.
    offered: Switch,
    /// Not since a path refused it, or lost what was sent so.
    on: AtomicBool,
    is_lost: AtomicBool,
    refusal: Mutex<String>,
}

/// Whether a feature is used, and why.
struct Switch {
    on: bool,
    why: String,
}

impl Outbox {
    pub(crate) fn new(segmentation: Arc<UdpSegmentation>, dscp: OuterDscp) -> Self {
        let fragmenting = Fragmenting::default();
        Self { sender: Sender::new(), sealed: SealedBatch::new(), dscp, segmentation, fragmenting }
    }

    pub(crate) fn segmentation(&self) -> &UdpSegmentation {
        &self.segmentation
    }

    /// Whether to [`Outbox::send`] before anything else is sealed.
    pub(crate) fn is_full(&self) -> bool {
        self.sealed.is_full()
    }

    /// As [`SealedBatch::give_back`].
    pub(crate) fn give_back(&mut self) {
        self.sealed.give_back();
    }

    /// Where the next datagram is to be sealed.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.sealed.room()
    }

    /// Takes what was sealed into the first `len` bytes of [`Outbox::room`]. `inner` is the TOS of the packet inside, if there is one.
    pub(crate) fn push(&mut self, len: usize, inner: Option<Tos>, destination: SocketAddr) {
        self.sealed.push(len, destination, self.dscp.encapsulated(inner), self.segmentation.is_on());
    }

    /// Lets what goes to these destinations be fragmented from now on, and nothing else. Only for who sends through a socket alone.
    pub(crate) fn let_fragment(&mut self, destinations: Vec<SocketAddr>, least: Option<u16>) {
        self.fragmenting = Fragmenting { destinations, least: least.map(|it| it.max(LEAST_LINK_MTU)) };
    }

    /// Sends what was pushed. Returns how many datagrams the system did not take.
    pub(crate) fn send(&mut self, socket: &Socket) -> usize {
        if self.sealed.is_empty() {
            return 0;
        }
        let Self { sender, sealed, segmentation, fragmenting, .. } = self;
        let mut failures = Failures::default();
        let mut send = |fragmented| {
            failures.tried_again = None;
            let datagrams = sealed.datagrams().filter(|it| fragmenting.has(it.destination) == fragmented);
            let unsegmented = sender.send_all(socket.as_fd(), datagrams, |place, datagram, error| {
                failures.note(place, datagram.parts().count(), error)
            });
            // What became too large for the path on its way here says nothing of the next batch.
            let refusal = unsegmented.filter(|error| error.raw_os_error() != Some(libc::EMSGSIZE));
            if let Some(error) = refusal.filter(|_| !fragmented) {
                segmentation.refused(&error);
            }
        };
        send(false);
        if let Some(to) = sealed.datagrams().map(|it| it.destination).find(|to| fragmenting.has(*to)) {
            let sent = sockets::fragmenting(socket, to.ip(), fragmenting.least, || send(true));
            if let Err(error) = sent {
                tracing::warn!(%error, "large packets may be lost on the way to a peer");
            }
        }
        sealed.clear();
        failures.count
    }

    /// Sends one datagram, marked as one without a packet inside, or with `segment` as many of this size as `payload` has, at once. Returns how
    /// many the system did not take.
    pub(crate) fn send_now(
        &mut self,
        payload: &[u8],
        segment: Option<u16>,
        destination: SocketAddr,
        socket: &Socket,
    ) -> usize {
        let tos = self.dscp.encapsulated(None);
        let datagram = Datagram { payload, destination, tos, ttl: None, segment };
        let mut failures = Failures::default();
        self.sender
            .load(std::iter::once(datagram))
            .send(socket.as_fd(), |place, error| failures.note(place, 1, error));
        failures.count
    }
}

impl Fragmenting {
    fn has(&self, destination: SocketAddr) -> bool {
        self.destinations.contains(&destination)
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

    /// As [`Buffers::give_back`].
    pub(crate) fn give_back(&mut self) {
        self.buffers.give_back();
    }

    /// Receives one batch: how many messages, and whether there may be more.
    pub(crate) fn receive(&mut self, socket: &Socket) -> (usize, bool) {
        let count = self.receiver.receive(socket.as_fd(), &mut self.buffers, 0, || {});
        (count, count == MESSAGES)
    }

    /// Who sent the message at a place below what [`Inbox::receive`] returned, what its header said, and the datagrams that it holds: the kernel
    /// gathers only those with the same TOS.
    pub(crate) fn message(&self, place: usize) -> Option<(SocketAddr, Tos, impl Iterator<Item = &[u8]>)> {
        let received = self.receiver.get(place)?;
        let bytes = self.buffers.get(place).get(..received.len)?;
        Some((received.from, received.tos, bytes.chunks(received.segment)))
    }
}

impl UdpSegmentation {
    /// If it is `wanted`: where the kernel offers it, and does it right.
    pub(crate) fn new(socket: &Socket, wanted: bool) -> Arc<Self> {
        let mut offered = Switch::new(wanted, || sockets::segments_datagrams(socket));
        if offered.on {
            offered = match probe::segmentation() {
                Ok(why) => Switch { on: true, why },
                Err(why) => Switch { on: false, why },
            };
        }
        let (on, is_lost) = (AtomicBool::new(offered.on), AtomicBool::new(false));
        Arc::new(Self { on, is_lost, offered, refusal: Mutex::default() })
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Tries it again on another way: what refused or lost it may not be on that.
    pub(crate) fn offer_again(&self) {
        self.is_lost.store(false, Ordering::Relaxed);
        self.on.store(self.offered.on, Ordering::Relaxed);
    }

    /// Tries it again on a path that carries more or less than it did when it refused it.
    pub(crate) fn forget_refusal(&self) {
        if !self.is_lost.load(Ordering::Relaxed) {
            self.on.store(self.offered.on, Ordering::Relaxed);
        }
    }

    pub(crate) fn feature(&self) -> Feature {
        let why = match self.offered.on && !self.is_on() {
            true => self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => self.offered.why.clone(),
        };
        ("udp-segmentation", self.is_on(), why)
    }

    /// To be told when a path refused a segmented send.
    pub(crate) fn refused(&self, error: &io::Error) {
        self.turn_off(&format!("a segmented send was refused: {error}"));
    }

    /// To be told when segmented sends are lost on their way.
    pub(crate) fn lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
        self.turn_off("what was sent as one was lost, and arrived one by one");
    }

    fn turn_off(&self, why: &str) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) =
            format!("until the network changes, since {why}");
        if self.on.swap(false, Ordering::Relaxed) {
            tracing::warn!("datagrams are sent one by one until the network changes: {why}");
        }
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

/// Of one batch's sends.
#[derive(Default)]
struct Failures {
    count: usize,
    tried_again: Option<usize>,
}

impl Failures {
    /// An earlier datagram's error may have been reported in place of this one's.
    fn note(&mut self, place: usize, count: usize, error: &io::Error) -> Next {
        if error_queue::may_be_anothers(error) && self.tried_again != Some(place) {
            self.tried_again = Some(place);
            return Next::Again;
        }
        tracing::debug!(%error, count, "tunnel datagrams were not sent");
        self.count += count;
        Next::Skip
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::thread;
    use std::time::Duration;

    use packet::Packet;
    use socket2::{Domain, Protocol, Type};

    use super::*;
    use crate::io::sockets::Discover;

    #[test]
    fn a_refusal_is_every_senders_until_it_is_offered_again() {
        let socket = sockets::tunnel(Ipv4Addr::LOCALHOST.into(), 0, Discover::Off).unwrap();
        let segmentation = UdpSegmentation::new(&socket, true);
        assert!(segmentation.is_on());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let [mut voice, mut bulk] = [0, 1].map(|_| Outbox::new(Arc::clone(&segmentation), OuterDscp::ZERO));
        let messages = |outbox: &mut Outbox| {
            (0..2).for_each(|_| outbox.push(100, None, to));
            let messages = outbox.sealed.datagrams().count();
            outbox.sealed.clear();
            messages
        };
        assert_eq!(messages(&mut bulk), 1);

        segmentation.refused(&io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!([messages(&mut voice), messages(&mut bulk)], [2, 2]);
        let (_, on, why) = segmentation.feature();
        assert!(!on && why.contains("refused"), "{why}");

        segmentation.offer_again();
        assert_eq!([messages(&mut voice), messages(&mut bulk)], [1, 1]);
        assert!(segmentation.feature().1);
    }

    #[test]
    fn one_destinations_packets_may_be_fragmented_and_the_others_not() {
        let captured = match Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)) {
            Ok(socket) => socket,
            Err(error) => {
                assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no raw socket: {error}");
                return eprintln!("skipped, because packets cannot be captured: {error}");
            }
        };
        // Nobody else's packets go there.
        let here = Ipv4Addr::new(127, 0, 77, 1);
        captured.bind(&SocketAddr::from((here, 0)).into()).unwrap();
        captured.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let receivers = [0; 3].map(|_| UdpSocket::bind((here, 0)).unwrap());
        let [wide, narrow, other] = receivers.each_ref().map(|socket| socket.local_addr().unwrap());
        let socket = sockets::tunnel(Ipv4Addr::LOCALHOST.into(), 0, Discover::On).unwrap();
        let mut outbox = Outbox::new(UdpSegmentation::new(&socket, true), OuterDscp::ZERO);
        let mut sent = |fragmenting: &[SocketAddr], to: &[SocketAddr]| {
            outbox.let_fragment(fragmenting.to_vec(), None);
            to.iter().for_each(|to| outbox.push(100, None, *to));
            assert_eq!(outbox.send(&socket), 0);
            let mut seen: Vec<_> = to.iter().map(|_| next(&captured)).collect();
            seen.sort_unstable();
            seen
        };
        let mut expected = [(wide, true), (narrow, false), (other, true)].map(|(to, df)| (to.port(), df));
        expected.sort_unstable();
        assert_eq!(sent(&[narrow], &[wide, narrow, other]), expected);
        assert_eq!(sent(&[narrow], &[narrow]), [(narrow.port(), false)]);
        assert_eq!(sent(&[], &[narrow]), [(narrow.port(), true)]);
    }

    /// To which port the next packet goes, and whether with DF.
    fn next(mut captured: &Socket) -> (u16, bool) {
        let mut bytes = [0; 2048];
        let len = captured.read(&mut bytes).unwrap();
        let tuple = Packet::parse(&bytes[..len]).unwrap().five_tuple().unwrap();
        (tuple.destination.port(), bytes[6] & 0x40 != 0)
    }

    #[test]
    fn what_others_send_while_a_path_is_probed_arrives() {
        const COUNT: usize = 5000;
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let to = receiver.local_addr().unwrap();
        let like = Ipv4Addr::LOCALHOST.into();
        let socket = sockets::tunnel(like, 0, Discover::Off).unwrap();
        let segmentation = UdpSegmentation::new(&socket, true);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut outbox = Outbox::new(Arc::clone(&segmentation), OuterDscp::ZERO);
                for _ in 0..COUNT {
                    [1200, 1200, 300].into_iter().for_each(|len| outbox.push(len, None, to));
                    assert_eq!(outbox.send(&socket), 0);
                    let lens = [0; 3].map(|_| receiver.recv(&mut [0; 2048]).unwrap());
                    assert_eq!(lens, [1200, 1200, 300]);
                }
            });
            let mut prober = Outbox::new(Arc::clone(&segmentation), OuterDscp::ZERO);
            let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
            while !sending.is_finished() {
                sockets::probing(&socket, like, (Discover::Off, None), || {
                    prober.send_now(&[0; 1400], None, nobody, &socket);
                })
                .unwrap();
            }
        });
        assert!(segmentation.is_on());
    }

    #[test]
    fn what_is_switched_off_is_not_offered_again() {
        let socket = sockets::tunnel(Ipv4Addr::LOCALHOST.into(), 0, Discover::Off).unwrap();
        let segmentation = UdpSegmentation::new(&socket, false);
        segmentation.offer_again();
        assert!(!segmentation.is_on());
    }
}

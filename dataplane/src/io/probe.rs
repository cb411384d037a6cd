use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use packet::Tos;

use super::send::{Datagram, Next, Sender};

/// Segmented sends as the tunnel makes them, in bytes: the whole, and each datagram. All end in a shorter datagram, which some kernels lose:
/// a keepalive, an acknowledgment, a single byte behind a long burst, one byte less than the others.
const SENDS: [(usize, u16); 4] =
    [(1452 + 32, 1452), (3 * 1452 + 112, 1452), (40 * 1452 + 1, 1452), (9 * 240 + 239, 240)];
/// Sent by itself behind each of them: it tells a lost datagram from an interface that carries none.
const ALONE: [u8; 2] = [0xff; 2];
/// What the loopback interface carries has arrived before its send returns, or a moment later on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// What was sent before something that has arrived can only be behind it if this thread was moved to another core in between.
const GRACE: Duration = Duration::from_millis(100);

/// Tries on the loopback interface, in both families, whether all arrives that the kernel is to make datagrams of (UDP_SEGMENT). That runs the
/// kernel's own segmentation; it says nothing of a network card that does it instead. Returns what to tell people; as an error what was lost.
pub(crate) fn segmentation() -> Result<String, String> {
    let mut untried = String::new();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match UdpSocket::bind((address, 0)).and_then(|receiver| lost(&receiver)) {
            Ok(0) => {}
            Ok(lost) => {
                return Err(format!(
                    "the kernel lost datagrams that it segmented on {address}: {lost} of one send"
                ));
            }
            Err(error) => untried += &format!("; it could not be tried on {address}: {error}"),
        }
    }
    Ok(format!("the kernel does it{untried}"))
}

/// How many datagrams of [`SENDS`] do not reach `receiver`, up to the first send that loses any; an error if one that is sent by itself does
/// not either.
fn lost(receiver: &UdpSocket) -> io::Result<usize> {
    let to = receiver.local_addr()?;
    let socket = UdpSocket::bind((to.ip(), 0))?;
    let mut sender = Sender::new();
    for (len, size) in SENDS {
        let payload = payload(len);
        send(&mut sender, &socket, &payload, to, Some(size))?;
        send(&mut sender, &socket, &ALONE, to, None)?;
        let missing = missing(receiver, payload.chunks(size.into()).collect())?;
        if missing > 0 {
            return Ok(missing);
        }
    }
    Ok(0)
}

fn send(
    sender: &mut Sender,
    socket: &UdpSocket,
    payload: &[u8],
    destination: SocketAddr,
    segment: Option<u16>,
) -> io::Result<()> {
    let datagram = Datagram { payload, destination, tos: Tos(0), ttl: None, segment };
    let mut sent = Ok(());
    sender.load(std::iter::once(datagram)).send(socket.as_fd(), |_, error| {
        sent = Err(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error));
        Next::Skip
    });
    sent
}

/// How many of these datagrams do not come in time; an error if the one sent by itself does not.
fn missing(receiver: &UdpSocket, mut expected: Vec<&[u8]>) -> io::Result<usize> {
    let mut until = Instant::now() + PATIENCE;
    let mut came_alone = false;
    let mut buffer = [0; 2048];
    while !expected.is_empty() || !came_alone {
        let patience = until.saturating_duration_since(Instant::now());
        receiver.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        match receiver.recv(&mut buffer).map(|len| buffer.get(..len).unwrap_or_default()) {
            Ok(datagram) if datagram == ALONE => {
                came_alone = true;
                until = Instant::now() + GRACE;
            }
            Ok(datagram) => {
                if let Some(place) = expected.iter().position(|expected| *expected == datagram) {
                    expected.swap_remove(place);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Err(_) if came_alone => break,
            Err(_) => return Err(io::Error::new(ErrorKind::TimedOut, "nothing arrives")),
        }
    }
    Ok(expected.len())
}

/// Bytes that tell where in it a datagram was cut.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at / 1452) as u8).collect()
}

#[cfg(test)]
mod tests {
    use socket2::{SockFilter, SockRef};

    use super::*;

    #[test]
    fn all_arrives_on_this_machine() {
        let found = segmentation().unwrap();
        assert!(found.starts_with("the kernel does it"), "{found}");
        assert_eq!(lost(&receiver()).unwrap(), 0);
    }

    #[test]
    fn a_lost_last_segment_is_seen() {
        // The shorter ones of the four sends, then their full sizes, then one that is not sent.
        for (len, expected) in [(32, 1), (112, 1), (1, 1), (239, 1), (240, 9), (1452, 1), (1000, 0)] {
            let receiver = receiver();
            lose(&receiver, len);
            assert_eq!(lost(&receiver).unwrap(), expected, "datagrams of {len} bytes are lost");
        }
    }

    #[test]
    fn where_nothing_arrives_nothing_is_said() {
        let receiver = receiver();
        lose(&receiver, ALONE.len());
        assert_eq!(lost(&receiver).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    fn receiver() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// Drops datagrams of this size behind the kernel's segmentation (BPF: load the length, UDP header included; compare; drop or keep).
    fn lose(receiver: &UdpSocket, len: usize) {
        let filter = [
            SockFilter::new(0x80, 0, 0, 0),
            SockFilter::new(0x15, 0, 1, len as u32 + 8),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        SockRef::from(receiver).attach_filter(&filter).unwrap();
    }
}

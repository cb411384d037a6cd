use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use packet::{Checksum, Headers};
use tun::AbstractDevice;

use super::queue;
use crate::offload::{SegmentKind, Segmentation};

/// The virtio-net header in front of every packet on the TUN (`struct virtio_net_hdr`, linux/virtio_net.h).
pub(crate) const VNET_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside the type where segments of a connection that uses ECN follow.
const GSO_ECN: u8 = 0x80;
/// RFC 768: source port, destination port, length, checksum.
const UDP_CHECKSUM_AT: u16 = 6;
/// `TUN_F_*` (linux/if_tun.h): what the kernel may hand us undone. The transport checksum…
const TUN_F_CSUM: libc::c_ulong = 0x01;
/// …TCP's segmentation (TSO4, TSO6, TSO_ECN)…
const TUN_F_TSO: libc::c_ulong = 0x02 | 0x04 | 0x08;
/// …and UDP's (USO4, USO6), since Linux 6.2.
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;
/// RFC 9293 §3.1.
const TCP_CHECKSUM_AT: u16 = 16;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;

/// An open TUN with virtio headers. The interface vanishes when this and its queues are dropped.
pub struct Tun {
    queue: Queue,
    name: String,
    index: u32,
    tcp: Feature,
    udp: Feature,
}

/// One of a TUN's queues, for one thread to read; any may write.
pub(crate) struct Queue {
    file: File,
}

/// Whether something optional is used, and why.
struct Feature {
    on: bool,
    why: String,
}

impl Tun {
    /// Opens `name`, or the first free `tunN`: browsers know VPNs by that name. Needs CAP_NET_ADMIN. The interface is left down and
    /// without an address.
    pub fn open(name: Option<&str>) -> io::Result<Self> {
        let (file, name) = queue::attach(name.unwrap_or("tun%d"))?;
        let mut configuration = tun::Configuration::default();
        configuration.raw_fd(file.as_raw_fd()).close_fd_on_drop(false).tun_name(&name);
        let index = tun::create(&configuration).and_then(|device| device.tun_index()).map_err(io_error)?;
        let off = || Feature { on: false, why: "switched off in the configuration".to_owned() };
        let tun = Self { queue: Queue { file }, name, index: index.unsigned_abs(), tcp: off(), udp: off() };
        tun.offer(TUN_F_CSUM)?;
        Ok(tun)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    /// The queue that everything comes through, but what [`Tun::voice_queue`] takes away from it.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// A queue of its own for UDP, so that no voice packet waits behind bulk. Like the other it holds 500 packets (`tx_queue_len`, the
    /// kernel's default for a TUN): of 50 calls' 2500 packets/s what comes in 200 ms, of bulk that many super-packets, 9 ms of 1420 B
    /// packets at 600 Mbit/s. An error: the kernel cannot tell them apart, and all stays in
    /// one queue.
    pub(crate) fn voice_queue(&self) -> io::Result<Queue> {
        let (file, _) = queue::attach(&self.name)?;
        queue::steer(&file)?;
        Ok(Queue { file })
    }

    /// Offers to take and give super-packets, as far as the kernel does; UDP's only if `datagrams` can be sent on in one call too.
    pub(crate) fn offer_segmentation(&mut self, datagrams: bool) {
        let tcp = self.offer(TUN_F_CSUM | TUN_F_TSO);
        self.udp = match &tcp {
            Ok(()) if !datagrams => Feature { on: false, why: "it goes with udp-segmentation".to_owned() },
            Ok(()) => Feature::of(self.offer(TUN_F_CSUM | TUN_F_TSO | TUN_F_USO)),
            Err(_) => Feature { on: false, why: "it goes with tun-tcp-segmentation".to_owned() },
        };
        self.tcp = Feature::of(tcp);
    }

    /// Name, whether it is used, and why.
    pub(crate) fn features(&self) -> [crate::Feature; 2] {
        [("tun-tcp-segmentation", &self.tcp), ("tun-udp-segmentation", &self.udp)]
            .map(|(name, feature)| (name, feature.on, feature.why.clone()))
    }

    pub(crate) fn joins(&self, kind: SegmentKind) -> bool {
        match kind {
            SegmentKind::Tcp => self.tcp.on,
            SegmentKind::Udp => self.udp.on,
        }
    }

    /// Writes a super-packet from its parts, header first.
    pub(crate) fn write_joined(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.queue.file).write_vectored(parts).map(|_| ())
    }

    /// To be told when the kernel refused a super-packet but took its packets: it is not asked again for that kind.
    pub(crate) fn cannot_join(&mut self, kind: SegmentKind, error: &io::Error) {
        if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) {
            let feature = match kind {
                SegmentKind::Tcp => &mut self.tcp,
                SegmentKind::Udp => &mut self.udp,
            };
            *feature = Feature { on: false, why: format!("the kernel refused a super-packet: {error}") };
            tracing::warn!(?kind, %error, "super-packets are no longer written to the TUN");
        }
    }

    fn offer(&self, flags: libc::c_ulong) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        match unsafe { libc::ioctl(self.queue.as_raw_fd(), TUNSETOFFLOAD, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Queue {
    /// The same queue once more: whoever reads takes from the other.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Reads one packet with its header; `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet; the first [`VNET_HEADER`] bytes of `record` are its header.
    pub(crate) fn write(&self, record: &[u8]) -> io::Result<()> {
        (&self.file).write(record).map(|_| ())
    }
}

#[cfg(test)]
impl From<File> for Queue {
    fn from(file: File) -> Self {
        Self { file }
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Feature {
    fn of(offered: io::Result<()>) -> Self {
        match offered {
            Ok(()) => Self { on: true, why: "the kernel takes and gives super-packets".to_owned() },
            Err(error) => Self { on: false, why: format!("the kernel does not know it: {error}") },
        }
    }
}

/// A packet behind a virtio header, and what that says about it.
pub(crate) struct Record<'a> {
    pub(crate) checksum: Checksum,
    /// `None`: one packet.
    pub(crate) segmentation: Option<Segmentation>,
    pub(crate) packet: &'a mut [u8],
}

impl<'a> Record<'a> {
    /// `None` if it is no record that we asked for.
    pub(crate) fn split(record: &'a mut [u8]) -> Option<Self> {
        let (header, packet) = record.split_first_chunk_mut::<VNET_HEADER>()?;
        let [flags, gso, _, _, size_low, size_high, ..] = *header;
        let checksum = if flags & NEEDS_CSUM == 0 { Checksum::Complete } else { Checksum::Partial };
        let size = u16::from_ne_bytes([size_low, size_high]);
        let kind = match gso & !GSO_ECN {
            GSO_NONE => return Some(Self { checksum, segmentation: None, packet }),
            GSO_TCPV4 | GSO_TCPV6 => SegmentKind::Tcp,
            GSO_UDP_L4 => SegmentKind::Udp,
            _ => return None,
        };
        Some(Self { checksum, segmentation: Some(Segmentation { kind, size }), packet })
    }
}

/// The header in front of a packet whose checksums are complete.
pub(crate) const COMPLETE: [u8; VNET_HEADER] = [0; VNET_HEADER];

/// The header in front of a UDP packet whose checksum covers the pseudo header only.
pub(crate) fn partial_udp(transport_at: u16) -> [u8; VNET_HEADER] {
    let [start_low, start_high] = transport_at.to_ne_bytes();
    let [offset_low, offset_high] = UDP_CHECKSUM_AT.to_ne_bytes();
    [NEEDS_CSUM, GSO_NONE, 0, 0, 0, 0, start_low, start_high, offset_low, offset_high]
}

/// The header in front of a super-packet whose checksum covers the pseudo header only.
pub(crate) fn segmented(segmentation: Segmentation, headers: &Headers) -> [u8; VNET_HEADER] {
    let (gso, checksum_at) = match (segmentation.kind, headers.source.is_ipv4()) {
        (SegmentKind::Tcp, true) => (GSO_TCPV4, TCP_CHECKSUM_AT),
        (SegmentKind::Tcp, false) => (GSO_TCPV6, TCP_CHECKSUM_AT),
        (SegmentKind::Udp, _) => (GSO_UDP_L4, UDP_CHECKSUM_AT),
    };
    let [len_low, len_high] = headers.payload_at.to_ne_bytes();
    let [size_low, size_high] = segmentation.size.to_ne_bytes();
    let [start_low, start_high] = headers.transport_at.to_ne_bytes();
    let [offset_low, offset_high] = checksum_at.to_ne_bytes();
    [NEEDS_CSUM, gso, len_low, len_high, size_low, size_high, start_low, start_high, offset_low, offset_high]
}

fn io_error(error: tun::Error) -> io::Error {
    match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

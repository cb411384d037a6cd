use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use packet::Checksum;
use tun::AbstractDevice;

/// The virtio-net header in front of every packet on the TUN (`struct virtio_net_hdr`, linux/virtio_net.h).
pub(crate) const VNET_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
/// RFC 768: source port, destination port, length, checksum.
const UDP_CHECKSUM_AT: u16 = 6;
/// `TUN_F_CSUM` (linux/if_tun.h): the kernel may hand us packets whose transport checksum is only begun.
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;

/// An open TUN with virtio headers. The interface vanishes when this is dropped.
pub struct Tun {
    file: File,
    name: String,
    index: u32,
}

impl Tun {
    /// Opens `name`, or the first free `tunN`: browsers know VPNs by that name. Needs CAP_NET_ADMIN. The interface is left down and
    /// without an address.
    pub fn open(name: Option<&str>) -> io::Result<Self> {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name.unwrap_or("tun%d"));
        configuration.platform_config(|linux| {
            linux.vnet_hdr(true);
            linux.ensure_root_privileges(false);
        });
        let device = tun::create(&configuration).map_err(io_error)?;
        let name = device.tun_name().map_err(io_error)?;
        let index = device.tun_index().map_err(io_error)?.unsigned_abs();
        // SAFETY: `device` holds a valid descriptor for the whole call.
        let fd = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }.try_clone_to_owned()?;
        let tun = Self { file: File::from(fd), name, index };
        tun.set_nonblocking()?;
        tun.offer_checksum_offload()?;
        Ok(tun)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    /// Reads one packet with its header; `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet; the first [`VNET_HEADER`] bytes of `record` are its header.
    pub(crate) fn write(&self, record: &[u8]) -> io::Result<()> {
        (&self.file).write(record).map(|_| ())
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        // SAFETY: plain fcntl calls on a descriptor that we own.
        let set = unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
        };
        if set { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn offer_checksum_offload(&self) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, TUN_F_CSUM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Splits a record into the state of its checksum and the packet; `None` if it is no record that we asked for (too short, or segmentation
/// offload).
pub(crate) fn split_record(record: &mut [u8]) -> Option<(Checksum, &mut [u8])> {
    let (header, packet) = record.split_at_mut_checked(VNET_HEADER)?;
    let [flags, GSO_NONE, ..] = *header else { return None };
    let checksum = if flags & NEEDS_CSUM == 0 { Checksum::Complete } else { Checksum::Partial };
    Some((checksum, packet))
}

/// The header in front of a packet whose checksums are complete.
pub(crate) const COMPLETE: [u8; VNET_HEADER] = [0; VNET_HEADER];

/// The header in front of a UDP packet whose checksum covers the pseudo header only.
pub(crate) fn partial_udp(transport_at: u16) -> [u8; VNET_HEADER] {
    let [start_low, start_high] = transport_at.to_ne_bytes();
    let [offset_low, offset_high] = UDP_CHECKSUM_AT.to_ne_bytes();
    [NEEDS_CSUM, GSO_NONE, 0, 0, 0, 0, start_low, start_high, offset_low, offset_high]
}

fn io_error(error: tun::Error) -> io::Error {
    match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

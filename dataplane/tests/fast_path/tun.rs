//! A TUN whose packets a test reads and writes itself.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// `struct virtio_net_hdr` (linux/virtio_net.h) in front of each packet.
pub const VNET_HEADER: usize = 10;

/// linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

pub struct Tun {
    file: File,
    pub index: u32,
}

/// What the kernel may leave to the reader: checksums and segmentation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    On,
    Off,
}

impl Tun {
    /// Makes the TUN `name` in this thread's network namespace.
    pub fn open(name: &str, offload: Offload) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()).take(libc::IF_NAMESIZE - 1) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
        ok(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        let features = if offload == Offload::On { TUN_F_CSUM | TUN_F_USO } else { 0 };
        // USO needs TSO beside it (`set_offload` in drivers/net/tun.c).
        let features = if features == 0 { 0 } else { features | 0x02 | 0x04 };
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        ok(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, features) })?;
        Ok(Self { file, index: index(name) })
    }

    /// The next record, header first; `None` if none comes within `patience`.
    pub fn read(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut record = vec![0; VNET_HEADER + 65_575];
        loop {
            match (&self.file).read(&mut record) {
                Ok(len) => {
                    record.truncate(len);
                    return Some(record);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !readable(self.file.as_raw_fd(), patience) {
                        return None;
                    }
                }
                Err(error) => panic!("reading the TUN: {error}"),
            }
        }
    }

    /// The next UDP packet that is waiting already: interfaces send other things by themselves.
    pub fn waiting_udp(&self) -> Option<Vec<u8>> {
        loop {
            let packet = self.read(Duration::ZERO)?.split_off(VNET_HEADER);
            let parsed = packet::Packet::parse(&packet);
            if parsed.is_ok_and(|packet| packet.headers().protocol == packet::protocol::UDP) {
                return Some(packet);
            }
        }
    }

    pub fn write(&self, record: &[u8]) -> io::Result<()> {
        (&self.file).write(record).map(|_| ())
    }

    pub fn try_clone(&self) -> Self {
        Self { file: self.file.try_clone().unwrap(), index: self.index }
    }
}

pub fn index(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a string that outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

pub fn readable(fd: RawFd, patience: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as libc::c_int) };
    // Whoever was interrupted looks again.
    ready != 0
}

fn ok(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

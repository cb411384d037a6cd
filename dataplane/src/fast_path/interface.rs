use std::ffi::CStr;
use std::io;
use std::mem;

use socket2::{Domain, Socket, Type};

use super::Unavailable;

/// What stands in front of the IP header of an interface's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// 14 bytes of Ethernet header: Ethernet, Wi-Fi, VLAN, veth. Packets need a next hop.
    Ethernet,
    /// Nothing: PPP, raw IP (mobile modems), TUN. There is no next hop.
    None,
}

/// The name of the interface in this thread's network namespace.
pub(super) fn name(index: u32) -> Result<String, Unavailable> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the call demands.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if found.is_null() {
        return Err(Unavailable::NoInterface { index });
    }
    // SAFETY: the call wrote a string with its end into the buffer.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

pub(super) fn link(name: &str) -> Result<Link, Unavailable> {
    /// linux/if_arp.h; libc has it for glibc only.
    const ARPHRD_RAWIP: u16 = 519;
    let kind = hardware_type(name)
        .map_err(|error| Unavailable::refused("asking for an interface's type", &error))?;
    match kind {
        libc::ARPHRD_ETHER => Ok(Link::Ethernet),
        libc::ARPHRD_NONE | libc::ARPHRD_PPP | ARPHRD_RAWIP => Ok(Link::None),
        _ => Err(Unavailable::InterfaceType { name: name.to_owned(), kind }),
    }
}

fn hardware_type(name: &str) -> io::Result<u16> {
    use std::os::fd::AsRawFd;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()).take(libc::IF_NAMESIZE - 1) {
        *to = from.cast_signed();
    }
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call filled this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

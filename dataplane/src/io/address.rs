use std::mem;
use std::net::SocketAddr;

use socket2::SockAddr;

/// An address as the kernel takes it, and its length.
pub(super) fn to_kernel(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    let address = SockAddr::from(address);
    let len = address.len();
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    // SAFETY: a SockAddr never is longer than sockaddr_storage, and the two do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut storage).cast::<u8>(),
            len as usize,
        );
    }
    (storage, len)
}

/// The address that the kernel wrote; `None` for anything but IPv4 and IPv6.
pub(super) fn from_kernel(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from: *const libc::sockaddr_storage = storage;
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, which is shorter than and aligned as sockaddr_storage.
            let address = unsafe { &*from.cast::<libc::sockaddr_in>() };
            let ip = address.sin_addr.s_addr.to_ne_bytes();
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let address = unsafe { &*from.cast::<libc::sockaddr_in6>() };
            let ip = address.sin6_addr.s6_addr;
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["203.0.113.9:5060", "[2001:db8::7]:443"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_kernel(&to_kernel(address).0), Some(address));
        }
    }
}

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `_IOW('T', 202, int)` and `_IOR('T', 224, int)` (linux/if_tun.h).
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETSTEERINGEBPF: libc::Ioctl = 0x8004_54e0;

/// Attaches a queue to the TUN `name`, which is made if it does not exist (`%d` in it: the first free number). Nonblocking, with virtio
/// headers. Returns the TUN's name too.
pub(super) fn attach(name: &str) -> io::Result<(File, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is longer than 15 bytes")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let name =
        request.ifr_name.iter().map(|&byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    Ok((file, String::from_utf8(name).map_err(io::Error::other)?))
}

/// Leads all UDP to the queue that was attached second, everything else to the first: by what never changes within a flow, so that none
/// is ever reordered. Of IPv6 only TCP and ICMP go to the first, since behind an extension header there may be UDP.
pub(super) fn steer(queue: &File) -> io::Result<()> {
    let program = load(&[
        // The loads below take the packet from r6.
        instruction(0xbf, 6, 1, 0, 0),
        // r0 = version; IPv4 has its protocol at 9, IPv6 its next header at 6.
        instruction(0x30, 0, 0, 0, 0),
        instruction(0x77, 0, 0, 0, 4),
        instruction(0x15, 0, 0, 3, 6),
        instruction(0x30, 0, 0, 0, 9),
        instruction(0x15, 0, 0, 4, 17),
        instruction(0x05, 0, 0, 5, 0),
        instruction(0x30, 0, 0, 0, 6),
        instruction(0x15, 0, 0, 3, 6),
        instruction(0x15, 0, 0, 2, 58),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
        instruction(0xb7, 0, 0, 0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ])?;
    let fd = program.as_raw_fd();
    // SAFETY: the kernel reads one `int`, which outlives the call. It holds the program from then on.
    match unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const fd) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct bpf_insn` (linux/bpf.h): operation, registers, jump, value.
const fn instruction(code: u8, to: u8, from: u8, jump: i16, value: i32) -> u64 {
    let [jump_low, jump_high] = jump.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    u64::from_ne_bytes([code, from << 4 | to, jump_low, jump_high, a, b, c, d])
}

/// Loads a socket filter program.
fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    const LOAD_ATTEMPTS: usize = 8;
    /// The beginning of `union bpf_attr`; the kernel takes the rest as zeros.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let attributes = Attributes {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let mut fd = -1;
    for _ in 0..LOAD_ATTEMPTS {
        // SAFETY: the kernel reads the attributes, the instructions and the license, all of which outlive the call.
        fd = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, mem::size_of::<Attributes>())
        };
        // The verifier gives up when a signal comes.
        if fd >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            break;
        }
    }
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

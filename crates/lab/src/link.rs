use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use ipnet::IpNet;

use crate::relay::{Impairment, Relay};
use crate::{During, Host, LabError};

/// What two hosts are connected by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LinkKind {
    /// A pair of virtual Ethernet interfaces, as fast as the kernel.
    #[default]
    Wire,
    /// Two TAP devices and a relay between them that delays, drops and reorders.
    Impaired(Impairment),
}

/// One end of a link: a new device of a host and the address it gets.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub host: &'a Host,
    /// At most 15 bytes.
    pub device: &'a str,
    pub address: IpNet,
}

/// A connection between two hosts. A relay ends when this is dropped; a wire lives as long as its hosts.
#[derive(Debug)]
pub struct Link(Option<Relay>);

impl Link {
    /// Connects two hosts; both devices are up when this returns. `seed` makes an impaired link's chances repeatable.
    pub fn connect(kind: LinkKind, a: End<'_>, b: End<'_>, seed: u64) -> Result<Self, LabError> {
        let relay = match kind {
            LinkKind::Wire => {
                wire(a, b)?;
                None
            }
            LinkKind::Impaired(impairment) => Some(Relay::start(tap(a)?, tap(b)?, impairment, seed)?),
        };
        for end in [a, b] {
            end.host.add_address(end.device, end.address)?;
            end.host.up(end.device)?;
        }
        Ok(Self(relay))
    }

    /// The relay of an impaired link, to change what it does to the packets; `None` on a wire.
    pub fn relay(&self) -> Option<&Relay> {
        self.0.as_ref()
    }
}

fn wire(a: End<'_>, b: End<'_>) -> Result<(), LabError> {
    let (near, far) = (a.device.to_owned(), b.device.to_owned());
    let namespace =
        b.host.netns().try_clone_to_owned().during(|| format!("connect host `{}`", b.host.name()))?;
    a.host.network(&format!("make a wire to host `{}`", b.host.name()), async move |netlink| {
        netlink.add_veth(&near, &far, Some(std::os::fd::AsFd::as_fd(&namespace))).await
    })
}

fn tap(end: End<'_>) -> Result<OwnedFd, LabError> {
    let name = end.device.to_owned();
    end.host
        .run(move || open_tap(&name))?
        .during(|| format!("make the TAP device {} on host `{}`", end.device, end.host.name()))
}

/// Opens a TAP device of the calling thread's namespace; it goes away with the descriptor.
fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let file: File =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::other(format!("`{name}` is too long for an interface")));
    }
    // SAFETY: a zeroed ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives here.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

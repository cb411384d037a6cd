//! What the command line says of a packet.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;
use packet::protocol;
use policy::Content;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u8);

/// An address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: IpAddr,
    pub port: Option<u16>,
}

/// An address or a name, with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Address(Place),
    Name { name: String, port: Option<u16> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Payload {
    Stun,
    Dtls,
    Rtp,
    Rtcp,
    Zrtp,
    /// TURN ChannelData
    Channel,
    /// Nothing that is WebRTC
    None,
}

impl Payload {
    pub fn content(self) -> Content {
        match self {
            Self::Stun => Content::Stun,
            Self::Dtls => Content::Dtls,
            Self::Rtp => Content::Rtp,
            Self::Rtcp => Content::Rtcp,
            Self::Zrtp => Content::Zrtp,
            Self::Channel => Content::Channel,
            Self::None => Content::Other,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.to_ascii_lowercase().as_str() {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            "icmp" => protocol::ICMP,
            "icmpv6" => protocol::ICMPV6,
            other => {
                other.parse().map_err(|_| "give tcp, udp, icmp, icmpv6 or a number up to 255".to_owned())?
            }
        };
        Ok(Self(number))
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { address: socket.ip(), port: Some(socket.port()) });
        }
        let address = text.trim_start_matches('[').trim_end_matches(']').parse();
        let address = address
            .map_err(|_| "give an address with a port: 192.0.2.1:443 or [2001:db8::1]:443".to_owned())?;
        Ok(Self { address, port: None })
    }
}

impl Destination {
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Address(place) => place.port,
            Self::Name { port, .. } => *port,
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(place) = text.parse() {
            return Ok(Self::Address(place));
        }
        let wrong = || {
            "give an address or a name, with a port: 192.0.2.1:443, [2001:db8::1]:443 or api.example.com:443"
                .to_owned()
        };
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        };
        let has_letter = name.bytes().any(|c| c.is_ascii_alphabetic());
        if !has_letter || !name.trim_end_matches('.').split('.').all(is_label) {
            return Err(wrong());
        }
        Ok(Self::Name { name: name.to_owned(), port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(place) => place.fmt(f),
            Self::Name { name, port: Some(port) } => write!(f, "{name}:{port}"),
            Self::Name { name, port: None } => f.write_str(name),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

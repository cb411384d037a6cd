use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use packet::{Dscp, Tos, protocol};
use rustls::ClientConfig;

use super::stream::{Pace, greeting, https, sip_tls, turn_tls, wss};
use super::voice::Call;
use super::{Outcome, datagram};
use crate::internet::addresses::{AGENT, AGENT_TUNNEL, MEDIA, MEDIA_2, SIGNALING, STREAMING, WEB};
use crate::report::Path;

/// One kind of traffic of the lab's run: a row of its table. Each has a destination of its own, by which captures tell it from the others.
pub struct Kind {
    pub name: &'static str,
    pub what: &'static str,
    pub protocol: u8,
    pub to: SocketAddr,
    pub expected: Path,
    /// The code point that each of its packets must carry on the wire, both ways.
    pub mark: Option<Dscp>,
    /// Drives the traffic, in a thread of the agent.
    pub drive: Box<dyn FnOnce() -> Outcome + Send>,
}

/// EF, as the byte of the IP header.
pub const EF_TOS: u8 = Tos(0).with_dscp(Dscp::EF).0;

/// Ports of the far ends, where the protocol does not say them.
pub struct Ports;

impl Ports {
    /// Media that arrives marked.
    pub const VOICE_EF: u16 = 20000;
    /// Media that the application does not mark.
    pub const VOICE_UNMARKED: u16 = 20002;
    /// What is no media.
    pub const PLAIN: u16 = 20004;
    /// Google's STUN, on the unrelated site.
    pub const GOOGLE_STUN: u16 = 19302;
}

const PACE: Pace = Pace { requests: 20, pause: Duration::from_millis(200) };
/// Five seconds.
const PACKETS: u16 = 250;

/// Everything that the agent's applications do in the lab, to be done at once; about five seconds.
pub fn kinds(tls: &Arc<ClientConfig>) -> Vec<Kind> {
    let secure = |client: fn(SocketAddr, &Arc<ClientConfig>, Pace) -> Outcome| {
        let tls = tls.clone();
        move |to| client(to, &tls, PACE)
    };
    let call = |from, tos| move |to| Call { to, from, tos, packets: PACKETS }.run();
    vec![
        Kind::tcp("https", "HTTPS to signaling", (SIGNALING, 443), Path::Tunnel, secure(https)),
        Kind::tcp("wss", "WebSocket (TLS) to signaling", (STREAMING, 443), Path::Tunnel, secure(wss)),
        Kind::udp("sip-udp", "SIP over UDP", (SIGNALING, 5060), Path::Tunnel, |to| {
            datagram::sip_options(to, PACE)
        }),
        Kind::tcp("sip-tls", "SIP over TLS", (SIGNALING, 5061), Path::Tunnel, secure(sip_tls)),
        Kind::udp("voice-ef", "voice, marked EF", (MEDIA, Ports::VOICE_EF), Path::Bypass, call(None, EF_TOS))
            .marked(),
        Kind::udp(
            "voice-unmarked",
            "voice, unmarked",
            (MEDIA, Ports::VOICE_UNMARKED),
            Path::Bypass,
            call(None, 0),
        )
        .marked(),
        Kind::udp(
            "voice-own-address",
            "voice, physical address",
            (MEDIA_2, Ports::VOICE_UNMARKED),
            Path::BypassOwnAddress,
            call(Some(AGENT), 0),
        )
        .marked(),
        Kind::udp("udp-to-media", "UDP to media, no WebRTC", (MEDIA, Ports::PLAIN), Path::Tunnel, |to| {
            datagram::echo(to, PACE)
        }),
        Kind::tcp("turn-tls", "TURN over TLS to media", (MEDIA, 443), Path::Tunnel, secure(turn_tls)),
        Kind::tcp("ssh", "SSH to media", (MEDIA, 22), Path::Refused, greeting),
        Kind::tcp("web", "HTTPS to an unrelated site", (WEB, 443), Path::Direct, secure(https)),
    ]
}

/// Runs only while the daemon does: what a socket on the TUN's own address sends past the captured ranges.
pub fn from_tun_address() -> Kind {
    Kind::udp(
        "tun-address-out",
        "from the TUN's address, elsewhere",
        (WEB, Ports::GOOGLE_STUN),
        Path::Refused,
        |to| datagram::stun_binding(Some(AGENT_TUNNEL), to, Pace { requests: 1, pause: Duration::ZERO }),
    )
}

/// Runs after the daemon was killed.
pub fn after_kill() -> Vec<Kind> {
    let once = Pace { requests: 1, pause: Duration::ZERO };
    vec![
        Kind::tcp(
            "after-kill-tcp",
            "HTTP to signaling after kill -9",
            (SIGNALING, 80),
            Path::Refused,
            greeting,
        ),
        Kind::udp(
            "after-kill-udp",
            "SIP to signaling after kill -9",
            (STREAMING, 5060),
            Path::Refused,
            move |to| datagram::sip_options(to, once),
        ),
    ]
}

impl Kind {
    fn tcp(
        name: &'static str,
        what: &'static str,
        to: (Ipv4Addr, u16),
        expected: Path,
        drive: impl FnOnce(SocketAddr) -> Outcome + Send + 'static,
    ) -> Self {
        let to = SocketAddr::from(to);
        Self {
            name,
            what,
            protocol: protocol::TCP,
            to,
            expected,
            mark: None,
            drive: Box::new(move || drive(to)),
        }
    }

    fn udp(
        name: &'static str,
        what: &'static str,
        to: (Ipv4Addr, u16),
        expected: Path,
        drive: impl FnOnce(SocketAddr) -> Outcome + Send + 'static,
    ) -> Self {
        Self { protocol: protocol::UDP, ..Self::tcp(name, what, to, expected, drive) }
    }

    fn marked(self) -> Self {
        Self { mark: Some(Dscp::EF), ..self }
    }
}

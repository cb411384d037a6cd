use std::sync::Arc;
use std::time::Instant;

use packet::{Echo, Packet, clamp_mss, decapsulate, may_be_icmp};
use socket2::Socket;
use tunnel::Opened;

use super::core::{Core, Tunnel};
use super::gateway_set::GatewaySet;
use super::sealer::Sealer;
use crate::io::tun::Tun;
use crate::path_mtu::{LARGE, probe};
use crate::tun_writer::TunWriter;
use crate::wire::Inbox;
use crate::{DropReason, Feature};

/// The way out of the tunnel: datagrams are opened under the peer's lock, judged under the engine's, written to the TUN under none.
pub(super) struct Opener {
    ready: GatewaySet,
    inbox: Inbox,
    writer: TunWriter,
    /// A gateway's probes of the path to here, to be answered.
    asked: Vec<Echo>,
}

/// Probes that are answered of one batch: the gateway sends two a second.
const MAX_ASKED: usize = 8;

impl Opener {
    pub(super) fn new(socket: &Socket, offload: bool) -> Self {
        let (inbox, writer) = (Inbox::new(socket, offload), TunWriter::new());
        Self { ready: GatewaySet::default(), inbox, writer, asked: Vec::with_capacity(MAX_ASKED) }
    }

    /// Whether there may be more in a socket.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// There may be something in the socket of the tunnel to this gateway.
    pub(super) fn set_ready(&mut self, gateway: u8) {
        self.ready.insert(gateway);
    }

    pub(super) fn feature(&self) -> Feature {
        self.inbox.feature()
    }

    /// To be told of each other socket from which datagrams of this gateway come.
    pub(super) fn socket_changed(&mut self, gateway: u8, socket: &Socket) {
        self.inbox.socket_changed(socket);
        self.set_ready(gateway);
    }

    /// Its buffers' memory; see [`Rest`](crate::rest::Rest).
    pub(super) fn give_back(&mut self) {
        self.inbox.give_back();
        self.writer.give_back();
    }

    /// Takes one batch of what each gateway sent; it [`is ready`](Opener::is_ready) as long as there may be more. Whether there were handshakes.
    pub(super) fn receive(&mut self, core: &Core, tun: &mut Tun, sealer: &mut Sealer, now: Instant) -> bool {
        let mut handshakes = false;
        for gateway in std::mem::take(&mut self.ready) {
            handshakes |= self.receive_from(gateway, core, tun, sealer, now);
        }
        handshakes
    }

    fn receive_from(
        &mut self,
        gateway: u8,
        core: &Core,
        tun: &mut Tun,
        sealer: &mut Sealer,
        now: Instant,
    ) -> bool {
        let socket = Arc::clone(&core.tunnel(gateway).lock().socket);
        let (count, more) = self.inbox.receive(&socket);
        if more {
            self.set_ready(gateway);
        }
        let (mtu, mut large, mut handshakes) = (core.mtu(), false, false);
        for place in 0..count {
            let Some((from, tos, datagrams)) = self.inbox.message(place) else { continue };
            let mut tunnel = core.tunnel(gateway).lock();
            for datagram in datagrams {
                if self.writer.is_full() {
                    drop(tunnel);
                    pass_on(&mut self.writer, gateway, core, tun, now);
                    tunnel = core.tunnel(gateway).lock();
                }
                let opened = match tunnel.peer.open(datagram, self.writer.room(), now) {
                    Ok(opened) => opened,
                    Err(error) => {
                        tracing::trace!(%from, %error, "datagram refused");
                        core.counters.count_drop(DropReason::NotAuthentic);
                        continue;
                    }
                };
                // Roaming: from now on the peer is answered where it is.
                let is_authentic = opened.is_authentic();
                if is_authentic {
                    tunnel.heard_at(from, now);
                }
                match opened {
                    Opened::Packet(packet) => {
                        let length = packet.len();
                        large |= length > LARGE;
                        if may_be_icmp(packet)
                            && is_of_the_path(packet, &mut self.asked, &mut tunnel, core, now)
                        {
                            continue;
                        }
                        clamp_mss(packet, mtu);
                        match decapsulate(packet, tos) {
                            true => self.writer.push(length),
                            false => core.counters.count_drop(DropReason::Congested),
                        }
                    }
                    Opened::Reply(reply) => {
                        handshakes = true;
                        if is_authentic {
                            tunnel.proven = Some(from);
                        }
                        sealer.send_now(reply, from, &socket, core);
                    }
                    Opened::Keepalive | Opened::Nothing => {}
                }
            }
            if large {
                tunnel.path.used(now);
            }
            tunnel.set_alarm(now);
        }
        pass_on(&mut self.writer, gateway, core, tun, now);
        sealer.flush(gateway, core, now);
        self.asked.drain(..).for_each(|echo| sealer.answer(&echo, gateway, core, now));
        handshakes
    }
}

/// Whether a packet is about the path and nobody else's: the answer to a probe of ours, or the gateway's probe.
fn is_of_the_path(
    packet: &[u8],
    asked: &mut Vec<Echo>,
    tunnel: &mut Tunnel,
    core: &Core,
    now: Instant,
) -> bool {
    let Ok(packet) = Packet::parse(packet) else { return false };
    match probe::asked(&packet, &core.addresses) {
        Some(echo) => {
            if asked.len() < MAX_ASKED {
                asked.push(echo);
            }
            true
        }
        None => tunnel.is_answer(&packet, now),
    }
}

/// Judges what was opened and writes to the TUN what belongs to a flow.
fn pass_on(writer: &mut TunWriter, gateway: u8, core: &Core, tun: &mut Tun, now: Instant) {
    let malformed = writer.parse();
    let mut judge = core.engine.lock();
    writer.judge(|packet| judge.engine.from_tunnel(packet, gateway, now).is_ok());
    judge.set_alarm(now);
    drop(judge);
    core.counters.count_drops(DropReason::Malformed, malformed);
    let refused = writer.flush(tun);
    core.counters.count_drops(DropReason::TunWriteFailed, refused);
}

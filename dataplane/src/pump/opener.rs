use std::sync::Arc;
use std::time::Instant;

use packet::decapsulate;
use socket2::Socket;
use tunnel::Opened;

use super::core::Core;
use super::sealer::Sealer;
use crate::io::tun::Tun;
use crate::tun_writer::TunWriter;
use crate::wire::Inbox;
use crate::{DropReason, Feature};

/// The way out of the tunnel: datagrams are opened under the peer's lock, judged under the engine's, written to the TUN under none.
pub(super) struct Opener {
    pub(super) ready: bool,
    inbox: Inbox,
    writer: TunWriter,
}

impl Opener {
    pub(super) fn new(socket: &Socket, offload: bool) -> Self {
        Self { ready: true, inbox: Inbox::new(socket, offload), writer: TunWriter::new() }
    }

    pub(super) fn feature(&self) -> Feature {
        self.inbox.feature()
    }

    pub(super) fn socket_changed(&mut self, socket: &Socket) {
        self.inbox.socket_changed(socket);
        self.ready = true;
    }

    /// Takes one batch of what the gateway sent; it is [`Opener::ready`] as long as there may be more.
    pub(super) fn receive(&mut self, core: &Core, tun: &mut Tun, sealer: &mut Sealer, now: Instant) {
        let socket = Arc::clone(&core.tunnel.lock().socket);
        let (count, more) = self.inbox.receive(&socket);
        self.ready = more;
        for place in 0..count {
            let Some((from, tos, datagrams)) = self.inbox.message(place) else { continue };
            let mut tunnel = core.tunnel.lock();
            for datagram in datagrams {
                if self.writer.is_full() {
                    drop(tunnel);
                    pass_on(&mut self.writer, core, tun, now);
                    tunnel = core.tunnel.lock();
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
                if opened.is_authentic() {
                    tunnel.endpoint = from;
                }
                match opened {
                    Opened::Packet(packet) => {
                        let length = packet.len();
                        match decapsulate(packet, tos) {
                            true => self.writer.push(length),
                            false => core.counters.count_drop(DropReason::Congested),
                        }
                    }
                    Opened::Reply(reply) => sealer.send_now(reply, from, &socket, core),
                    Opened::Keepalive | Opened::Nothing => {}
                }
            }
            tunnel.set_alarm(now);
        }
        pass_on(&mut self.writer, core, tun, now);
        sealer.flush(core, now);
    }
}

/// Judges what was opened and writes to the TUN what belongs to a flow.
fn pass_on(writer: &mut TunWriter, core: &Core, tun: &mut Tun, now: Instant) {
    let mut judge = core.engine.lock();
    let malformed = writer.judge(|packet| judge.engine.from_tunnel(packet, now).is_ok());
    judge.set_alarm(now);
    drop(judge);
    core.counters.count_drops(DropReason::Malformed, malformed);
    let refused = writer.flush(tun);
    core.counters.count_drops(DropReason::TunWriteFailed, refused);
}

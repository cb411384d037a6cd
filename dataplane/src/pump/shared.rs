use std::sync::Arc;
use std::time::Instant;

use packet::Packet;

use super::refusal::Refuser;
use crate::engine::{Action, Engine};
use crate::io::tun::Tun;
use crate::tun_writer::TunWriter;
use crate::{Counters, DropReason};

/// What both sides of the pump work with.
pub(super) struct Shared {
    pub(super) tun: Tun,
    pub(super) engine: Engine,
    pub(super) counters: Arc<Counters>,
    pub(super) refuser: Refuser,
}

impl Shared {
    /// Carries out a refusal; other actions are not for here.
    pub(super) fn carry_out(&mut self, action: Action, packet: &Packet<'_>) {
        let Action::Refuse(refusal) = action else { return };
        let written = self.refuser.refuse(&self.tun, packet, refusal);
        self.count_write(written);
    }

    pub(super) fn too_big(&mut self, packet: &Packet<'_>, mtu: u32) {
        self.counters.count_drop(DropReason::TooBig);
        let from = packet.headers().destination;
        let written = self.refuser.too_big(&self.tun, packet, mtu, from);
        self.count_write(written);
    }

    /// Whether a packet out of the tunnel may go to the TUN.
    pub(super) fn accepts(&mut self, packet: &[u8], now: Instant) -> bool {
        match Packet::parse(packet) {
            Ok(packet) => self.engine.from_tunnel(&packet, now).is_ok(),
            Err(_) => {
                self.counters.count_drop(DropReason::Malformed);
                false
            }
        }
    }

    pub(super) fn flush(&mut self, writer: &mut TunWriter) {
        let refused = writer.flush(&mut self.tun);
        (0..refused).for_each(|_| self.count_write(false));
    }

    pub(super) fn count_failed(&self, sends: usize) {
        (0..sends).for_each(|_| self.counters.count_drop(DropReason::SendFailed));
    }

    pub(super) fn write(&mut self, record: &[u8]) {
        let written = self.tun.write(record).is_ok();
        self.count_write(written);
    }

    pub(super) fn count_write(&self, written: bool) {
        if !written {
            self.counters.count_drop(DropReason::TunWriteFailed);
        }
    }
}

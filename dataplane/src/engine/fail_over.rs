use std::time::Instant;

use packet::Packet;
use policy::Path;

use super::{Action, Engine, Refusal};
use crate::DropReason;

/// The gateways' side of the engine: which one new flows go to, and how flows leave one that is silent.
impl Engine {
    /// New flows go to this gateway.
    pub fn use_gateway(&mut self, gateway: u8) {
        self.gateway = gateway;
    }

    /// Has the flows of `from` leave it: those of TCP that have heard anything are cut, all others go on through `to`, as do new ones. To be
    /// called with each part of the flows, counted from 0, which are bounded in number; returns how many live connections it has cut, `None`
    /// behind the last part.
    pub fn fail_over(&mut self, from: u8, to: u8, part: usize) -> Option<usize> {
        if self.gateway == from {
            self.gateway = to;
        }
        if part == 0 {
            self.fragments.fail_over(from, to);
        }
        let flows = self.flows.part_mut(part)?;
        Some(flows.map(|flow| usize::from(flow.fail_over(from, to))).sum())
    }

    /// Judges again a packet that waited for a session with the gateway that its flow has left.
    pub fn after_fail_over(&mut self, packet: &Packet<'_>, now: Instant) -> Action {
        let headers = packet.headers();
        if headers.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.later_fragment(headers, now);
        }
        let flow =
            self.outbound_flow(packet.headers(), packet.quoted(), now).and_then(|id| self.flows.get_mut(id));
        match flow.map(|flow| (flow.path, flow.gateway)) {
            Some((Path::Tunnel, gateway)) => Action::Tunnel { gateway },
            Some((Path::Reject, _)) => self.refuse(headers, DropReason::Cut, Refusal::Reset, now),
            Some((Path::Bypass, _)) | None => {
                self.counters.count_drop(DropReason::TunnelDown);
                Action::Drop
            }
        }
    }

    /// Adds up how many flows of a part go through each gateway; `false` behind the last part.
    pub fn count_flows(&self, part: usize, of: &mut [usize]) -> bool {
        let Some(flows) = self.flows.part(part) else { return false };
        for flow in flows.filter(|flow| flow.path == Path::Tunnel) {
            if let Some(count) = of.get_mut(usize::from(flow.gateway)) {
                *count += 1;
            }
        }
        true
    }
}

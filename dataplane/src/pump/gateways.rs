use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::choice::{Choice, Seen, Step};
use super::core::{Core, Flows, Tunnel};
use super::gateway_set::GatewaySet;
use super::sealer::Sealer;
use super::to_tun::ToTun;
use super::{Failover, GatewayEvent, MAX_GATEWAYS, OnGateway, Prefer};
use crate::clock::Alarm;
use crate::path_mtu::probe;

/// Where there are several gateways: has each flow go to one that answers.
pub(super) struct Gateways {
    choice: Choice,
    alarm: Alarm,
    /// When flows were counted last.
    counted: Instant,
}

/// Between two looks for gateways whose old flows have ended; nobody is woken for that.
const COUNT: Duration = Duration::from_secs(30);

impl Gateways {
    pub(super) fn new(prefer: Prefer, count: usize, alarm: Alarm, now: Instant) -> Self {
        Self { choice: Choice::new(prefer, count), alarm, counted: now }
    }

    pub(super) fn used(&self) -> usize {
        self.choice.used()
    }

    pub(super) fn rang(&mut self) {
        self.alarm.rang();
    }

    /// A gateway is looked for at another address.
    pub(super) fn moved(&mut self, gateway: usize, now: Instant) {
        self.choice.moved(gateway, now);
    }

    /// The underlay has changed; to these the way is another one.
    pub(super) fn network_changed(&mut self, another: GatewaySet, now: Instant) {
        self.choice.network_changed(another, now);
    }

    /// To be called after a handshake, a command, and an alarm: what was heard, sent and not heard shows in the peers.
    pub(super) fn follow(
        &mut self,
        core: &Core,
        sealer: &mut Sealer,
        to_tun: &mut ToTun,
        on_gateway: &OnGateway,
        now: Instant,
    ) {
        if self.counted + COUNT <= now {
            self.counted = now;
            core.forget_old_flows();
        }
        let mut seen = [Seen::default(); MAX_GATEWAYS];
        let count = core
            .gateways()
            .zip(&mut seen)
            .map(|(gateway, seen)| *seen = core.tunnel(gateway).lock().seen(now))
            .count();
        for step in self.choice.follow(seen.get(..count).unwrap_or_default(), now) {
            match step {
                Step::Knock(gateway) => knock(gateway as u8, core, sealer, now),
                Step::Ask(gateway) => core.tunnel(gateway as u8).lock().peer.ask(now),
                Step::Use(gateway) => {
                    lead_new_flows(gateway as u8, core);
                    core.engine.lock().engine.use_gateway(gateway as u8);
                    on_gateway(GatewayEvent::Used(gateway));
                }
                Step::FailOver { from, to, cause } => {
                    let cut_flows = self.fail_over(from as u8, to as u8, core, sealer, to_tun, now);
                    on_gateway(GatewayEvent::FailedOver(Failover { from, to, cause, cut_flows }));
                }
            }
        }
        self.alarm.ring_at(self.choice.deadline(), now);
    }

    /// Returns how many live connections that has cut. The new gateway's peer is held all the while: what waited for the old one's session is
    /// sent before what the other thread has for the same flows.
    fn fail_over(
        &self,
        from: u8,
        to: u8,
        core: &Core,
        sealer: &mut Sealer,
        to_tun: &mut ToTun,
        now: Instant,
    ) -> usize {
        let mut target = sealer.lock(to, core, now);
        if target.flows != Flows::New {
            target.flows = Flows::Old;
        }
        let cut_flows = (0..).map_while(|part| core.engine.lock().engine.fail_over(from, to, part)).sum();

        let mut source = core.tunnel(from).lock();
        if source.flows == Flows::New {
            target.flows = Flows::New;
        }
        source.flows = Flows::LeftFor(to);
        let waiting: Vec<_> = std::iter::from_fn(|| source.peer.take_waiting()).collect();
        drop(source);
        sealer.send_moved(waiting, target, core, to_tun, now);
        cut_flows
    }
}

/// Of all that the gateway has to answer this costs the least.
fn knock(gateway: u8, core: &Core, sealer: &mut Sealer, now: Instant) {
    let mut tunnel = core.tunnel(gateway).lock();
    let Tunnel { peer, path, probed, .. } = &mut *tunnel;
    let probe = probed.and_then(|ends| probe::seal(path, probe::CONTROL, ends, peer, now));
    let (socket, endpoint) = (Arc::clone(&tunnel.socket), tunnel.endpoint);
    drop(tunnel);
    if let Some(probe) = probe {
        sealer.send_now(&probe, endpoint, &socket, core);
    }
}

fn lead_new_flows(to: u8, core: &Core) {
    for gateway in core.gateways() {
        let mut tunnel = core.tunnel(gateway).lock();
        tunnel.flows = match tunnel.flows {
            _ if gateway == to => Flows::New,
            Flows::New => Flows::Old,
            other => other,
        };
    }
}

impl AsRawFd for Gateways {
    fn as_raw_fd(&self) -> RawFd {
        self.alarm.as_raw_fd()
    }
}

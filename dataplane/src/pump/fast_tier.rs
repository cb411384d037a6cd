use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use packet::{Dscp, FiveTuple, Tos};

use super::looks::Looks;
use crate::clock::Clock;
use crate::engine::{Cacheable, Engine, MappingId, Moved, Note};
use crate::fast_path::{self, Counts, EntryId, FastPath, Link, Statistics, Unavailable};
use crate::io::route::{Hop, Routes};
use crate::rtp::RtpStream;
use crate::{Direction, Feature, Underlay};

/// Bypass flows that the kernel moves at a time, as many as there are mappings; more stay with the pump. Each takes 448 bytes that count as
/// resident from the start, and an agent has tens.
const ENTRIES: u32 = 4_096;
/// Flows whose ways are asked for again at a change of routes. It takes some microseconds each, for which voice waits.
const MAX_ASKED: usize = 128;

/// The kernel fast path as the pump uses it: which flows it has, and who moves them at the moment. It stands beside the engine, under the
/// same lock, and is a cache of it.
pub(super) struct FastTier {
    kernel: FastPath,
    tun: u32,
    routes: Routes,
    clock: Clock,
    fwmark: u32,
    entries: HashMap<FiveTuple, Entry, ahash::RandomState>,
    /// Directions that are the pump's until none of their packets is in the pump any more.
    unsettled: Vec<Unsettled>,
    looks: Looks,
    /// Why a flow stayed with the pump last.
    trouble: Option<String>,
}

struct Entry {
    id: EntryId,
    /// `None` on the identity mapping.
    mapping: Option<MappingId>,
    external: SocketAddr,
    dscp: Dscp,
    hop: Hop,
    /// What the engine was told of.
    told: Statistics,
    /// Which directions are on the list of unsettled ones.
    unsettled: [bool; 2],
    /// Outbound it is the pump's again; inbound it will be, once a firewall has seen a packet go out.
    leaving: bool,
}

struct Unsettled {
    tuple: FiveTuple,
    /// The flow may have another entry by now.
    entry: EntryId,
    direction: Direction,
}

impl FastTier {
    /// In this thread's network namespace; `tun` is the TUN's index.
    pub(super) fn open(tun: u32, fwmark: u32, clock: Clock) -> Result<Self, Unavailable> {
        let kernel = FastPath::open(tun, ENTRIES)?;
        let routes = Routes::open(fwmark)
            .map_err(|error| Unavailable::Refused { what: "asking for routes", reason: error.to_string() })?;
        Ok(Self {
            kernel,
            tun,
            routes,
            clock,
            fwmark,
            entries: HashMap::default(),
            unsettled: Vec::new(),
            looks: Looks::default(),
            trouble: None,
        })
    }

    pub(super) fn feature(&self) -> Feature {
        let why = match &self.trouble {
            None => "the kernel moves the packets of established calls".to_owned(),
            Some(trouble) => format!("not for every flow: {trouble}"),
        };
        (FEATURE, true, why)
    }

    /// Attaches to the interfaces by which calls will go, before one waits for that (it takes milliseconds), and leaves those that are gone.
    pub(super) fn prepare(&mut self, underlay: &Underlay) {
        self.kernel.detach_gone();
        let sources = [underlay.v4.map(IpAddr::V4), underlay.v6.map(IpAddr::V6)];
        for device in sources.into_iter().flatten().filter_map(|source| underlay.device_of(source)) {
            if let Err(error) = self.kernel.attach(device) {
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// When [`FastTier::look`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.looks.due()
    }

    /// Follows the engine's flows. To be called when every packet that it judged is sent.
    pub(super) fn follow(&mut self, engine: &mut Engine, now: Instant) {
        self.forget_ended(engine);
        while let Some((tuple, note)) = engine.next_note() {
            let entry = self.entries.get(&tuple);
            match (note, entry) {
                (Note::Sent, None) => self.install(&tuple, engine, now),
                (Note::Sent, Some(entry)) if entry.leaving || engine.is_refused(&tuple, now) => {
                    self.remove(&tuple, engine);
                }
                (Note::Sent, Some(_)) => self.unsettle(tuple, Direction::Outbound, now),
                (Note::Received, Some(entry)) if !entry.leaving => {
                    self.unsettle(tuple, Direction::Inbound, now);
                }
                _ => {}
            }
        }
    }

    /// Takes from the kernel what the engine ended or changed its mind about.
    pub(super) fn forget_ended(&mut self, engine: &mut Engine) {
        while let Some((tuple, note)) = engine.next_ended() {
            match note {
                Note::Changed => self.hand_back(&tuple),
                _ => self.remove(&tuple, engine),
            }
        }
        let mappings = engine.ended_mappings();
        if mappings.is_empty() {
            return;
        }
        let is_gone =
            |mapping: &MappingId| mappings.binary_search_by_key(&key(*mapping), |ended| key(*ended)).is_ok();
        let gone = self.entries.iter().filter(|(_, entry)| entry.mapping.as_ref().is_some_and(is_gone));
        let gone: Vec<_> = gone.map(|(tuple, _)| *tuple).collect();
        gone.iter().for_each(|tuple| self.remove(tuple, engine));
    }

    /// Tells the engine what the kernel moved.
    pub(super) fn tell(&mut self, engine: &mut Engine, now: Instant) {
        for (tuple, entry) in &mut self.entries {
            let Some(statistics) = self.kernel.statistics(entry.id) else { continue };
            tell(tuple, entry, statistics, engine, &self.clock);
            // A packet that was handed up and got lost on its way tells nobody of itself.
            let halted =
                [(Direction::Outbound, statistics.outbound), (Direction::Inbound, statistics.inbound)];
            for (direction, counts) in halted {
                if !counts.live
                    && !entry.leaving
                    && !std::mem::replace(direction.of_mut(&mut entry.unsettled), true)
                {
                    self.unsettled.push(Unsettled { tuple: *tuple, entry: entry.id, direction });
                    self.looks.soon(now);
                }
            }
        }
    }

    /// Takes those back, packet by packet, that go another way now; if they are too many to ask, all.
    pub(super) fn follow_routes(&mut self, underlay: &Underlay) {
        let moved = match self.entries.len() {
            ..=MAX_ASKED => self.moved(underlay),
            _ => self.entries.keys().copied().collect(),
        };
        moved.iter().for_each(|tuple| self.hand_back(tuple));
    }

    /// As [`FastTier::follow_routes`], for what no change of routes tells of: IPv6 leaves a router that falls silent (RFC 4861 section 7.3.3).
    pub(super) fn follow_routers(&mut self, underlay: &Underlay) {
        if self.entries.len() <= MAX_ASKED && self.entries.keys().any(|tuple| tuple.destination.is_ipv6()) {
            self.follow_routes(underlay);
        }
    }

    fn moved(&mut self, underlay: &Underlay) -> Vec<FiveTuple> {
        let Self { routes, entries, .. } = self;
        let mut goes_on = |tuple: &FiveTuple, entry: &Entry| {
            let device = underlay.device_of(entry.external.ip());
            let hop = routes.to(tuple.destination, entry.external, device, entry.dscp);
            hop.is_ok_and(|hop| hop == entry.hop)
        };
        let moved = entries.iter().filter(|(tuple, entry)| !entry.leaving && !goes_on(tuple, entry));
        moved.map(|(tuple, _)| *tuple).collect()
    }

    /// The mappings whose sockets have to be found empty before their flows' answers are the kernel's.
    pub(super) fn to_be_emptied(&self) -> impl Iterator<Item = MappingId> {
        let inbound = self.unsettled.iter().filter(|waiting| waiting.direction == Direction::Inbound);
        inbound.filter_map(|waiting| self.entries.get(&waiting.tuple)?.mapping)
    }

    /// From now on the pump looks for the end of its queues: see [`FastTier::settle`].
    pub(super) fn look(&mut self, now: Instant) {
        self.looks.begin(now);
    }

    /// Gives to the kernel what has no packet in the pump. To be called when, after [`FastTier::look`], the TUN's queue was found empty and
    /// what had been in it is sent; `socket_empty` says the same of a mapping's socket.
    pub(super) fn settle(
        &mut self,
        engine: &mut Engine,
        socket_empty: impl Fn(MappingId) -> bool,
        now: Instant,
    ) {
        let Some(since) = self.looks.since() else { return };
        let before = self.unsettled.len();
        let since = self.clock.since_boot(since);
        let (entries, kernel) = (&mut self.entries, &self.kernel);
        self.unsettled.retain(|waiting| {
            let entry = entries.get_mut(&waiting.tuple).filter(|entry| entry.id == waiting.entry);
            let Some(entry) = entry else { return false };
            let empty = match waiting.direction {
                Direction::Outbound => true,
                Direction::Inbound => entry.mapping.is_none_or(&socket_empty),
            };
            let gone = entry.leaving || empty && settle(waiting, entry, kernel, engine, since);
            *waiting.direction.of_mut(&mut entry.unsettled) = !gone;
            !gone
        });
        self.looks.end(self.unsettled.len() < before, !self.unsettled.is_empty(), now);
    }

    fn install(&mut self, tuple: &FiveTuple, engine: &mut Engine, now: Instant) {
        let Some(flow) = engine.cacheable(tuple, now) else { return };
        let device = engine.underlay().device_of(flow.external.ip());
        match self.try_install(&flow, device) {
            Ok(entry) => {
                self.trouble = None;
                self.entries.insert(*tuple, entry);
                engine.set_cached(tuple, true);
                self.unsettle(*tuple, Direction::Outbound, now);
                self.unsettle(*tuple, Direction::Inbound, now);
            }
            Err(error) => {
                tracing::debug!(?tuple, error, "a flow stays with the pump");
                self.trouble = Some(error);
                engine.not_cached(tuple, now);
            }
        }
    }

    fn try_install(&mut self, flow: &Cacheable, device: Option<u32>) -> Result<Entry, String> {
        let remote = flow.tuple.destination;
        let dscp = flow.mark.apply(Tos::default()).dscp();
        let hop = self
            .routes
            .to(remote, flow.external, device, dscp)
            .map_err(|error| format!("no route to {}: {error}", remote.ip()))?;
        if hop.interface == self.tun {
            return Err(format!("the route to {} leads into the TUN", remote.ip()));
        }
        let link = self.kernel.attach(hop.interface).map_err(|error| error.to_string())?;
        let installed = self.kernel.install(&fast_path::Flow {
            internal: flow.tuple.source,
            external: flow.external,
            remote,
            interface: hop.interface,
            next_hop: match link {
                Link::Ethernet => Some(hop.via.unwrap_or(remote.ip())),
                Link::None => None,
            },
            fwmark: self.fwmark,
            mtu: hop.mtu,
            mark: flow.mark,
            life: flow.life,
            rtp: flow.rtp.map(RtpStream::handed_over),
        });
        let id = installed.map_err(|error| error.to_string())?;
        let told = self.kernel.statistics(id).ok_or("the entry is gone")?;
        let (mapping, external) = (flow.mapping, flow.external);
        Ok(Entry { id, mapping, external, dscp, hop, told, unsettled: [false; 2], leaving: false })
    }

    fn unsettle(&mut self, tuple: FiveTuple, direction: Direction, now: Instant) {
        let Some(entry) = self.entries.get_mut(&tuple) else { return };
        if !std::mem::replace(direction.of_mut(&mut entry.unsettled), true) {
            self.unsettled.push(Unsettled { tuple, entry: entry.id, direction });
            self.looks.soon(now);
        }
    }

    fn hand_back(&mut self, tuple: &FiveTuple) {
        if let Some(entry) = self.entries.get_mut(tuple) {
            self.kernel.suspend(entry.id, Direction::Outbound);
            entry.leaving = true;
        }
    }

    fn remove(&mut self, tuple: &FiveTuple, engine: &mut Engine) {
        let Some(mut entry) = self.entries.remove(tuple) else { return };
        if let Some(statistics) = self.kernel.remove(entry.id) {
            tell(tuple, &mut entry, statistics, engine, &self.clock);
        }
        engine.set_cached(tuple, false);
    }
}

fn key(mapping: MappingId) -> (u16, u16) {
    (mapping.slot, mapping.generation)
}

/// Its name in `status`.
pub(super) const FEATURE: &str = "kernel-fast-path";

/// What passed the pump until now, the pump has measured.
fn settle(
    waiting: &Unsettled,
    entry: &Entry,
    kernel: &FastPath,
    engine: &mut Engine,
    since: Duration,
) -> bool {
    let &Unsettled { tuple, direction, .. } = waiting;
    let measured = engine.measured(&tuple, direction).map(RtpStream::handed_over);
    let is_settled = kernel.settle(entry.id, direction, since, measured);
    if is_settled {
        engine.measured_by_cache(&tuple, direction);
    }
    is_settled
}

fn tell(tuple: &FiveTuple, entry: &mut Entry, now: Statistics, engine: &mut Engine, clock: &Clock) {
    let told = std::mem::replace(&mut entry.told, now);
    let moved = |before: Counts, after: Counts| {
        let packets = after.packets.wrapping_sub(before.packets);
        Moved {
            packets,
            bytes: after.bytes.wrapping_sub(before.bytes),
            last: (packets > 0).then(|| clock.at(after.last_seen)),
            rtp: after.rtp.handed_over(),
        }
    };
    let (sent, received) = (moved(told.outbound, now.outbound), moved(told.inbound, now.inbound));
    if told != now {
        engine.moved(tuple, sent, received);
    }
}

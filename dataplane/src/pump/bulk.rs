use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use policy::Snapshot;
use socket2::Socket;

use super::core::Core;
use super::fast_tier::FEATURE;
use super::gateway_set::GatewaySet;
use super::gateways::Gateways;
use super::intake::Intake;
use super::opener::Opener;
use super::prober::{Prober, mark_socket};
use super::sealer::Sealer;
use super::to_tun::ToTun;
use super::{Command, GatewayEvent, OnGateway, PumpError, io_error};
use crate::io::sockets::{self, Discover};
use crate::io::tun::{Queue, Tun};
use crate::path_mtu::PathMtu;
use crate::rest::Rest;
use crate::{DropReason, Feature, FlowReport, TunnelReport, Underlay};

const WAKER: Token = Token(0);
const TUN: Token = Token(1);
const CHOICE: Token = Token(2);
/// Gateway `n` has the token `FIRST_TUNNEL + 2 * n` for its tunnel's socket, and the one behind for its alarm.
const FIRST_TUNNEL: usize = 3;

/// The thread for everything that is no voice: the TUN's queue of that, the tunnels' sockets, and what the control plane asks.
pub(super) struct Bulk {
    poll: Poll,
    rest: Rest,
    core: Arc<Core>,
    inbox: Receiver<Command>,
    tun: Tun,
    /// `None` where the voice thread reads the only queue.
    intake: Option<Intake>,
    to_tun: ToTun,
    sealer: Sealer,
    opener: Opener,
    prober: Prober,
    /// `None`: there is but one.
    gateways: Option<Gateways>,
    on_gateway: OnGateway,
    /// Those of the voice thread.
    voice_features: Vec<Feature>,
}

impl Bulk {
    pub(super) fn new(
        core: Arc<Core>,
        (inbox, on_gateway): (Receiver<Command>, OnGateway),
        tun: Tun,
        queue: Option<Queue>,
        sealer: Sealer,
        mut opener: Opener,
        prober: Prober,
    ) -> Result<(Self, Arc<Waker>), PumpError> {
        let poll = Poll::new().map_err(io_error("opening an epoll"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(io_error("opening a waker"))?;
        for gateway in core.gateways() {
            let tunnel = core.tunnel(gateway).lock();
            watch(&poll, tunnel.alarm.as_raw_fd(), alarm_of(gateway))?;
            watch(&poll, tunnel.socket.as_raw_fd(), socket_of(gateway))?;
            opener.socket_changed(gateway, &tunnel.socket);
        }
        if let Some(queue) = &queue {
            watch(&poll, queue.as_raw_fd(), TUN)?;
        }
        let own = tun.queue().try_clone().map_err(io_error("sharing the TUN"))?;
        let to_tun = ToTun::new(own, Arc::clone(&core.counters));
        let bulk = Self {
            poll,
            rest: Rest::default(),
            core,
            inbox,
            tun,
            intake: queue.map(Intake::new),
            to_tun,
            sealer,
            opener,
            prober,
            gateways: None,
            on_gateway,
            voice_features: Vec::new(),
        };
        Ok((bulk, Arc::new(waker)))
    }

    /// To be called where there are several.
    pub(super) fn choose_among(&mut self, gateways: Gateways) -> Result<(), PumpError> {
        watch(&self.poll, gateways.as_raw_fd(), CHOICE)?;
        self.gateways = Some(gateways);
        Ok(())
    }

    /// Moves packets until told to stop, or until the TUN is gone.
    pub(super) fn run(&mut self, voice_features: Vec<Feature>) -> Result<(), PumpError> {
        self.voice_features = voice_features;
        let mut events = Events::with_capacity(16);
        // Where a gateway may be asked, be silent, or have answered; of what is sent and not answered the tunnels' alarms tell.
        let mut may_choose = true;
        while !self.core.is_stopped() {
            let busy = self.opener.is_ready() || self.intake.as_ref().is_some_and(|intake| intake.ready);
            if self.rest.wait(&mut self.poll, &mut events, busy).map_err(io_error("waiting for packets"))? {
                self.give_back();
            }
            let now = self.core.clock.now();
            let mut with_errors = GatewaySet::default();
            for event in &events {
                match event.token() {
                    WAKER => {
                        self.obey();
                        may_choose = true;
                    }
                    TUN => self.intake.iter_mut().for_each(|intake| intake.ready = true),
                    CHOICE => {
                        self.gateways.iter_mut().for_each(Gateways::rang);
                        may_choose = true;
                    }
                    Token(token) => {
                        let gateway = (token.saturating_sub(FIRST_TUNNEL) / 2) as u8;
                        if event.token() == alarm_of(gateway) {
                            self.core.tunnel(gateway).lock().alarm.rang();
                            may_choose = true;
                            continue;
                        }
                        self.opener.set_ready(gateway);
                        if event.is_error() {
                            with_errors.insert(gateway);
                        }
                    }
                }
            }
            for gateway in with_errors {
                self.prober.hear_errors(gateway, &self.core, now);
            }
            if let Some(intake) = self.intake.as_mut().filter(|intake| intake.ready) {
                intake.read()?;
                // What goes to the bypass is UDP, which the other queue leads to the voice thread.
                let no_port = |_, _, _: &mut _| Err(io::ErrorKind::Unsupported.into());
                intake.judge(&self.core, &mut self.to_tun, no_port, now);
                let astray = intake.for_bypass.len() + intake.whole.len();
                self.core.counters.count_drops(DropReason::SendFailed, astray);
                self.sealer.send(&intake.for_tunnel, &mut intake.records, &self.core, &mut self.to_tun, now);
            }
            if self.opener.is_ready() {
                may_choose |= self.opener.receive(&self.core, &mut self.tun, &mut self.sealer, now);
            }
            if std::mem::take(&mut may_choose)
                && let Some(gateways) = &mut self.gateways
            {
                gateways.follow(&self.core, &mut self.sealer, &mut self.to_tun, &self.on_gateway, now);
                self.prober.follow_mtu(&self.core, now);
            }
            for gateway in self.core.gateways() {
                let met = self.sealer.meet_deadlines(gateway, &self.core, &mut self.to_tun, now);
                if met.wants_prober {
                    self.prober.follow(gateway, &self.core, &mut self.sealer, now);
                }
                if met.has_come_up {
                    (self.on_gateway)(GatewayEvent::Up(gateway.into()));
                }
                if met.has_gone_down {
                    (self.on_gateway)(GatewayEvent::Down(gateway.into()));
                }
            }
        }
        Ok(())
    }

    /// The buffers' memory.
    fn give_back(&mut self) {
        self.intake.iter_mut().for_each(Intake::give_back);
        self.opener.give_back();
        self.sealer.give_back();
    }

    /// Does what the control plane asked.
    fn obey(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            // What was tried before the command was given counts as tried before.
            let now = self.core.clock.now();
            match command {
                Command::Swap(snapshot, reply) => {
                    let _ = reply.send(self.swap(snapshot));
                }
                Command::Underlay(underlay, reply) => {
                    self.set_underlay(underlay, now);
                    let _ = reply.send(());
                }
                Command::TryAgain => {
                    let all: GatewaySet = self.core.gateways().collect();
                    all.for_each(|gateway| self.core.tunnel(gateway).lock().try_again(now));
                    self.gateways.iter_mut().for_each(|gateways| gateways.network_changed(all, now));
                }
                Command::Count(reply) => {
                    self.hear_of_moved(now);
                    let _ = reply.send(());
                }
                Command::Routes => self.core.engine.lock().routes_changed(now),
                Command::Endpoint(gateway, endpoint, reply) => {
                    let _ = reply.send(self.move_to(gateway, endpoint, now));
                }
                Command::Flows(reply) => {
                    let _ = reply.send(self.flows(now));
                }
                Command::Destinations(reply) => {
                    let _ = reply.send(self.destinations());
                }
                Command::Tunnels(reply) => {
                    let _ = reply.send(self.tunnels(now));
                }
                Command::Features(reply) => {
                    let _ = reply.send(self.features());
                }
                Command::Stop => self.core.stop(),
            }
        }
    }

    fn set_underlay(&mut self, underlay: Underlay, now: Instant) {
        let before = self.core.engine.lock().engine.underlay().clone();
        let mut another = GatewaySet::default();
        for gateway in self.core.gateways() {
            let mut tunnel = self.core.tunnel(gateway).lock();
            if before.has_other_way(&underlay, gateway, tunnel.endpoint) {
                another.insert(gateway);
                tunnel.network_changed(underlay.leg(gateway.into()), now);
            }
        }
        if !another.is_empty() {
            self.gateways.iter_mut().for_each(|gateways| gateways.network_changed(another, now));
        }
        let mut judge = self.core.engine.lock();
        judge.engine.set_underlay(underlay, now);
        self.core.underlay_changed();
        judge.routes_changed(now);
        judge.set_alarm(now);
    }

    fn hear_of_moved(&self, now: Instant) {
        let mut judge = self.core.engine.lock();
        judge.hear_of_moved(now);
        judge.set_alarm(now);
    }

    /// Returns how many flows the new policy cut.
    fn swap(&self, snapshot: Arc<Snapshot>) -> usize {
        self.core.engine.lock().engine.swap(snapshot);
        loop {
            // Between two parts of the flows the lock goes to whoever waits.
            let cut = self.core.engine.lock().judge_again();
            if let Some(cut) = cut {
                return cut;
            }
        }
    }

    fn flows(&self, now: Instant) -> Vec<FlowReport> {
        self.hear_of_moved(now);
        (0..).map_while(|part| self.core.engine.lock().engine.flows(part, now)).flatten().collect()
    }

    fn destinations(&self) -> BTreeSet<IpAddr> {
        let mut all: BTreeSet<IpAddr> =
            (0..).map_while(|part| self.core.engine.lock().engine.destinations(part)).flatten().collect();
        all.extend(self.core.engine.lock().engine.take_refused());
        all
    }

    fn tunnels(&self, now: Instant) -> Vec<TunnelReport> {
        let used = self.gateways.as_ref().map_or(0, Gateways::used);
        let tunnels = self.core.gateways().zip(self.core.count_flows());
        tunnels
            .map(|(gateway, flows)| {
                self.core.tunnel(gateway).lock().report(usize::from(gateway) == used, flows, now)
            })
            .collect()
    }

    /// On an error the tunnel stays where it was.
    fn move_to(&mut self, gateway: usize, endpoint: SocketAddr, now: Instant) -> Result<(), PumpError> {
        let known = self.core.gateways().find(|known| usize::from(*known) == gateway);
        let gateway = known.ok_or(PumpError::NoSuchGateway(gateway))?;
        let tunnel = self.core.tunnel(gateway).lock();
        let (stays, path) = (endpoint.is_ipv4() == tunnel.endpoint.is_ipv4(), discover(&tunnel.path));
        drop(tunnel);
        let other_socket = match stays {
            true => None,
            false => Some(Arc::new(open_socket(endpoint, self.core.fwmark, path)?)),
        };
        if let Some(socket) = &other_socket {
            watch(&self.poll, socket.as_raw_fd(), socket_of(gateway))?;
            self.opener.socket_changed(gateway, socket);
        }
        self.gateways.iter_mut().for_each(|gateways| gateways.moved(gateway.into(), now));
        let mut tunnel = self.core.tunnel(gateway).lock();
        if let Some(socket) = other_socket {
            tunnel.socket = socket;
        }
        tunnel.heard_at(endpoint, now);
        mark_socket(&tunnel);
        tunnel.segmentation.offer_again();
        tunnel.try_again(now);
        Ok(())
    }

    fn features(&self) -> Vec<Feature> {
        let segmentation = self.core.tunnel(0).lock().segmentation.feature();
        let own = self.tun.features().into_iter().chain([segmentation, self.opener.feature()]);
        let fast = match &self.core.engine.lock().fast {
            Ok(fast) => fast.feature(),
            Err(why) => (FEATURE, false, why.clone()),
        };
        own.chain(self.voice_features.iter().cloned()).chain([fast]).collect()
    }
}

fn socket_of(gateway: u8) -> Token {
    Token(FIRST_TUNNEL + 2 * usize::from(gateway))
}

fn alarm_of(gateway: u8) -> Token {
    Token(FIRST_TUNNEL + 2 * usize::from(gateway) + 1)
}

pub(super) fn open_socket(
    endpoint: SocketAddr,
    fwmark: u32,
    path_mtu: Discover,
) -> Result<Socket, PumpError> {
    sockets::tunnel(endpoint.ip(), fwmark, path_mtu).map_err(io_error("opening the tunnel's socket"))
}

pub(super) fn discover(path: &PathMtu) -> Discover {
    if path.discovers() { Discover::On } else { Discover::Off }
}

pub(super) fn watch(poll: &Poll, fd: i32, token: Token) -> Result<(), PumpError> {
    poll.registry()
        .register(&mut SourceFd(&fd), token, Interest::READABLE)
        .map_err(io_error("watching a descriptor"))
}

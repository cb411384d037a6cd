use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use control::Server;
use dataplane::{Failover, Gateway, GatewayEvent, Handle, Mtu, Offload, Prefer, Pump, PumpError, Setup, Tun};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use policy::{Fail, Snapshot};
use tokio::sync::{mpsc, oneshot, watch};
use tunnel::{Peer, PeerConfig};

use super::{
    first::{self, Before},
    former,
    gateways::NOWHERE,
    learned::Addresses,
    learning,
    load::Loaded,
    looks,
    lookups::Lookups,
    machine::{self, Machine},
    names::{Heard, Names},
    portal::Portal,
};
use crate::{failure::Failure, output, state::StateDir};

/// The pump's mappings, at most 4096, and room for all else.
const FILES: rlim_t = 8192;

/// A daemon that is up.
pub struct Running {
    pub path: PathBuf,
    pub state: StateDir,
    pub loaded: Loaded,
    /// The policy in force: the configuration's, with `addresses`.
    pub snapshot: Arc<Snapshot>,
    /// What the policy's names were found to have.
    pub addresses: Addresses,
    /// When names of theirs that are not written down yet are to be.
    pub unwritten_due: Option<tokio::time::Instant>,
    /// What the policy in force has beside the configuration, for a while after a reload.
    pub former: Vec<former::Kept>,
    /// When to look what of both is in use.
    pub look_due: Option<tokio::time::Instant>,
    /// Our resolver, if the policy has names.
    pub names: Option<Names>,
    pub portal: Portal,
    /// The TUN's name.
    pub interface: String,
    /// The largest packet in the tunnel, in bytes: a new one after each change.
    pub mtu: watch::Receiver<u16>,
    pub since: Instant,
    pub machine: Machine,
    pub pump: Handle,
    /// Look for the gateways again.
    pub lookups: Lookups,
    /// The last one, and when.
    pub failover: Option<(Instant, Failover)>,
}

/// Where a daemon that is up hears from.
pub struct Outside {
    pub server: Server,
    pub exited: Exited,
    /// `None`: the policy has no names.
    pub heard: Option<Heard>,
    /// What the pump tells of them.
    pub gateways: mpsc::UnboundedReceiver<GatewayEvent>,
}

/// Resolves when the pump ends.
pub type Exited = oneshot::Receiver<Result<(), PumpError>>;

/// Raises everything; packets can move when this returns. Where a step fails, those before it are undone, but for what a
/// crash had left: a failed attempt to start again must not open what that keeps closed.
pub async fn start(path: PathBuf, mut loaded: Loaded) -> Result<(Running, Outside), Failure> {
    let state = StateDir::from_environment();
    let lock = machine::lock(&state)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }

    let before = tokio::spawn(first::ask_before(&loaded, None));
    let addresses = known_addresses(&state, &loaded)?;
    let snapshot = Arc::new(loaded.snapshot.with_learned(&addresses.learned()));
    loaded.choose_endpoints(&[], &snapshot);

    raise_file_limit();
    let tun = open_tun(loaded.config.interface.name.as_deref())?;
    let interface = tun.name().to_owned();
    let (machine, mtu) = Machine::raise(lock, &tun, &loaded, &snapshot).await?;
    let (tell, mtu) = watch::channel(mtu);
    let (tell_gateways, gateways) = mpsc::unbounded_channel();
    let started = async {
        let (pump, exited) = start_pump(tun, &loaded, &snapshot, tell, tell_gateways, &machine)?;
        let server = Server::bind(&state.control_socket(), loaded.access)
            .map_err(|error| Failure::system("cannot open the control socket").because(error))?;
        Ok((pump, exited, server))
    };
    let (pump, exited, server) = match started.await {
        Ok(started) => started,
        Err(failure) => {
            machine.give_up().await;
            return Err(failure);
        }
    };

    let since = Instant::now();
    let lookups = lookups_of_unknown(&loaded);
    let mut running = Running {
        path,
        state,
        loaded,
        snapshot,
        addresses,
        unwritten_due: None,
        former: Vec::new(),
        look_due: None,
        names: None,
        portal: Portal::new(),
        interface,
        mtu,
        since,
        machine,
        pump,
        lookups,
        failover: None,
    };
    let heard = match lead_names(&mut running, before.await.unwrap_or_default()).await {
        Ok(heard) => heard,
        Err(failure) => {
            running.give_up().await;
            return Err(failure);
        }
    };
    looks::schedule(&mut running);
    running.announce();
    Ok((running, Outside { server, exited, heard, gateways }))
}

/// Has names led to our resolver. First is written down what applications may have from `before`: after a crash nobody can tell.
async fn lead_names(running: &mut Running, before: Before) -> Result<Option<Heard>, Failure> {
    learning::write_before(running, &running.loaded.snapshot, &before)?;
    let (names, heard) = Names::start(&mut running.machine, &running.loaded).await?.unzip();
    running.names = names;
    running.machine.let_go().await?;
    learning::close(running, &before).await?;
    Ok(heard)
}

/// Names without an answer so far are asked for again.
fn lookups_of_unknown(loaded: &Loaded) -> Lookups {
    let mut lookups = Lookups::new(&loaded.config.tunnel.gateways);
    let now = tokio::time::Instant::now();
    loaded.not_found().for_each(|gateway| lookups.want_later(gateway, now));
    lookups
}

/// What the last daemon learned and a crash kept closed, as the policy sees it now.
fn known_addresses(state: &StateDir, loaded: &Loaded) -> Result<Addresses, Failure> {
    let file = state.learned();
    let known = Addresses::read(&file).map_err(|error| {
        Failure::system(format!("cannot read {}, the addresses that signaling's names had", file.display()))
            .because(error)
            .remedy("they stay refused; `breakout down` removes the file and opens the way to them")
    })?;
    Ok(known.under(&loaded.snapshot))
}

/// Each voice mapping holds a socket: with the usual soft limit of 1024, whoever opens as many ports could keep the daemon
/// from opening anything else.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES)), hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// Opens the TUN, or says what is missing.
pub fn open_tun(name: Option<&str>) -> Result<Tun, Failure> {
    Ok(Tun::open(name).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "run it as root, or with CAP_NET_ADMIN",
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "the kernel's TUN driver is missing: `modprobe tun`; in a container, pass /dev/net/tun through"
            }
            Some(libc::EBUSY) => "an interface of this name exists: remove it, or give another `name`",
            _ => "see /dev/net/tun and the interface's name",
        };
        let what = name.unwrap_or("a TUN");
        Failure::system(format!("cannot open {what}")).because(error).remedy(remedy)
    })?)
}

fn start_pump(
    tun: Tun,
    loaded: &Loaded,
    snapshot: &Arc<Snapshot>,
    tell: watch::Sender<u16>,
    tell_gateways: mpsc::UnboundedSender<GatewayEvent>,
    machine: &Machine,
) -> Result<(Handle, Exited), Failure> {
    let config = &loaded.config;
    let gateways = gateways(loaded, *tell.borrow())?;
    let (ended, exited) = oneshot::channel();
    let setup = Setup {
        tun,
        addresses: config.interface.address.iter().map(|net| net.addr()).collect(),
        mtu: match config.interface.mtu {
            Some(mtu) => Mtu::Fixed(mtu),
            None => Mtu::Discovered(Box::new(move |mtu| {
                tell.send_replace(mtu);
            })),
        },
        gateways,
        prefer: match config.tunnel.prefer {
            policy::Prefer::Order => Prefer::Order,
            policy::Prefer::RoundTrip => Prefer::RoundTrip,
        },
        snapshot: snapshot.clone(),
        fwmark: Machine::fwmark(),
        underlay: machine.underlay(),
        fast_path: config.dataplane.fast_path,
        offload: Offload { tun: config.dataplane.tun_offload, udp: config.dataplane.udp_offload },
        outer_dscp: config.dataplane.outer_dscp,
        // Nobody hears it once the daemon ends.
        on_gateway: Box::new(move |event| _ = tell_gateways.send(event)),
        on_exit: Box::new(move |result| drop(ended.send(result))),
    };
    let pump = Pump::start(setup).map_err(|error| Failure::system("cannot start the pump").because(error))?;
    Ok((pump, exited))
}

/// Of each gateway, in the configuration's order.
fn gateways(loaded: &Loaded, mtu: u16) -> Result<Vec<Gateway>, Failure> {
    let Loaded { config, keys, .. } = loaded;
    let keepalive = config.tunnel.keepalive.map(|seconds| Duration::from_secs(seconds.into()));
    let each = config.tunnel.gateways.iter().zip(&keys.preshared).zip(&loaded.endpoints);
    each.map(|((gateway, preshared_key), endpoint)| {
        let config = PeerConfig {
            private_key: keys.private.clone(),
            peer_public_key: tunnel::PublicKey(gateway.public_key.0),
            preshared_key: preshared_key.clone(),
            keepalive,
            index: random_index()?,
            mtu,
        };
        let peer = Peer::new(config, Instant::now());
        Ok(Gateway { peer, endpoint: endpoint.unwrap_or(NOWHERE) })
    })
    .collect()
}

/// 24 random bits.
fn random_index() -> Result<u32, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::system("the system gives no random numbers").because(error.to_string()))?;
    Ok(u32::from_le_bytes(bytes) >> 8)
}

impl Running {
    pub fn gateway_name(&self, at: usize) -> String {
        self.loaded.config.tunnel.gateways.get(at).map_or_else(String::new, |gateway| gateway.name.clone())
    }

    fn announce(&self) {
        let addresses: Vec<_> =
            self.loaded.config.interface.address.iter().map(ToString::to_string).collect();
        let captured = self.loaded.snapshot.captured();
        let closed = captured.iter().filter(|captured| captured.fail == Fail::Closed).count();
        tracing::info!(
            interface = %self.interface,
            gateway = self.loaded.shown_endpoints(),
            routed = captured.len(),
            failing_closed = closed,
            "up"
        );
        let told = output::text(&format!(
            "breakout is up: {} {}, mtu {}, gateway {}\n",
            self.interface,
            addresses.join(", "),
            *self.mtu.borrow(),
            self.loaded.shown_endpoints()
        ));
        if let Err(failure) = told {
            tracing::warn!("{}", failure.plain());
        }
    }

    /// As [`Machine::give_up`].
    async fn give_up(self) {
        let Self { pump, machine, state, names, .. } = self;
        drop((pump, names));
        let (lock, took_over) = (machine.lock(), machine.took_over());
        machine.give_up().await;
        if !took_over {
            state.forget_learned();
        }
        drop(lock);
    }

    /// Puts the machine back as it was found.
    pub async fn end(self, outside: Outside) -> Result<(), Failure> {
        drop(outside);
        // The pump first: until the routes are gone too, signaling is refused rather than sent directly.
        let stopped =
            self.pump.stop().map_err(|error| Failure::system("the pump did not end well").because(error));
        // The next daemon has a memory of its own.
        let lock = self.machine.lock();
        self.machine.restore().await?;
        self.state.forget_learned();
        drop(lock);
        stopped?;
        tracing::info!("down");
        Ok(())
    }
}

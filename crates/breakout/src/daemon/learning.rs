//! What is done before an application gets an answer, and as long as it may use that.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ::names::Learn;
use policy::Snapshot;
use tokio::time::Instant;

use super::{
    clock,
    first::Before,
    learned::{Addresses, Known, News, Sighting},
    load::Loaded,
    looks,
    start::Running,
};
use crate::failure::{Failure, Problem};

/// After which names that could not be written down are tried again.
const RETRY: Duration = Duration::from_secs(60);
/// After which further names of learned addresses are written down, together.
const WRITING: Duration = Duration::from_secs(1);

/// Routes what was found and has the policy judge it; only then the application is told. A name that a reload is about to add waits for that.
pub async fn learn(running: &mut Running, found: Learn) {
    let found = match &mut running.names {
        Some(names) => names.hold(found),
        None => Some(found),
    };
    let Some(Learn { name, addresses, done }) = found else { return };
    let taken = take(running, &name, &addresses).await;
    if let Err(failure) = &taken {
        tracing::warn!(name, "an answer is withheld: {}", failure.plain());
    }
    // Who asked may be gone.
    let _ = done.send(taken.is_ok());
}

/// Closes what applications may know from before names were led here, and ends their connections. Nobody is told of it.
pub async fn close(running: &mut Running, before: &Before) -> Result<(), Failure> {
    let addresses = with_before(running, &running.loaded.snapshot, before);
    match addresses == running.addresses {
        true => Ok(()),
        false => change(running, addresses).await,
    }
}

/// Has the next start know it, whatever comes in between. It may know more than this one has need of, under either policy.
pub fn write_before(running: &Running, policy: &Snapshot, before: &Before) -> Result<Addresses, Failure> {
    let addresses = with_before(running, policy, before);
    if addresses != running.addresses {
        addresses.write(&running.state.learned()).map_err(not_changed)?;
    }
    Ok(addresses)
}

/// What is known, and what of `before` the policy has names for.
fn with_before(running: &Running, policy: &Snapshot, before: &Before) -> Addresses {
    let (mut addresses, now) = (running.addresses.clone(), clock::awake());
    for (name, found) in before {
        let Some((_, set)) = policy.set_for_name(name) else { continue };
        let sightings: Vec<Sighting> = found
            .iter()
            .copied()
            .filter(|address| refusal(running, policy, set, *address).is_none())
            .map(|address| Sighting { address, ttl: Duration::ZERO, known: Known::Before })
            .collect();
        let noted = addresses.note((name, set), &sightings, now);
        if noted.is_err() || sightings.iter().any(|sighting| !addresses.holds(sighting.address, set)) {
            tracing::warn!(name, "addresses from before `up` are not all closed: there are too many");
        }
    }
    addresses
}

/// Keeps what is in use, and forgets what has ended and is not.
pub async fn expire(running: &mut Running, in_use: &BTreeSet<IpAddr>) -> Result<(), Failure> {
    let mut left = running.addresses.clone();
    if left.expire(in_use, clock::awake()) {
        tracing::debug!(before = running.addresses.len(), now = left.len(), "learned addresses have ended");
        return change(running, left).await;
    }
    running.addresses = left;
    Ok(())
}

/// After a reload: what the policy in force has of them. A crash before that leaves more than is needed.
pub fn keep(running: &mut Running, addresses: Addresses) {
    if addresses != running.addresses
        && let Err(error) = addresses.write(&running.state.learned())
    {
        tracing::warn!(%error, "the next start knows addresses that are of no use any more");
    }
    running.addresses = addresses;
    looks::schedule(running);
}

/// Writes down names of addresses that are known. The next start needs those if the policy is another then.
pub fn write(running: &mut Running) {
    running.unwritten_due = running.addresses.write(&running.state.learned()).err().map(|error| {
        tracing::warn!(%error, "names of learned addresses cannot be written down; trying again");
        Instant::now() + RETRY
    });
}

async fn take(running: &mut Running, name: &str, addresses: &[(IpAddr, Duration)]) -> Result<(), Failure> {
    let policy = running.loaded.snapshot.clone();
    let Some((_, set)) = policy.set_for_name(name) else {
        return Err(Failure::system("the policy has another mind since it was asked").into());
    };
    let mut sightings = Vec::with_capacity(addresses.len());
    for (address, ttl) in addresses.iter().copied() {
        let known = if is_carried(&running.loaded, address) { Known::Told } else { Known::Withheld };
        match refusal(running, &policy, set, address) {
            None => sightings.push(Sighting { address, ttl, known }),
            Some(refusal) if known == Known::Told => return Err(refusal),
            Some(_) => {}
        }
    }
    let now = clock::awake();
    // Whoever asks for ever more names under a domain keeps nobody waiting for long.
    if let Some(news) = running.addresses.note_known((name, set), &sightings, now) {
        if news == News::Name {
            running.unwritten_due.get_or_insert(Instant::now() + WRITING);
        }
        return Ok(());
    }
    let in_use = match running.addresses.lacks_room(&sightings) {
        0 => BTreeSet::new(),
        _ => looks::keep_used(running).await?,
    };
    let mut known = running.addresses.clone();
    known.make_room(known.lacks_room(&sightings), &in_use, now);
    known.note((name, set), &sightings, now).map_err(not_changed)?;
    change(running, known).await
}

/// Whether the tunnel carries what goes there.
fn is_carried(loaded: &Loaded, address: IpAddr) -> bool {
    loaded.config.interface.address.iter().any(|own| own.addr().is_ipv4() == address.is_ipv4())
}

/// Why an address cannot be learned for a set, if so.
fn refusal(running: &Running, policy: &Snapshot, set: &str, address: IpAddr) -> Option<Failure> {
    if is_a_gateways(running, address) {
        let failure = Failure::usage("it leads to a gateway's own address")
            .remedy("the tunnel cannot run inside itself: give the gateway an address of its own");
        return Some(failure.into());
    }
    // What a configured prefix holds is judged by that, and routed already, unless no rule is for its set.
    if let Some((holder, _)) = policy.set_of(address) {
        let is_routed = policy.captured().iter().any(|captured| captured.prefix.contains(&address));
        return (!is_routed).then(|| {
            Failure::usage(format!(
                "{address} is in the set {holder}, which no rule is for: it would be reached directly"
            ))
            .remedy(format!("make a rule for {holder}, or take the address out of it"))
            .into()
        });
    }
    let is_near = !running.addresses.holds(address, set) && running.machine.is_near(address);
    is_near.then(|| {
        Failure::usage(format!(
            "{address} is this machine's or a neighbour's, or a DNS server that is asked for other names"
        ))
        .remedy("see what the DNS server behind the tunnel says; a prefix in `cidrs` is taken without doubt")
        .into()
    })
}

/// One without an answer whose name is said to lead there is none: that may be a lie, to keep the address from being learned.
fn is_a_gateways(running: &Running, address: IpAddr) -> bool {
    let Loaded { config, endpoints, .. } = &running.loaded;
    let mut there = endpoints
        .iter()
        .enumerate()
        .filter(|(_, endpoint)| endpoint.is_some_and(|endpoint| endpoint.ip() == address))
        .map(|(at, _)| at)
        .peekable();
    if there.peek().is_none() {
        return false;
    }
    // A pump that has ended says so itself.
    let tunnels = running.pump.tunnels().unwrap_or_default();
    let has_name =
        |at: usize| config.tunnel.gateways.get(at).is_some_and(|gateway| gateway.endpoint.host().is_some());
    let is_down = |at: usize| tunnels.get(at).is_some_and(|tunnel| tunnel.state == "down");
    there.any(|at| !(has_name(at) && is_down(at)))
}

/// First what a crash must not forget, then what leads into the TUN, then the policy: what is routed and not yet judged is refused.
async fn change(running: &mut Running, addresses: Addresses) -> Result<(), Failure> {
    let snapshot = Arc::new(running.loaded.snapshot.with_learned(&addresses.learned()));
    addresses.write(&running.state.learned()).map_err(not_changed)?;
    running.machine.learn(&snapshot).await?;
    running.pump.swap(snapshot.clone()).map_err(not_changed)?;
    running.machine.end_old_connections(&running.loaded, &snapshot);
    running.unwritten_due = None;
    (running.snapshot, running.addresses) = (snapshot, addresses);
    looks::schedule(running);
    Ok(())
}

fn not_changed(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Failure::system("the learned addresses could not be changed").because(error)
}

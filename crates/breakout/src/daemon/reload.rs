use control::{Reloaded, Server};
use policy::{Captured, Fail};

use super::{
    load::{Loaded, load},
    start::Running,
};
use crate::failure::{Failure, Problem};

/// Reads the configuration again and swaps it in, or keeps the old one whole.
pub async fn reload(running: &mut Running, server: &Server) -> Result<Reloaded, Failure> {
    let new = load(&running.path).await?;
    let fixed = needs_restart(&running.loaded, &new);
    if !fixed.is_empty() {
        return Err(Failure::usage(format!("{} cannot change while the daemon runs", fixed.join(", ")))
            .remedy("`breakout down`, then `breakout up`; or put the old values back and reload")
            .into());
    }
    let old_access = server.access();
    server.set_access(new.access).map_err(|error| refused("the control socket", error))?;
    let cut_flows = match swap(running, &new).await {
        Ok(cut_flows) => cut_flows,
        Err(failure) => {
            server.set_access(old_access).map_err(|error| refused("the control socket", error))?;
            return Err(failure);
        }
    };

    let changes = changes(&running.loaded, &new);
    let warnings = new.warnings.clone();
    running.loaded = new;
    tracing::info!(?changes, cut_flows, "reloaded");
    Ok(Reloaded { changes, cut_flows, warnings })
}

/// First the routes of both policies, so that nothing which the new policy tunnels can leave directly; then the policy; then
/// the routes of the new one alone. What fails is taken back.
async fn swap(running: &mut Running, new: &Loaded) -> Result<usize, Failure> {
    let Running { loaded: old, machine, pump, .. } = running;
    let (was, is) = (old.snapshot.captured(), new.snapshot.captured());
    machine.set_captured(&both(was, is)).await?;
    let cut_flows = match pump.swap(new.snapshot.clone()) {
        Ok(cut_flows) => cut_flows,
        Err(error) => {
            machine.set_captured(was).await?;
            return Err(refused("the pump", error).into());
        }
    };
    if let Err(failure) = machine.set_captured(is).await {
        pump.swap(old.snapshot.clone()).map_err(|error| refused("the pump", error))?;
        machine.set_captured(was).await?;
        return Err(failure);
    }
    if new.endpoint != old.endpoint {
        machine.set_gateway(new.endpoint.ip());
        pump.set_endpoint(new.endpoint).map_err(|error| refused("the pump", error))?;
    }
    Ok(cut_flows)
}

/// All prefixes of two policies; one that fails closed in either fails closed.
fn both(was: &[Captured], is: &[Captured]) -> Vec<Captured> {
    let mut union: Vec<Captured> = was.iter().chain(is).copied().collect();
    union.sort_by_key(|captured| (captured.prefix, captured.fail == Fail::Direct));
    union.dedup_by_key(|captured| captured.prefix);
    union
}

/// What differs and can only change with a new start.
fn needs_restart(old: &Loaded, new: &Loaded) -> Vec<&'static str> {
    let (interface, tunnel) = (&old.config.interface, &old.config.tunnel);
    let (new_interface, new_tunnel) = (&new.config.interface, &new.config.tunnel);
    let preshared = |loaded: &Loaded| loaded.keys.preshared.as_ref().map(|key| key.to_base64());
    [
        (interface.address != new_interface.address, "interface.address"),
        (interface.name != new_interface.name, "interface.name"),
        (interface.mtu != new_interface.mtu, "interface.mtu"),
        (old.keys.private.public_key() != new.keys.private.public_key(), "the private key"),
        (tunnel.peer_public_key != new_tunnel.peer_public_key, "tunnel.peer_public_key"),
        (preshared(old) != preshared(new), "the pre-shared key"),
        (tunnel.keepalive != new_tunnel.keepalive, "tunnel.keepalive"),
    ]
    .into_iter()
    .filter_map(|(differs, what)| differs.then_some(what))
    .collect()
}

/// What is different now, a line each.
fn changes(old: &Loaded, new: &Loaded) -> Vec<String> {
    let (old_sets, new_sets): (Vec<_>, Vec<_>) =
        (old.snapshot.sets().collect(), new.snapshot.sets().collect());
    let mut changes = Vec::new();
    for set in &new_sets {
        match old_sets.iter().find(|other| other.name == set.name) {
            None => changes.push(format!("set {} is new", set.name)),
            Some(other) if other.prefixes != set.prefixes => {
                let (count, before) = (set.prefixes.len(), other.prefixes.len());
                changes.push(format!("set {} has changed ({before} prefixes before, {count} now)", set.name));
            }
            Some(_) => {}
        }
    }
    let gone = old_sets.iter().filter(|set| new_sets.iter().all(|other| other.name != set.name));
    changes.extend(gone.map(|set| format!("set {} is gone", set.name)));
    if !old.snapshot.rules().eq(new.snapshot.rules()) {
        changes.push(format!("the rules have changed ({} now)", new.snapshot.rules().count()));
    }
    if old.snapshot.unmatched() != new.snapshot.unmatched() {
        changes.push("policy.unmatched has changed".to_owned());
    }
    if old.endpoint != new.endpoint {
        changes.push(format!("the gateway is at {} now", new.endpoint));
    }
    if old.config.control.group != new.config.control.group {
        changes.push("the control group has changed".to_owned());
    }
    changes
}

fn refused(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Failure::system(format!("{what} did not take the new configuration")).because(error)
}

//! Where the gateways are, and what follows when one takes another's place. Their names are asked for on the physical side.

use std::{
    collections::BTreeSet,
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ::names::{Policy, Resolver, Settings, Transport};
use dataplane::{Failover, FailoverCause, FlowReport, GatewayEvent, Handle, TunnelReport};
use packet::protocol;
use policy::{Endpoint, Gateway, Path};
use routes::{connections, dns};
use tokio::{net::lookup_host, sync::mpsc, task::AbortHandle, time::timeout};

use super::{
    clock,
    load::{called, taken},
    lookups::Answer,
    names::Names,
    start::Running,
};
use crate::failure::{Failure, Problem};

/// Of a gateway whose name has no address yet: the IPv4 dummy address (RFC 7600 section 4.8), which leads nowhere.
pub const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), 9);
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// All addresses of each gateway, in the gateways' order: the best first, at least one.
pub async fn find(gateways: &[Gateway]) -> Vec<Result<Vec<SocketAddr>, Failure>> {
    let _answering = answer_for_the_dead(gateways).await;
    let lookups: Vec<_> =
        gateways.iter().map(|gateway| tokio::spawn(look_up(gateway.endpoint.clone()))).collect();
    let mut found = Vec::with_capacity(gateways.len());
    for (gateway, lookup) in gateways.iter().zip(lookups) {
        let addresses = lookup.await.map_err(io::Error::other).flatten();
        found.push(addresses.map_err(|error| unresolved(&gateway.endpoint, error)));
    }
    found
}

/// Takes in what a lookup has found. A gateway that answers stays where it is, whatever its name leads to now: names lie, too. One that does not is
/// looked for in turn wherever its name leads and where it answered last, and one that nobody has asked where its name leads.
pub async fn found(running: &mut Running, Answer { gateway, endpoint, addresses }: Answer) {
    // A pump that has ended says so itself.
    let Ok(tunnels) = running.pump.tunnels() else { return };
    let Some(tunnel) = tunnels.get(gateway) else { return };
    let now = tokio::time::Instant::now();
    let is_lost = is_lost(running, &tunnels, gateway);
    running.lookups.note_silent(gateway, is_lost);
    if is_lost || addresses.is_err() {
        running.lookups.want_later(gateway, now);
    }
    if is_lost {
        want_lost(running, &tunnels);
    }
    let mut addresses = addresses.unwrap_or_else(|error| {
        tracing::warn!("{}", unresolved(&endpoint, error).plain());
        Vec::new()
    });
    let known = running.loaded.endpoints.get(gateway).copied().flatten();
    let at = match tunnel.state {
        "up" | "down" if !is_lost => {
            if !running.portal.hears(tunnel) {
                running.lookups.want(gateway, now);
            }
            return;
        }
        // It may have moved by itself.
        _ if is_lost => Some(tunnel.endpoint),
        _ => known,
    };
    let before = tunnel.proven.filter(|proven| is_lost && !addresses.contains(proven));
    addresses.extend(before);
    let Some(config) = running.loaded.config.tunnel.gateways.get(gateway) else { return };
    let addresses = taken(config, addresses, &running.snapshot).unwrap_or_default();
    let Some(address) = choose(&addresses, at, is_lost) else { return };
    if known == Some(address) && at == known {
        return;
    }
    let called = called(&running.loaded.config.tunnel.gateways, gateway);
    match follow(running, gateway, address).await {
        Ok(()) => tracing::info!("{called} is at {address} now"),
        Err(failure) => {
            tracing::warn!("{called} is said to be at {address} and cannot be followed: {}", failure.plain());
        }
    }
}

/// Follows what the pump tells.
pub fn heard(running: &mut Running, event: GatewayEvent) {
    match event {
        GatewayEvent::Up(_) => running.names.iter().for_each(Names::gateway_up),
        GatewayEvent::Down(_) => went_down(running),
        GatewayEvent::FailedOver(failover) => failed_over(running, failover),
        GatewayEvent::Used(gateway) => {
            tracing::info!(gateway = running.gateway_name(gateway), "new flows go to another gateway");
        }
    }
}

/// One has stopped answering: looks for all that are lost, and for what may be in their way.
fn went_down(running: &mut Running) {
    let tunnels = running.pump.tunnels().unwrap_or_default();
    want_lost(running, &tunnels);
    running.portal.gateway_down();
}

fn want_lost(running: &mut Running, tunnels: &[TunnelReport]) {
    let now = tokio::time::Instant::now();
    for (gateway, tunnel) in tunnels.iter().enumerate() {
        if !is_lost(running, tunnels, gateway) {
            continue;
        }
        let heard = [tunnel.last_handshake, tunnel.last_received].into_iter().flatten().min();
        running.lookups.want_silent(gateway, heard.map(|ago| clock::since_boot().saturating_sub(ago)), now);
    }
}

/// Whether a gateway does not answer: those that are not used are asked only while the one that is does not, and those that have a session when
/// the network changes. Between an address and its routes there is no way to one that has answered before, which says nothing of it.
fn is_lost(running: &Running, tunnels: &[TunnelReport], gateway: usize) -> bool {
    let is_asked = tunnels.iter().any(|tunnel| tunnel.is_used && tunnel.state == "down");
    tunnels.get(gateway).is_some_and(|tunnel| match tunnel.state {
        "down" => tunnel.proven.is_none() || running.portal.has_waited(),
        "up" => !running.portal.hears(tunnel) && running.portal.has_waited(),
        _ => is_asked,
    })
}

/// Says that another gateway is used, and ends the connections of the one before: a program that only listens would wait for ever.
fn failed_over(running: &mut Running, failover: Failover) {
    let Failover { from, to, cause, cut_flows } = failover;
    tracing::warn!(
        from = running.gateway_name(from),
        to = running.gateway_name(to),
        cut_flows,
        "a gateway's flows go to another: {}",
        told(cause)
    );
    match end_cut(&running.pump) {
        Ok(ended) => tracing::info!(ended, "programs were told that their connections are gone"),
        Err(error) => tracing::warn!("connections that were cut end only when they send: {error}"),
    }
    running.lookups.want(from, tokio::time::Instant::now());
    running.failover = Some((std::time::Instant::now(), failover));
}

/// In a phrase.
pub const fn told(cause: FailoverCause) -> &'static str {
    match cause {
        FailoverCause::Silence => "nothing came back from the one before",
        FailoverCause::NoRoute => "there is no route to the one before",
    }
}

/// Ends this machine's sockets of the connections that the pump has cut. Returns how many.
fn end_cut(pump: &Handle) -> Result<usize, Box<dyn Error>> {
    let is_cut = |flow: &FlowReport| flow.tuple.protocol == protocol::TCP && flow.path == Path::Reject;
    let flows = pump.flows()?;
    let cut: BTreeSet<(SocketAddr, SocketAddr)> = flows
        .iter()
        .filter(|flow| is_cut(flow))
        .map(|flow| (flow.tuple.source, flow.tuple.destination))
        .collect();
    if cut.is_empty() {
        return Ok(0);
    }
    Ok(connections::end(|connection| cut.contains(&(connection.local, connection.remote)))?.len())
}

async fn follow(running: &mut Running, gateway: usize, endpoint: SocketAddr) -> Result<(), Failure> {
    let mut endpoints = running.loaded.endpoints.clone();
    endpoints.get_mut(gateway).into_iter().for_each(|known| *known = Some(endpoint));
    if let Err(why) = lead_to(running, &endpoints, |moved| moved == gateway).await {
        // The machine may know the way already that the pump has refused to take.
        let known = running.loaded.endpoints.clone();
        lead_to(running, &known, |_| false).await?;
        return Err(why);
    }
    running.loaded.endpoints = endpoints;
    Ok(())
}

/// Has the gateways that have moved looked for at these endpoints, and says whether there are ways there; they are tried at once. First the
/// machine, which may fail and then has changed nothing; then the pump, which may refuse an endpoint: without IPv6 in the kernel one over IPv6.
pub async fn lead_to(
    running: &mut Running,
    endpoints: &[Option<SocketAddr>],
    has_moved: impl Fn(usize) -> bool,
) -> Result<(), Failure> {
    let addresses = endpoints.iter().map(|endpoint| endpoint.map(|endpoint| endpoint.ip()));
    running.machine.set_gateways(addresses.collect()).await?;
    for (gateway, endpoint) in endpoints.iter().enumerate().filter(|(gateway, _)| has_moved(*gateway)) {
        running.pump.set_endpoint(gateway, endpoint.unwrap_or(NOWHERE)).map_err(not_moved)?;
    }
    running.pump.set_underlay(running.machine.underlay()).map_err(not_moved)?;
    Ok(())
}

/// An address where the gateway is held to be stays, whichever is named first now, unless it does not answer there.
pub fn choose(addresses: &[SocketAddr], at: Option<SocketAddr>, is_lost: bool) -> Option<SocketAddr> {
    let at = addresses.iter().position(|address| at == Some(*address));
    let next = match at {
        Some(at) if is_lost => addresses.get(at + 1),
        Some(at) => addresses.get(at),
        None => None,
    };
    next.or(addresses.first()).copied()
}

fn not_moved(error: dataplane::PumpError) -> Problem {
    Failure::system("the tunnel stays where it was").because(error)
}

/// All addresses that an endpoint has, the best first; at least one.
pub async fn look_up(endpoint: Endpoint) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = match endpoint {
        Endpoint::Address(address) => return Ok(vec![address]),
        Endpoint::Name { host, port } => (host, port),
    };
    tracing::info!(host, "resolving the gateway's name");
    let found = timeout(LOOKUP_LIMIT, lookup_host((host, port))).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", LOOKUP_LIMIT.as_secs()))
    })??;
    let addresses: Vec<_> = found.collect();
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

fn unresolved(endpoint: &Endpoint, error: io::Error) -> Failure {
    let host = endpoint.host().unwrap_or_default();
    Failure::system(format!("the gateway's name {host} cannot be resolved"))
        .because(error)
        .remedy("check the network and the name; an address in `endpoint` needs no resolving")
        .into()
}

/// Where a dead run still leads all names to its resolver: somebody there who has the gateways' names asked for as before that run, and has
/// no answer for any other.
async fn answer_for_the_dead(gateways: &[Gateway]) -> Option<Answering> {
    let hosts: Vec<String> = gateways.iter().filter_map(|gateway| gateway.endpoint.host()).collect();
    if hosts.is_empty() {
        return None;
    }
    let forward = dns::left_before().await?;
    let settings = Settings {
        listen: vec![(dns::LOOPBACK, 53).into()],
        upstreams: Vec::new(),
        from: Vec::new(),
        forward,
        ipv6: false,
    };
    let (learn, _) = mpsc::channel(1);
    // It fails where a daemon is running, which answers itself.
    let resolver = Resolver::bind(settings, Arc::new(AllBut(hosts)), learn).ok()?;
    Some(Answering(tokio::spawn(resolver.run()).abort_handle()))
}

/// Has all names but these.
struct AllBut(Vec<String>);

impl Policy for AllBut {
    fn has(&self, name: &str) -> bool {
        self.0.iter().all(|host| host != name)
    }

    fn takes(&self, _: &str, _: Transport, _: u16) -> bool {
        false
    }

    fn expects(&self, _: &str, _: IpAddr) -> bool {
        false
    }
}

struct Answering(AbortHandle);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_answers_stays_and_one_that_does_not_gives_way_to_the_next() {
        let at = |last: u8| SocketAddr::from(([198, 18, 0, last], 51820));
        for (found, known, is_lost, chosen) in [
            (&[1, 2][..], None, false, 1),
            (&[1, 2], Some(2), false, 2),
            (&[2, 1], Some(1), false, 1),
            (&[3], Some(1), false, 3),
            (&[1, 2], Some(1), true, 2),
            (&[1, 2], Some(2), true, 1),
            (&[1], Some(1), true, 1),
            (&[3, 2], Some(1), true, 3),
            // What it has now, and where it answered last.
            (&[3, 1], Some(1), true, 3),
            (&[3, 1], Some(3), true, 1),
        ] {
            let addresses: Vec<_> = found.iter().map(|last| at(*last)).collect();
            assert_eq!(choose(&addresses, known.map(at), is_lost), Some(at(chosen)), "{found:?} {known:?}");
        }
        assert_eq!(choose(&[], None, true), None);
    }
}

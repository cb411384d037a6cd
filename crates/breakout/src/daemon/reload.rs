use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use control::{Reloaded, Server};
use policy::{Captured, Fail, Snapshot, Tunnel};
use routes::Wanted;
use tokio::time::timeout;

use super::{
    first::{Before, ask_before},
    former,
    gateways::lead_to,
    learning::{self, write_before},
    load::{Loaded, called, load},
    machine::wanted,
    names::domains,
    start::Running,
};
use crate::failure::{Failure, Problem};

/// For others to lead names here. With the lookup of the gateways' names before it, less than the client waits.
const LEADING: Duration = Duration::from_secs(20);

/// Why a configuration was not taken.
#[derive(Debug)]
pub struct NotTaken {
    pub why: Failure,
    /// Why the old one is not whole any more.
    pub broken: Option<Failure>,
}

/// A configuration that is to be in force, and what the network's own DNS servers had for the names that it adds.
pub struct New {
    pub loaded: Loaded,
    pub before: Before,
}

/// Reads it. Names that it adds are asked for where applications have asked, while they can be.
pub fn read(running: &Running) -> impl Future<Output = Result<New, Failure>> + use<> {
    let (path, was) = (running.path.clone(), running.loaded.snapshot.clone());
    async move {
        let loaded = load(&path).await?;
        let before = ask_before(&loaded, Some(&was)).await;
        Ok(New { loaded, before })
    }
}

/// First the names of both policies are led to our resolver and asked through the tunnel, which may take long; nothing else has changed
/// when the answer resolves.
pub fn begin(
    running: &Running,
    New { loaded: new, before }: &New,
) -> Result<impl Future<Output = Result<(), Failure>> + use<>, Failure> {
    let fixed = needs_restart(&running.loaded, new);
    if !fixed.is_empty() {
        return Err(Failure::usage(format!("{} cannot change while the daemon runs", fixed.join(", ")))
            .remedy("`breakout down`, then `breakout up`; or put the old values back and reload")
            .into());
    }
    write_before(running, &new.snapshot, before)?;
    if let Some(names) = &running.names {
        names.begin_reload(&running.loaded, new);
    }
    let leading = running.machine.set_domains(all_domains(&running.snapshot, &new.snapshot));
    Ok(async {
        timeout(LEADING, leading).await.unwrap_or_else(|_| {
            Err(Failure::system("cannot lead other names to our resolver")
                .because(format!(
                    "systemd-resolved or resolvconf has not answered within {} s",
                    LEADING.as_secs()
                ))
                .remedy("see what it waits for, and reload again")
                .into())
        })
    })
}

/// After [`begin`], if nothing came of it.
pub fn give_up(running: &mut Running) {
    if let Some(names) = &mut running.names {
        names.give_up_reload(&running.loaded);
    }
    lead(running, &running.snapshot);
}

/// After [`begin`]: swaps the new configuration in, or keeps the old one whole.
pub async fn finish(
    running: &mut Running,
    server: &Server,
    New { loaded: mut new, before }: New,
) -> Result<Reloaded, NotTaken> {
    let former = former::keep(running, &mut new);
    // What was learned meanwhile was written down without it.
    let addresses = match write_before(running, &new.snapshot, &before) {
        Ok(addresses) => addresses.under(&new.snapshot),
        Err(failure) => {
            give_up(running);
            return Err(failure.into());
        }
    };
    let snapshot = Arc::new(new.snapshot.with_learned(&addresses.learned()));
    new.choose_endpoints(&running.loaded.endpoints, &snapshot);
    let mut changes = changes(&running.loaded, &new);
    changes.extend(former::told(&former));
    let old_access = server.access();
    let swapped = match server.set_access(new.access) {
        Ok(()) => swap(running, &new, &snapshot).await,
        Err(error) => Err(Failure::from(not_taken(error)).into()),
    };
    let cut_flows = match swapped {
        Ok(cut_flows) => cut_flows,
        Err(mut refused) => {
            give_up(running);
            if let Err(error) = server.set_access(old_access) {
                refused.broken.get_or_insert(not_taken(error).into());
            }
            return Err(refused);
        }
    };

    let warnings = new.warnings.clone();
    let held = running.names.as_mut().map_or_else(Vec::new, |names| names.finish_reload(&new));
    running.lookups.set_gateways(&new.config.tunnel.gateways);
    let now = tokio::time::Instant::now();
    new.not_found().for_each(|gateway| running.lookups.want_later(gateway, now));
    if running.loaded.config.network.portal_check != new.config.network.portal_check {
        running.portal.ask_anew();
    }
    lead(running, &snapshot);
    (running.loaded, running.snapshot) = (new, snapshot);
    learning::keep(running, addresses);
    former::begin(running, former);
    for found in held {
        learning::learn(running, found).await;
    }
    tracing::info!(?changes, cut_flows, "reloaded");
    Ok(Reloaded { changes, cut_flows, warnings })
}

/// Has a policy's names alone led to our resolver. Nobody waits for it: what else comes there is handed on.
fn lead(running: &Running, snapshot: &Snapshot) {
    drop(running.machine.set_domains(domains(snapshot)));
}

/// Takes all of the new configuration, or goes back to the old one.
async fn swap(running: &mut Running, new: &Loaded, snapshot: &Arc<Snapshot>) -> Result<usize, NotTaken> {
    match take(running, new, snapshot).await {
        Ok(cut_flows) => Ok(cut_flows),
        Err(why) => Err(NotTaken { why, broken: go_back(running, new).await.err() }),
    }
}

/// First the routes of both policies, so that nothing which either policy tunnels can leave directly; then the gateway, which the machine
/// may be unable to reach; then the policy; then the routes of the new one alone.
async fn take(running: &mut Running, new: &Loaded, snapshot: &Arc<Snapshot>) -> Result<usize, Failure> {
    let (was, is) = (wanted(&running.loaded, &running.snapshot), wanted(new, snapshot));
    running.machine.want(&both(&was, &is)).await?;
    // A peer that roamed and fell silent may be found where the configuration says.
    let lost = running.pump.tunnels().map_err(not_taken)?.into_iter().map(|tunnel| tunnel.state == "down");
    let moved = new.endpoints.iter().zip(&running.loaded.endpoints).map(|(is, was)| is != was);
    let moved: Vec<_> = moved.zip(lost).map(|(has_moved, is_lost)| has_moved || is_lost).collect();
    set_gateways(running, &new.endpoints, &moved).await?;
    let cut_flows = running.pump.swap(snapshot.clone()).map_err(not_taken)?;
    running.machine.want(&is).await?;
    running.machine.end_old_connections(new, snapshot);
    Ok(cut_flows)
}

/// The old policy before its routes alone, for the same reason. Where a step had not been taken, nothing changes.
async fn go_back(running: &mut Running, new: &Loaded) -> Result<(), Failure> {
    let old = &running.loaded;
    let (endpoints, snapshot) = (old.endpoints.clone(), running.snapshot.clone());
    let wanted = wanted(old, &snapshot);
    running.pump.swap(snapshot.clone()).map_err(not_taken)?;
    running.machine.want(&wanted).await?;
    let moved: Vec<_> = new.endpoints.iter().zip(&endpoints).map(|(is, was)| is != was).collect();
    set_gateways(running, &endpoints, &moved).await
}

/// Has the gateways that have `moved` looked for at these endpoints.
async fn set_gateways(
    running: &mut Running,
    endpoints: &[Option<SocketAddr>],
    moved: &[bool],
) -> Result<(), Failure> {
    if !moved.contains(&true) {
        return Ok(());
    }
    lead_to(running, endpoints, |gateway| moved.get(gateway) == Some(&true)).await
}

/// What either of two policies wants.
fn both(was: &Wanted, is: &Wanted) -> Wanted {
    let kept = [&was.kill_switch, &is.kill_switch].into_iter().flatten();
    Wanted {
        captured: all_of(&was.captured, &is.captured),
        learned: [was.learned.clone(), is.learned.clone()].concat(),
        kill_switch: kept.cloned().reduce(|was, is| [was, is].concat()),
    }
}

fn all_domains(was: &Snapshot, is: &Snapshot) -> Vec<String> {
    let mut union = [domains(was), domains(is)].concat();
    union.sort();
    union.dedup();
    union
}

/// All prefixes of two policies; one that fails closed in either fails closed.
fn all_of(was: &[Captured], is: &[Captured]) -> Vec<Captured> {
    let mut union: Vec<Captured> = was.iter().chain(is).copied().collect();
    union.sort_by_key(|captured| (captured.prefix, captured.fail == Fail::Direct));
    union.dedup_by_key(|captured| captured.prefix);
    union
}

/// What differs and can only change with a new start.
fn needs_restart(old: &Loaded, new: &Loaded) -> Vec<&'static str> {
    let (interface, tunnel) = (&old.config.interface, &old.config.tunnel);
    let (new_interface, new_tunnel) = (&new.config.interface, &new.config.tunnel);
    let preshared = |loaded: &Loaded| -> Vec<_> {
        loaded.keys.preshared.iter().map(|key| key.as_ref().map(|key| key.to_base64())).collect()
    };
    let public =
        |tunnel: &Tunnel| -> Vec<_> { tunnel.gateways.iter().map(|gateway| gateway.public_key).collect() };
    [
        (interface.address != new_interface.address, "interface.address"),
        (interface.name != new_interface.name, "interface.name"),
        (interface.mtu != new_interface.mtu, "interface.mtu"),
        (old.keys.private.public_key() != new.keys.private.public_key(), "the private key"),
        (public(tunnel) != public(new_tunnel), "the gateways' number, order or public keys"),
        (preshared(old) != preshared(new), "a pre-shared key"),
        (tunnel.prefer != new_tunnel.prefer, "tunnel.prefer"),
        (tunnel.keepalive != new_tunnel.keepalive, "tunnel.keepalive"),
        (tunnel.dns != new_tunnel.dns, "tunnel.dns"),
        (old.config.dataplane != new.config.dataplane, "[dataplane]"),
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
            Some(other) => {
                let counts = [
                    (other.prefixes != set.prefixes, "prefixes", other.prefixes.len(), set.prefixes.len()),
                    (other.domains != set.domains, "domains", other.domains.len(), set.domains.len()),
                ];
                let different = counts.into_iter().filter(|(differ, ..)| *differ);
                changes.extend(different.map(|(_, what, before, now)| {
                    format!("set {} has changed ({what}: {before} before, {now} now)", set.name)
                }));
            }
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
    for (at, (was, is)) in old.endpoints.iter().zip(&new.endpoints).enumerate() {
        let called = called(&new.config.tunnel.gateways, at);
        match is {
            Some(endpoint) if was != is => changes.push(format!("{called} is at {endpoint} now")),
            None => {
                changes.push(format!("{called} has no address yet: its name has no answer that can be taken"))
            }
            Some(_) => {}
        }
    }
    let (was, is) = (&old.config.tunnel.gateways, &new.config.tunnel.gateways);
    for (at, (was, is)) in was.iter().zip(is).enumerate() {
        if was.name != is.name && (was.endpoint == is.endpoint || was.name != was.endpoint.to_string()) {
            changes.push(format!("the gateway {} is called {} now", was.name, is.name));
        }
        if was.endpoint != is.endpoint && old.endpoints.get(at) == new.endpoints.get(at) {
            changes.push(format!(
                "{} is looked for at {} now",
                called(&new.config.tunnel.gateways, at),
                is.endpoint
            ));
        }
    }
    if old.config.network.portal_check != new.config.network.portal_check {
        let looked = if new.config.network.portal_check.is_some() { "elsewhere now" } else { "no more" };
        changes.push(format!("captive portals are looked for {looked}"));
    }
    if old.config.routes != new.config.routes {
        let state = if new.config.routes.kill_switch { "on" } else { "off" };
        changes.push(format!("the kill switch is {state} now"));
    }
    if old.config.control.group != new.config.control.group {
        changes.push("the control group has changed".to_owned());
    }
    changes
}

fn not_taken(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Failure::system("the new configuration was not taken").because(error)
}

impl From<Failure> for NotTaken {
    fn from(why: Failure) -> Self {
        Self { why, broken: None }
    }
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.why.plain();
        match &self.broken {
            None => write!(f, "the configuration was not taken, the old one is whole: {why}"),
            Some(broken) => write!(
                f,
                "the configuration was not taken: {why}; and the old one could not be put back whole: {}; what either leads into the \
                 tunnel goes there or is refused until the next reload, or `breakout down` and `up`",
                broken.plain()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::load::load, *};

    const CONFIG: &str = r#"
[interface]
address = ["10.99.0.1/32"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "198.18.0.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
"#;
    const KEY: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const OTHER_KEY: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";

    fn loaded(config: &str, key: &str) -> Loaded {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.toml");
        fs::write(&file, config).unwrap();
        crate::key_file::create(&directory.path().join("agent.key"), key).unwrap();
        crate::key_file::create(&directory.path().join("agent.psk"), key).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(load(&file)).unwrap_or_else(|failure| panic!("{}", failure.plain()))
    }

    #[test]
    fn what_holds_the_tunnel_needs_a_new_start() {
        let old = loaded(CONFIG, KEY);
        assert!(needs_restart(&old, &loaded(CONFIG, KEY)).is_empty());
        for (from, to, what) in [
            ("10.99.0.1/32", "10.99.0.2/32", "interface.address"),
            ("[tunnel]", "name = \"tun7\"\n[tunnel]", "interface.name"),
            ("[tunnel]", "mtu = 1300\n[tunnel]", "interface.mtu"),
            (
                "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
                OTHER_KEY,
                "the gateways' number, order or public keys",
            ),
            ("endpoint", "preshared_key_file = \"agent.psk\"\nendpoint", "a pre-shared key"),
            ("endpoint", "keepalive = 25\nendpoint", "tunnel.keepalive"),
            ("endpoint", "dns = [\"10.99.0.53\"]\nendpoint", "tunnel.dns"),
        ] {
            assert_eq!(needs_restart(&old, &loaded(&CONFIG.replacen(from, to, 1), KEY)), [what]);
        }
        assert_eq!(needs_restart(&old, &loaded(CONFIG, OTHER_KEY)), ["the private key"]);
    }

    #[test]
    fn the_policy_and_the_endpoint_change_at_once_and_are_told() {
        let config = CONFIG.replace("[sets", "dns = [\"10.99.0.53\"]\n[sets");
        let old = loaded(&config, KEY);
        assert!(changes(&old, &loaded(&config, KEY)).is_empty());
        for (from, to, told) in [
            (
                "[\"203.0.113.0/24\"]",
                "[\"203.0.113.0/25\"]",
                "set genesys-signaling has changed (prefixes: 1 before, 1 now)",
            ),
            (
                "[\"203.0.113.0/24\"]",
                "[\"203.0.113.0/24\"]\ndomains = [\"mypurecloud.de\", \"usw2.pure.cloud\"]",
                "set genesys-signaling has changed (domains: 0 before, 2 now)",
            ),
            ("[sets", "[policy]\nunmatched = \"tunnel\"\n[sets", "policy.unmatched has changed"),
            ("198.18.0.2:51820", "198.18.0.3:51820", "the gateway is at 198.18.0.3:51820 now"),
            ("[sets", "[network]\nportal_check = \"\"\n[sets", "captive portals are looked for no more"),
            ("[sets", "[routes]\nkill_switch = true\n[sets", "the kill switch is on now"),
            ("[sets", "[control]\ngroup = \"root\"\n[sets", "the control group has changed"),
        ] {
            let new = loaded(&config.replacen(from, to, 1), KEY);
            assert!(needs_restart(&old, &new).is_empty(), "{told}");
            assert_eq!(changes(&old, &new), [told]);
        }
    }

    const SEVERAL: &str = r#"
[interface]
address = ["10.99.0.1/32"]
[tunnel]
private_key_file = "agent.key"
[[gateways]]
name = "frankfurt"
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "198.18.0.2:51820"
[[gateways]]
name = "paris"
public_key = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os="
endpoint = "198.18.1.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
"#;

    #[test]
    fn gateways_may_move_and_nothing_else() {
        let old = loaded(SEVERAL, KEY);
        let moved = loaded(&SEVERAL.replace("198.18.1.2", "198.18.1.3"), KEY);
        assert!(needs_restart(&old, &moved).is_empty());
        assert_eq!(changes(&old, &moved), ["the gateway paris is at 198.18.1.3:51820 now"]);
        let renamed = loaded(&SEVERAL.replace("paris", "lyon"), KEY);
        assert_eq!(changes(&old, &renamed), ["the gateway paris is called lyon now"]);
        let mut by_name = loaded(SEVERAL, KEY);
        by_name.config.tunnel.gateways[1].endpoint =
            policy::Endpoint::Name { host: "vpn.example".to_owned(), port: 51820 };
        assert_eq!(changes(&old, &by_name), ["the gateway paris is looked for at vpn.example:51820 now"]);
        assert_eq!(
            needs_restart(&old, &loaded(CONFIG, KEY))[0],
            "the gateways' number, order or public keys"
        );
        let own_key = SEVERAL.replacen("name", "preshared_key_file = \"agent.psk\"\nname", 1);
        assert_eq!(needs_restart(&old, &loaded(&own_key, KEY)), ["a pre-shared key"]);
        let by_time = SEVERAL.replacen("[[g", "prefer = \"round-trip\"\n[[g", 1);
        assert_eq!(needs_restart(&old, &loaded(&by_time, KEY)), ["tunnel.prefer"]);
    }

    #[test]
    fn a_gateway_stays_where_its_name_still_has_it_or_has_no_answer() {
        let at = |last: u8| std::net::SocketAddr::from(([198, 18, 0, last], 51820));
        let mut new = loaded(CONFIG, KEY);
        new.config.tunnel.gateways[0].endpoint =
            policy::Endpoint::Name { host: "vpn.invalid".to_owned(), port: 51820 };
        let snapshot = new.snapshot.clone();
        let captured = std::net::SocketAddr::from(([203, 0, 113, 9], 51820));
        let silent = || Err(Failure::system("no answer").into());
        for (found, known, chosen) in [
            (Ok(vec![at(3), at(2)]), Some(at(2)), Some(at(2))),
            (Ok(vec![at(3), at(4)]), Some(at(2)), Some(at(3))),
            (Ok(vec![captured, at(4)]), None, Some(at(4))),
            (Ok(vec![captured]), Some(at(2)), Some(at(2))),
            (silent(), Some(at(2)), Some(at(2))),
            (silent(), Some(captured), None),
            (silent(), None, None),
            (Ok(vec![captured]), None, None),
        ] {
            new.found = vec![found];
            new.choose_endpoints(&[known], &snapshot);
            assert_eq!(new.endpoints, [chosen]);
        }
    }

    #[test]
    fn during_a_reload_a_prefix_that_fails_closed_in_either_policy_does() {
        let captured = |prefix: &str, fail| Captured { prefix: prefix.parse().unwrap(), fail };
        let was = [captured("192.0.2.0/24", Fail::Closed), captured("198.51.100.0/24", Fail::Direct)];
        let is = [captured("192.0.2.0/24", Fail::Direct), captured("203.0.113.0/24", Fail::Direct)];
        assert_eq!(
            all_of(&was, &is),
            [
                captured("192.0.2.0/24", Fail::Closed),
                captured("198.51.100.0/24", Fail::Direct),
                captured("203.0.113.0/24", Fail::Direct),
            ]
        );
    }
}

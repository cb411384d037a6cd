use std::{
    iter, mem,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use control::Access;
use policy::{Config, Endpoint, Gateway, Snapshot};

use super::gateways::{self, choose};
use crate::{
    configuration::{self, Keys, Policy},
    failure::Failure,
};

/// A configuration with all that it names.
pub struct Loaded {
    pub config: Config,
    pub snapshot: Arc<Snapshot>,
    pub keys: Keys,
    /// All addresses of each gateway, in the configuration's order, the best first. After [`Loaded::choose_endpoints`] those that it can have.
    pub found: Vec<Result<Vec<SocketAddr>, Failure>>,
    /// Of each gateway; `None`: its name has no address yet.
    pub endpoints: Vec<Option<SocketAddr>>,
    pub access: Access,
    pub warnings: Vec<String>,
}

/// An address that a gateway's name has led to, and is not taken.
#[derive(Debug, thiserror::Error)]
#[error(
    "{host} leads to {address}, which the policy's names or former prefixes have: whoever lies about the gateway must not open those"
)]
pub struct Doubtful {
    host: String,
    address: IpAddr,
}

/// Reads, checks and compiles a configuration, reads its keys, and resolves its names.
pub async fn load(path: &Path) -> Result<Loaded, Failure> {
    let Policy { config, snapshot, warnings } = configuration::read_policy(path)?;
    let keys = configuration::read_keys(&config, path)?;
    let access = Access::for_group(config.control.group.as_deref()).map_err(|error| {
        Failure::usage("the control socket cannot be opened to a group")
            .because(error)
            .remedy("make the group, or correct `group` under [control]")
    })?;
    for gateway in &config.tunnel.gateways {
        refuse_if_captured(&gateway.endpoint, &snapshot)?;
    }
    let found = gateways::find(&config.tunnel.gateways).await;
    let endpoints = found.iter().map(|found| found.as_ref().ok()?.first().copied()).collect();
    let warnings = warnings.iter().map(|warning| format!("{warning:#}")).collect();
    Ok(Loaded { config, snapshot: Arc::new(snapshot), keys, found, endpoints, access, warnings })
}

impl Loaded {
    /// Decides where each gateway is: where it is `known` to be, while its name still has that address or none; else where it was found. Takes
    /// no name to lead where `policy`, with what was learned, has signaling. A name without an address keeps nothing from going on: what is
    /// not up does not keep signaling closed, and a network may have no answers yet.
    pub fn choose_endpoints(&mut self, known: &[Option<SocketAddr>], policy: &Snapshot) {
        let known = known.iter().copied().chain(iter::repeat(None));
        let each = self.config.tunnel.gateways.iter().zip(&mut self.found).zip(&mut self.endpoints);
        for (((gateway, found), endpoint), known) in each.zip(known) {
            let known = known.filter(|known| doubt_name(gateway, *known, policy).is_ok());
            let all = mem::replace(found, Ok(Vec::new()));
            match all.and_then(|all| taken(gateway, all, policy).map_err(no_address)) {
                Ok(taken) => {
                    *endpoint = choose(&taken, known, false);
                    *found = Ok(taken);
                }
                Err(failure) => {
                    *endpoint = known;
                    tracing::warn!("{}; it is tried again", failure.plain());
                }
            }
        }
    }

    /// Gateways without an address that was found now.
    pub fn not_found(&self) -> impl Iterator<Item = usize> {
        let found = self.found.iter().map(|found| found.as_ref().is_ok_and(|found| !found.is_empty()));
        found.enumerate().filter(|(_, is_found)| !is_found).map(|(gateway, _)| gateway)
    }

    /// The gateways' addresses, as far as they are known.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.endpoints.iter().flatten().map(SocketAddr::ip).collect()
    }

    /// The gateways' endpoints in one line.
    pub fn shown_endpoints(&self) -> String {
        let shown = |endpoint: &Option<SocketAddr>| {
            endpoint.map_or_else(|| "not known yet".to_owned(), |endpoint| endpoint.to_string())
        };
        self.endpoints.iter().map(shown).collect::<Vec<_>>().join(", ")
    }
}

/// For people, about one of several gateways: `the gateway`, or which.
pub fn called(gateways: &[Gateway], at: usize) -> String {
    match gateways.get(at) {
        Some(gateway) if gateways.len() > 1 => format!("the gateway {}", gateway.name),
        _ => "the gateway".to_owned(),
    }
}

/// The addresses that a gateway can have. An error if none is left.
pub fn taken(
    gateway: &Gateway,
    mut addresses: Vec<SocketAddr>,
    policy: &Snapshot,
) -> Result<Vec<SocketAddr>, Doubtful> {
    let mut doubtful = None;
    addresses.retain(|address| match doubt_name(gateway, *address, policy) {
        Ok(()) => true,
        Err(doubt) => {
            tracing::warn!("the gateway's address is not taken: {doubt}");
            doubtful = Some(doubt);
            false
        }
    });
    doubtful.filter(|_| addresses.is_empty()).map_or(Ok(addresses), Err)
}

/// What a name leads to is judged with it, for it is not the configuration's fault.
fn refuse_if_captured(endpoint: &Endpoint, snapshot: &Snapshot) -> Result<(), Failure> {
    let Endpoint::Address(address) = endpoint else { return Ok(()) };
    let Some(captured) = snapshot.captured().iter().find(|captured| captured.prefix.contains(&address.ip()))
    else {
        return Ok(());
    };
    Err(Failure::usage(format!(
        "the gateway {address} is inside {}, which is routed into the tunnel",
        captured.prefix
    ))
    .remedy("the tunnel cannot run inside itself: take the gateway's address out of the sets")
    .into())
}

fn no_address(doubt: Doubtful) -> Failure {
    Failure::system("a gateway has no address that can be taken")
        .because(doubt)
        .remedy("see what the network's DNS server says of the name, or give `endpoint` an address")
        .into()
}

/// A gateway's name is asked for in the clear, so its answer is anybody's. An address in the configuration is beyond doubt.
fn doubt_name(gateway: &Gateway, address: SocketAddr, policy: &Snapshot) -> Result<(), Doubtful> {
    let Some(host) = gateway.endpoint.host() else { return Ok(()) };
    let address = address.ip();
    let is_captured = policy.captured().iter().any(|captured| captured.prefix.contains(&address));
    let is_learned = policy.learned().iter().any(|learned| learned.addresses.binary_search(&address).is_ok());
    if is_captured || is_learned { Err(Doubtful { host, address }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use policy::{Endpoint, Learned, PublicKey};

    use super::*;

    const CONFIG: &str = r#"
[interface]
address = "10.99.0.1/32"
[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "198.18.0.2:51820"
dns = ["10.99.0.53"]
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
domains = ["one.example"]
"#;

    #[test]
    fn a_name_does_not_lead_to_signaling_and_an_address_is_beyond_doubt() {
        let (config, _) = Config::parse(CONFIG, "test").unwrap();
        let address = "198.51.100.7".parse().unwrap();
        let learned = Learned { address, set: "genesys-signaling".to_owned() };
        let policy = Snapshot::compile(&config).with_learned(&[learned]);
        let name = Endpoint::Name { host: "vpn.example".to_owned(), port: 51820 };
        for (address, is_taken) in [
            ("198.51.100.7:51820", false),
            ("203.0.113.9:51820", false),
            ("198.51.100.8:51820", true),
            ("198.18.0.2:51820", true),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            for (endpoint, is_taken) in [(name.clone(), is_taken), (Endpoint::Address(address), true)] {
                let (name, public_key) = ("gateway".to_owned(), PublicKey([1; 32]));
                let gateway = Gateway { name, public_key, preshared_key_file: None, endpoint };
                assert_eq!(doubt_name(&gateway, address, &policy).is_ok(), is_taken, "{gateway:?} {address}");
            }
        }
    }
}

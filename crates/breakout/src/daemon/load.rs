use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use control::Access;
use policy::{Config, Gateway, Snapshot};

use super::gateways;
use crate::{
    configuration::{self, Keys, Policy},
    failure::Failure,
};

/// A configuration with all that it names.
pub struct Loaded {
    pub config: Config,
    pub snapshot: Arc<Snapshot>,
    pub keys: Keys,
    /// Of each gateway, in the configuration's order; `None`: its name has no address yet. At least one is known.
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
    let endpoints = gateways::find(&config.tunnel.gateways).await?;
    for (gateway, endpoint) in config.tunnel.gateways.iter().zip(&endpoints) {
        endpoint.map_or(Ok(()), |endpoint| refuse_if_captured(gateway, endpoint, &snapshot))?;
    }
    let warnings = warnings.iter().map(|warning| format!("{warning:#}")).collect();
    Ok(Loaded { config, snapshot: Arc::new(snapshot), keys, endpoints, access, warnings })
}

impl Loaded {
    /// Takes no gateway's name to be where `policy`, with what was learned, has signaling: that gateway has no address then. An error if that
    /// leaves none.
    pub fn doubt_names(&mut self, policy: &Snapshot) -> Result<(), Failure> {
        let mut doubtful = None;
        for (gateway, endpoint) in self.config.tunnel.gateways.iter().zip(&mut self.endpoints) {
            let Some(address) = *endpoint else { continue };
            if let Err(doubt) = doubt_name(gateway, address, policy) {
                tracing::warn!("the gateway's address is not taken: {doubt}");
                doubtful = Some(doubt);
                *endpoint = None;
            }
        }
        match doubtful {
            Some(doubt) if self.endpoints.iter().all(Option::is_none) => {
                Err(Failure::system("no gateway has an address that can be taken")
                    .because(doubt)
                    .remedy(
                        "see what the network's DNS server says of the name, or give `endpoint` an address",
                    )
                    .into())
            }
            _ => Ok(()),
        }
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

/// The configuration's check sees addresses only; a name may resolve to anything.
pub fn refuse_if_captured(
    gateway: &Gateway,
    address: SocketAddr,
    snapshot: &Snapshot,
) -> Result<(), Failure> {
    let Some(captured) = snapshot.captured().iter().find(|captured| captured.prefix.contains(&address.ip()))
    else {
        return Ok(());
    };
    let shown = match gateway.endpoint.host() {
        None => address.to_string(),
        Some(host) => format!("{host} ({address})"),
    };
    Err(Failure::usage(format!(
        "the gateway {shown} is inside {}, which is routed into the tunnel",
        captured.prefix
    ))
    .remedy("the tunnel cannot run inside itself: take the gateway's address out of the sets")
    .into())
}

/// A gateway's name is asked for in the clear, so its answer is anybody's. An address in the configuration is beyond doubt.
pub fn doubt_name(gateway: &Gateway, address: SocketAddr, policy: &Snapshot) -> Result<(), Doubtful> {
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

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use control::Access;
use names::{Resolver, Settings};
use policy::{Config, Endpoint, Snapshot};
use routes::dns;
use tokio::{net::lookup_host, sync::mpsc, task::AbortHandle, time::timeout};

use crate::{
    configuration::{self, Keys, Policy},
    failure::Failure,
};

const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// A configuration with all that it names.
pub struct Loaded {
    pub config: Config,
    pub snapshot: Arc<Snapshot>,
    pub keys: Keys,
    pub endpoint: SocketAddr,
    pub access: Access,
    pub warnings: Vec<String>,
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
    let endpoint = resolve(&config.tunnel.endpoint).await?;
    refuse_if_captured(&config.tunnel.endpoint, endpoint, &snapshot)?;
    let warnings = warnings.iter().map(|warning| format!("{warning:#}")).collect();
    Ok(Loaded { config, snapshot: Arc::new(snapshot), keys, endpoint, access, warnings })
}

async fn resolve(endpoint: &Endpoint) -> Result<SocketAddr, Failure> {
    let (host, port) = match endpoint {
        Endpoint::Address(address) => return Ok(*address),
        Endpoint::Name { host, port } => (host.as_str(), *port),
    };
    let failed = || Failure::system(format!("the gateway's name {host} cannot be resolved"));
    let remedy = "check the network and the name; an address in `endpoint` needs no resolving";
    tracing::info!(host, "resolving the gateway's name");
    let _answering = answer_for_the_dead(host).await;
    let mut found = timeout(LOOKUP_LIMIT, lookup_host((host, port)))
        .await
        .map_err(|_| {
            failed().because(format!("no answer within {} s", LOOKUP_LIMIT.as_secs())).remedy(remedy)
        })?
        .map_err(|error| failed().because(error).remedy(remedy))?;
    Ok(found.next().ok_or_else(|| failed().because("the name has no address").remedy(remedy))?)
}

/// Where a dead run still leads all names to its resolver: somebody there who has the gateway's name asked for as before that run, and has
/// no answer for any other.
async fn answer_for_the_dead(gateway: &str) -> Option<Answering> {
    let forward = dns::left_before().await?;
    let settings = Settings {
        listen: vec![(dns::LOOPBACK, 53).into()],
        upstreams: Vec::new(),
        from: Vec::new(),
        forward,
        ipv6: false,
    };
    let gateway = gateway.trim_end_matches('.').to_ascii_lowercase();
    let (learn, _) = mpsc::channel(1);
    // It fails where a daemon is running, which answers itself.
    let resolver = Resolver::bind(settings, move |name| name != gateway, learn).ok()?;
    Some(Answering(tokio::spawn(resolver.run()).abort_handle()))
}

struct Answering(AbortHandle);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The configuration's check sees addresses only; a name may resolve to anything.
fn refuse_if_captured(endpoint: &Endpoint, address: SocketAddr, snapshot: &Snapshot) -> Result<(), Failure> {
    let Some(captured) = snapshot.captured().iter().find(|captured| captured.prefix.contains(&address.ip()))
    else {
        return Ok(());
    };
    let shown = match endpoint {
        Endpoint::Address(address) => address.to_string(),
        Endpoint::Name { host, .. } => format!("{host} ({address})"),
    };
    Err(Failure::usage(format!(
        "the gateway {shown} is inside {}, which is routed into the tunnel",
        captured.prefix
    ))
    .remedy("the tunnel cannot run inside itself: take the gateway's address out of the sets")
    .into())
}

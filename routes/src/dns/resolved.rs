//! systemd-resolved over D-Bus (org.freedesktop.resolve1(5)): the names of the policy, and they only, are asked at our resolver.
//! It forgets a link's settings with the link.

use std::{
    fmt::Display, fs, future::Future, io, mem, net::IpAddr, os::unix::fs::MetadataExt, process,
    time::Duration,
};

use futures::StreamExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zbus::{
    Connection,
    fdo::{DBusProxy, NameOwnerChangedStream, PeerProxy, PropertiesChangedStream, PropertiesProxy},
    names::BusName,
    proxy,
    proxy::CacheProperties,
    zvariant::OwnedObjectPath,
};

use crate::crash_point;

const SERVICE: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
/// It answers at once or hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// When the bus is gone or one of both hangs, it is tried as often as this whether they answer again.
const RETRY: Duration = Duration::from_secs(5);
/// It hears of links from the kernel, by and by: of ours, which is new, some time after it is there.
const HEARD: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);
const NO_SUCH_LINK: &str = "org.freedesktop.resolve1.NoSuchLink";
/// `SD_RESOLVED_DNS` (systemd's resolved-def.h): the link's servers are asked.
const SCOPE_DNS: u64 = 1;

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1",
    gen_blocking = false
)]
trait Manager {
    fn get_link(&self, index: i32) -> zbus::Result<OwnedObjectPath>;
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, index: i32, servers: &[Server]) -> zbus::Result<()>;
    fn set_link_domains(&self, index: i32, domains: &[Domain]) -> zbus::Result<()>;
    fn set_link_default_route(&self, index: i32, is_default: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, index: i32, mode: &str) -> zbus::Result<()>;
    fn revert_link(&self, index: i32) -> zbus::Result<()>;
    fn flush_caches(&self) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.resolve1.Link",
    default_service = "org.freedesktop.resolve1",
    gen_blocking = false
)]
trait Link {
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> zbus::Result<Vec<Server>>;
    #[zbus(property)]
    fn domains(&self) -> zbus::Result<Vec<Domain>>;
    #[zbus(property)]
    fn default_route(&self) -> zbus::Result<bool>;
    #[zbus(property)]
    fn scopes_mask(&self) -> zbus::Result<u64>;
}

/// Address family (`AF_INET`, `AF_INET6`) and the address's bytes.
type Server = (i32, Vec<u8>);
/// A name, and whether it is for routing queries only, not for completing names.
type Domain = (String, bool);

/// What there is of it on the bus. Nobody waits for what has hung once until [`Resolved::changed`] has found that it answers again.
#[derive(Debug)]
pub struct Resolved {
    /// Or why there is no way to it.
    bus: Result<Bus, String>,
    retry: Instant,
}

/// Where it is reached when it runs.
#[derive(Debug)]
struct Bus {
    connection: Connection,
    names: DBusProxy<'static>,
    manager: ManagerProxy<'static>,
    owners: NameOwnerChangedStream,
    settings: PropertiesChangedStream,
    is_told: bool,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("it did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("{0}")]
    Refused(String),
}

impl Resolved {
    pub async fn connect() -> Self {
        let bus = Bus::connect().await.map_err(|failure| failure.to_string());
        Self { bus, retry: Instant::now() + RETRY }
    }

    /// Whether it runs, and knows links by the same numbers; or why not. Does not have the bus start it.
    pub async fn is_here(&mut self) -> Result<(), String> {
        let is_here = self.bus()?.is_here().await;
        self.give_up_if_silent(is_here)
    }

    /// Makes `server` the one to ask for `domains` and all below them, and for nothing else. Whether it was not so before.
    pub async fn tell(&mut self, index: u32, server: IpAddr, domains: &[String]) -> Result<bool, String> {
        let told = self.bus()?.tell(index, server, domains).await;
        self.give_up_if_silent(told)
    }

    /// Takes back what it was told of a link, and has it forget what it was answered.
    pub async fn revert(&mut self, index: u32) -> Result<(), String> {
        let reverted = self.bus()?.revert(index).await;
        self.give_up_if_silent(reverted)
    }

    /// Resolves when it or the bus has come or gone, or when it may have other settings than it was told. Safe to drop in between.
    pub async fn changed(&mut self) {
        if let Ok(bus) = &mut self.bus {
            if bus.changed().await.is_none() {
                self.give_up("the bus has gone".to_owned());
            }
            return;
        }
        loop {
            sleep_until(self.retry).await;
            self.retry = Instant::now() + RETRY;
            if let Ok(bus) = Bus::connect().await
                && bus.answers().await
            {
                self.bus = Ok(bus);
                return;
            }
        }
    }

    fn bus(&mut self) -> Result<&mut Bus, String> {
        self.bus.as_mut().map_err(|why| why.clone())
    }

    fn give_up_if_silent<T>(&mut self, answer: Result<T, Failure>) -> Result<T, String> {
        answer.map_err(|failure| {
            if matches!(failure, Failure::Silent) {
                self.give_up(failure.to_string());
            }
            failure.to_string()
        })
    }

    fn give_up(&mut self, why: String) {
        self.bus = Err(why);
        self.retry = Instant::now() + RETRY;
    }
}

impl Bus {
    async fn connect() -> Result<Self, Failure> {
        let connection = answered(Connection::system()).await?;
        let names = answered(DBusProxy::new(&connection)).await?;
        let owners = answered(names.receive_name_owner_changed_with_args(&[(0, SERVICE)])).await?;
        let manager = answered(ManagerProxy::new(&connection)).await?;
        let settings = answered(settings(&connection)).await?;
        Ok(Self { connection, names, manager, owners, settings, is_told: false })
    }

    async fn is_here(&self) -> Result<(), Failure> {
        let refused = |why: &str| Err(Failure::Refused(why.to_owned()));
        let service = BusName::from_static_str(SERVICE).map_err(refusal)?;
        if !answered(self.names.name_has_owner(service.clone())).await? {
            return refused("it does not run");
        }
        let Some(us) = self.connection.unique_name() else { return refused("the bus has no name for us") };
        if answered(self.names.get_connection_unix_process_id(us.clone().into())).await? != process::id() {
            return refused("the bus is in another PID namespace: its links may be others");
        }
        let its = answered(self.names.get_connection_unix_process_id(service)).await?;
        match network(&its.to_string()).and_then(|its| Ok(its == network("thread-self")?)) {
            Ok(true) => Ok(()),
            Ok(false) => refused("it is in another network namespace"),
            Err(error) => refused(&format!("its network namespace cannot be told: {error}")),
        }
    }

    /// Whether it does, where it is here, and the bus in any case.
    async fn answers(&self) -> bool {
        let answer = match self.is_here().await {
            Ok(()) => answered(ping(&self.connection)).await,
            not_here => not_here,
        };
        !matches!(answer, Err(Failure::Silent))
    }

    async fn tell(&mut self, index: u32, server: IpAddr, domains: &[String]) -> Result<bool, Failure> {
        let was_told = mem::take(&mut self.is_told);
        let index = link_number(index)?;
        let servers = [match server {
            IpAddr::V4(server) => (libc::AF_INET, server.octets().to_vec()),
            IpAddr::V6(server) => (libc::AF_INET6, server.octets().to_vec()),
        }];
        let domains: Vec<Domain> = domains.iter().map(|domain| (domain.clone(), true)).collect();
        let link = answered(self.link(index)).await?;
        let is_new = !answered(is(&link, &servers, &domains)).await?;
        if is_new {
            answered(self.set(index, &servers, &domains)).await?;
        }
        // Also what a dead run has answered, which may have known other servers.
        if is_new || !was_told {
            answered(self.manager.flush_caches()).await?;
        }
        answered(is_asked(&link)).await?;
        self.is_told = true;
        Ok(is_new)
    }

    async fn revert(&self, index: u32) -> Result<(), Failure> {
        let index = link_number(index)?;
        crash_point::reached();
        answered(self.manager.revert_link(index)).await?;
        crash_point::reached();
        answered(self.manager.flush_caches()).await
    }

    /// `None`: the connection is lost.
    async fn changed(&mut self) -> Option<()> {
        loop {
            let counts = tokio::select! {
                owner = self.owners.next() => owner.map(|_| true),
                settings = self.settings.next() => settings.map(|_| self.is_told),
            };
            if counts? {
                return Some(());
            }
        }
    }

    /// As soon as it has heard of it.
    async fn link(&self, index: i32) -> zbus::Result<LinkProxy<'_>> {
        let started = Instant::now();
        let path = loop {
            match self.manager.get_link(index).await {
                Err(zbus::Error::MethodError(name, ..))
                    if name.as_str() == NO_SUCH_LINK && started.elapsed() < HEARD => {}
                found => break found?,
            }
            sleep(POLL).await;
        };
        LinkProxy::builder(&self.connection).path(path)?.cache_properties(CacheProperties::No).build().await
    }

    /// The server comes last: until then the link is asked for nothing. Ours is asked plainly, and it validates nothing.
    async fn set(&self, index: i32, servers: &[Server], domains: &[Domain]) -> zbus::Result<()> {
        let manager = &self.manager;
        crash_point::reached();
        tolerate_unknown(manager.set_link_default_route(index, false).await, ())?;
        manager.set_link_dnssec(index, "no").await?;
        tolerate_unknown(manager.set_link_dns_over_tls(index, "no").await, ())?;
        manager.set_link_llmnr(index, "no").await?;
        manager.set_link_multicast_dns(index, "no").await?;
        manager.set_link_domains(index, domains).await?;
        crash_point::reached();
        manager.set_link_dns(index, servers).await?;
        crash_point::reached();
        Ok(())
    }
}

/// It tells of changed servers and domains (`PropertiesChanged` of its manager), whatever link they are of.
async fn settings(bus: &Connection) -> zbus::Result<PropertiesChangedStream> {
    let properties = PropertiesProxy::builder(bus).destination(SERVICE)?.path(PATH)?;
    let properties = properties.cache_properties(CacheProperties::No).build().await?;
    properties.receive_properties_changed().await
}

async fn ping(bus: &Connection) -> zbus::Result<()> {
    PeerProxy::new(bus, SERVICE, PATH).await?.ping().await
}

/// The network namespace of a process, as the number of a file that is each one's own: `ns/net` takes rights to look at.
fn network(process: &str) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{process}/net/dev"))?.ino())
}

async fn is(link: &LinkProxy<'_>, servers: &[Server], domains: &[Domain]) -> zbus::Result<bool> {
    let is_default = tolerate_unknown(link.default_route().await, false)?;
    let mut found = link.domains().await?;
    found.sort();
    let mut wanted = domains.to_vec();
    wanted.sort();
    Ok(!is_default && link.dns().await? == servers && found == wanted)
}

/// Returns when the link's server is asked, which takes that it has heard of the link's address.
async fn is_asked(link: &LinkProxy<'_>) -> zbus::Result<()> {
    let started = Instant::now();
    while link.scopes_mask().await? & SCOPE_DNS == 0 {
        if started.elapsed() > HEARD {
            return Err(zbus::Error::Failure("it was told of our resolver, and does not ask it".to_owned()));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Default routes are known since systemd 240, DNS over TLS since 239; before, there was neither.
fn tolerate_unknown<T>(result: zbus::Result<T>, otherwise: T) -> zbus::Result<T> {
    let unknown =
        ["UnknownMethod", "UnknownProperty"].map(|name| format!("org.freedesktop.DBus.Error.{name}"));
    match result {
        Err(zbus::Error::MethodError(name, ..)) if unknown.iter().any(|unknown| name.as_str() == unknown) => {
            Ok(otherwise)
        }
        result => result,
    }
}

/// What comes of a call within 5 s.
pub async fn answered<T, E: Display>(call: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    timeout(PATIENCE, call).await.map_err(|_| Failure::Silent)?.map_err(refusal)
}

/// As it counts them.
fn link_number(index: u32) -> Result<i32, Failure> {
    index.try_into().map_err(|_| Failure::Refused(format!("it cannot have a link {index}")))
}

fn refusal(error: impl Display) -> Failure {
    Failure::Refused(error.to_string())
}

//! systemd-resolved over D-Bus (org.freedesktop.resolve1(5)): the names of the policy, and they only, are asked at our resolver.
//! It forgets a link's settings with the link.

use std::{fmt::Display, future::Future, net::IpAddr, time::Duration};

use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use zbus::{
    Connection,
    fdo::{DBusProxy, NameOwnerChangedStream},
    names::BusName,
    proxy,
    proxy::CacheProperties,
    zvariant::OwnedObjectPath,
};

use crate::crash_point;

const SERVICE: &str = "org.freedesktop.resolve1";
/// It answers at once or hangs.
const PATIENCE: Duration = Duration::from_secs(5);
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

/// Where it is reached when it runs.
#[derive(Debug)]
pub struct Resolved {
    bus: Connection,
    names: DBusProxy<'static>,
    manager: ManagerProxy<'static>,
    owners: NameOwnerChangedStream,
}

impl Resolved {
    /// Or why there is no way to it.
    pub async fn connect() -> Result<Self, String> {
        let bus = answered(Connection::system()).await?;
        let names = answered(DBusProxy::new(&bus)).await?;
        let owners = answered(names.receive_name_owner_changed_with_args(&[(0, SERVICE)])).await?;
        let manager = answered(ManagerProxy::new(&bus)).await?;
        Ok(Self { bus, names, manager, owners })
    }

    /// A call would have the bus start it.
    pub async fn runs(&self) -> bool {
        let Ok(service) = BusName::try_from(SERVICE) else { return false };
        answered(self.names.name_has_owner(service)).await.unwrap_or(false)
    }

    /// Makes `server` the one to ask for `domains` and all below them, and for nothing else. Whether it was not so before.
    pub async fn tell(&self, index: u32, server: IpAddr, domains: &[String]) -> Result<bool, String> {
        let index = index.try_into().map_err(|_| format!("it cannot have a link {index}"))?;
        let servers = [match server {
            IpAddr::V4(server) => (libc::AF_INET, server.octets().to_vec()),
            IpAddr::V6(server) => (libc::AF_INET6, server.octets().to_vec()),
        }];
        let domains: Vec<Domain> = domains.iter().map(|domain| (domain.clone(), true)).collect();
        let link = answered(self.link(index)).await?;
        if answered(is(&link, &servers, &domains)).await? {
            return Ok(false);
        }
        answered(self.set(index, &servers, &domains)).await?;
        answered(is_asked(&link)).await?;
        Ok(true)
    }

    /// Takes back what it was told of a link, and has it forget what it was answered.
    pub async fn revert(&self, index: u32) -> Result<(), String> {
        let index = index.try_into().map_err(|_| format!("it cannot have a link {index}"))?;
        crash_point::reached();
        answered(self.manager.revert_link(index)).await?;
        crash_point::reached();
        answered(self.manager.flush_caches()).await
    }

    /// Resolves when it has come or gone; for good when the bus is gone.
    pub async fn came_or_went(&mut self) {
        if self.owners.next().await.is_none() {
            std::future::pending().await
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
        LinkProxy::builder(&self.bus).path(path)?.cache_properties(CacheProperties::No).build().await
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
        manager.flush_caches().await
    }
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

async fn answered<T, E: Display>(call: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("it did not answer within {} s", PATIENCE.as_secs())),
    }
}

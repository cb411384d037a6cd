//! Taking back what is noted in the journal, and what is known to be ours without it.

use std::net::IpAddr;

use tracing::warn;

use crate::{
    Error, State, Undo,
    change::{self, Present},
    connections::{self, Connection},
    dns,
    kill_switch::TABLES,
    netlink::{self, Netlink, Rule},
    nft,
    plan::{Plan, TABLE_SOURCE},
    sysctl,
};

/// How much an earlier run had left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub rules: usize,
    pub routes: usize,
    pub sysctls: usize,
    /// Whether the kill switch stood.
    pub kill_switch: bool,
    /// Whether the TUN stood: a child of the daemon's may have kept it.
    pub tun: bool,
    /// Whether names led to the daemon's resolver.
    pub dns: bool,
}

/// Undoes what a daemon that is gone has left in the calling thread's network namespace.
pub async fn clean(state: &State) -> Result<Cleaned, Error> {
    take_back_all(&Netlink::new()?, state).await
}

/// Removes, in the calling thread's namespaces, whatever keeps signaling closed: the kill switch, routes and rules, and what
/// has names lead to a resolver that is gone.
/// Asks neither lock nor journal. Goes on after an error; answers with what was removed, and with the errors.
pub async fn open_up() -> (Cleaned, Vec<Error>) {
    let mut errors = Vec::new();
    let kill_switch = remove_kill_switch().unwrap_or_else(|error| {
        errors.push(error);
        false
    });
    let routing = match Netlink::new() {
        Ok(netlink) => remove_routing(&netlink).await,
        Err(error) => Err(error.into()),
    };
    let cleaned = routing.unwrap_or_else(|error| {
        errors.push(error);
        Cleaned::default()
    });
    let dns = dns::undo_unnoted().await.unwrap_or_else(|error| {
        errors.push(error);
        false
    });
    (Cleaned { kill_switch, dns, ..cleaned }, errors)
}

/// Undoes all that is noted, the last first, and what carries our name or number even if the journal is lost. Goes on after
/// an error and tells the first; what is left then stays noted.
pub(crate) async fn take_back_all(netlink: &Netlink, state: &State) -> Result<Cleaned, Error> {
    let mut cleaned = Cleaned::default();
    let dns = dns::put_back(state).await.map(|undone| cleaned.dns |= undone);
    // What was not undone in its time is not waited for again.
    let left: Vec<Undo> = state.journal().undo().into_iter().filter(dns::is_about_dns).collect();
    let noted = take_back_but(netlink, state, &left, &mut cleaned).await;
    let routing = remove_routing(netlink).await.map(|more| {
        cleaned.rules += more.rules;
        cleaned.routes += more.routes;
    });
    let table = remove_kill_switch().map(|removed| cleaned.kill_switch |= removed);
    dns.and(noted).and(routing).and(table).map(|()| cleaned)
}

/// Undoes what is noted, the last first, but for `kept`.
pub(crate) async fn take_back_but(
    netlink: &Netlink,
    state: &State,
    kept: &[Undo],
    cleaned: &mut Cleaned,
) -> Result<(), Error> {
    let mut result = Ok(());
    let noted = state.journal().undo().into_iter().rev().filter(|undo| !kept.contains(undo));
    for undo in noted {
        let taken_back = match take_back(netlink, &undo, cleaned).await {
            Ok(()) => state.journal().forget(|noted| *noted == undo),
            Err(error) => Err(error),
        };
        if let Err(error) = taken_back {
            warn!("could not {undo}: {error}");
            result = result.and(Err(error));
        }
    }
    result
}

pub(crate) async fn take_back(netlink: &Netlink, undo: &Undo, cleaned: &mut Cleaned) -> Result<(), Error> {
    match undo {
        Undo::Routing => {
            let removed = remove_routing(netlink).await?;
            cleaned.rules += removed.rules;
            cleaned.routes += removed.routes;
        }
        Undo::Tun { name, index, addresses } => {
            let is_it = |link: &netlink::Link| link.index == *index && link.name == *name;
            if !netlink.links().await?.iter().any(is_it) {
                return Ok(());
            }
            // Its addresses first: with them its sockets lose their voice.
            for address in addresses {
                tolerate_gone(netlink.delete_address(*index, *address).await)?;
            }
            tolerate_gone(netlink.set_down(*index).await)?;
            cleaned.tun = true;
        }
        Undo::RpFilter { name, index, was } => {
            cleaned.sysctls += usize::from(sysctl::restore(name, *index, *was, &netlink.links().await?)?);
        }
        Undo::Table { name } => cleaned.kill_switch |= remove_table(name)?,
        Undo::ResolvConf { .. } | Undo::ResolvconfEntry | Undo::DnsLink | Undo::ResolvedLink { .. } => {
            cleaned.dns |= dns::undo(undo).await?;
        }
    }
    Ok(())
}

async fn remove_routing(netlink: &Netlink) -> Result<Cleaned, Error> {
    let present = Present::read(netlink).await?;
    silence(netlink, &present.rules).await?;
    change::make(netlink, present.stale(&Plan::default()), &mut Vec::new()).await?;
    Ok(Cleaned { rules: present.rules.len(), routes: present.routes.len(), ..Cleaned::default() })
}

/// Ends what is still bound to a TUN's address that is gone, while the rules refuse it: over IPv6 it would go on directly, in that name.
async fn silence(netlink: &Netlink, rules: &[Rule]) -> Result<(), Error> {
    let ours = rules.iter().filter(|rule| rule.table == TABLE_SOURCE).filter_map(|rule| rule.from);
    let mut gone: Vec<IpAddr> = ours.map(|from| from.addr()).collect();
    let addresses = netlink.addresses().await?;
    gone.retain(|ours| addresses.iter().all(|address| address.net.addr() != *ours));
    let is_its = |connection: &Connection| gone.contains(&connection.local.ip());
    for ended in [connections::end(is_its), connections::end_udp(is_its)] {
        if let Err(error) = ended {
            warn!("what is bound to the tunnel's address stays: {error}");
        }
    }
    Ok(())
}

fn remove_kill_switch() -> Result<bool, Error> {
    TABLES.into_iter().try_fold(false, |stood, table| Ok(remove_table(table)? | stood))
}

/// Whether there was one. A kernel without nf_tables has none.
fn remove_table(name: &str) -> Result<bool, Error> {
    match nft::remove(name) {
        Err(nft::Error::Unsupported) => Ok(false),
        removed => removed.map_err(Error::Firewall),
    }
}

fn tolerate_gone(result: Result<(), netlink::Error>) -> Result<(), Error> {
    match result {
        Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EADDRNOTAVAIL)) => Ok(()),
        result => Ok(result?),
    }
}

//! Taking back how names were led to the resolver.

use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::{
    file, link, resolvconf,
    resolved::{self, Resolved},
};
use crate::{Error, State, Undo, journal::Journal, netlink::Netlink};

/// For programs of others to undo what they were told.
const PUTTING_BACK: Duration = Duration::from_secs(12);

/// Undoes what is noted of DNS, be it a dead run's, and what one left that ran before the machine was started again. Whether
/// there was anything to do. Takes 12 s at most; what is not undone by then stays noted.
pub async fn put_back(state: &State) -> Result<bool, Error> {
    let all = async {
        let noted = take_back(state.journal(), is_about_dns).await;
        let unnoted = undo_unnoted().await;
        Ok(noted? | unnoted?)
    };
    timeout(PUTTING_BACK, all).await.unwrap_or(Err(Error::DnsSilent(PUTTING_BACK.as_secs())))
}

/// How [`crate::clean`] undoes one note. Whether there was anything to do.
pub async fn undo(undo: &Undo) -> Result<bool, Error> {
    match undo {
        Undo::ResolvConf { before } => file::give_back(Some(before)),
        Undo::ResolvconfEntry => remove_entry().await,
        Undo::DnsLink => remove_link().await,
        Undo::ResolvedLink { name, index } => revert_link(name, *index).await,
        _ => Ok(false),
    }
}

/// Takes back, without the journal, what would have names lead nowhere. Whether there was anything.
pub async fn undo_unnoted() -> Result<bool, Error> {
    let file = file::give_back(None);
    let link = remove_link().await;
    let entry = remove_entry().await;
    Ok(file? | link? | entry?)
}

/// The same, but for what systemd-resolved was told.
pub async fn undo_unnoted_entries() -> Result<bool, Error> {
    let file = file::give_back(None);
    let entry = remove_entry().await;
    Ok(file? | entry?)
}

/// Undoes those notes. Goes on after an error and answers with the first; what is left then stays noted.
pub async fn take_back(journal: &Journal, which: impl Fn(&Undo) -> bool) -> Result<bool, Error> {
    let mut noted: Vec<Undo> = journal.undo().into_iter().rev().filter(|noted| which(noted)).collect();
    // What others are asked to do may never end: resolvconf comes last, as the kernel takes back a link's settings with the link.
    noted.sort_by_key(|undo| match undo {
        Undo::ResolvConf { .. } => 0,
        Undo::DnsLink | Undo::ResolvedLink { .. } => 1,
        _ => 2,
    });
    let mut has_changed = false;
    let mut result = Ok(());
    for noted in noted {
        let undone = match undo(&noted).await {
            Ok(changed) => {
                has_changed |= changed;
                journal.forget(|undo| *undo == noted)
            }
            Err(error) => Err(error),
        };
        result = result.and(undone.inspect_err(|error| warn!("could not {noted}: {error}")));
    }
    result.map(|()| has_changed)
}

pub fn is_about_dns(undo: &Undo) -> bool {
    matches!(
        undo,
        Undo::ResolvConf { .. } | Undo::ResolvconfEntry | Undo::DnsLink | Undo::ResolvedLink { .. }
    )
}

async fn remove_entry() -> Result<bool, Error> {
    resolvconf::remove().await.map_err(Error::Resolvconf)
}

/// systemd-resolved hears by and by that the link is gone, and would go on asking there until then.
async fn remove_link() -> Result<bool, Error> {
    let Some(index) = link::index().await? else { return Ok(false) };
    revert_link(link::NAME, index).await?;
    link::remove(index).await?;
    Ok(true)
}

/// The link takes its settings with it, so that a resolver that cannot be reached needs no second attempt.
async fn revert_link(name: &str, index: u32) -> Result<bool, Error> {
    let links = Netlink::new()?.links().await?;
    if !links.iter().any(|link| link.index == index && link.name == name) {
        return Ok(false);
    }
    let reverted = resolved::answered(async {
        let mut resolved = Resolved::connect().await;
        resolved.is_here().await?;
        resolved.revert(index).await
    });
    Ok(reverted
        .await
        .inspect_err(|why| warn!("systemd-resolved keeps its settings of {name}: {why}"))
        .is_ok())
}

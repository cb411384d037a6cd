//! A link of our own for systemd-resolved, which forgets what it was told of a link with the link: unlike the TUN it outlives
//! the process, and so keeps the policy's names from being asked elsewhere. Nothing is ever sent by it.

use tracing::warn;

use super::LOOPBACK;
use crate::{
    Error,
    netlink::{self, Netlink},
    sysctl,
};

/// By this name it is ours.
pub const NAME: &str = "breakout-dns";

/// What has a carrier without a process or a far end, as systemd-resolved wants it: the more usual one first.
const KINDS: [&str; 2] = ["dummy", "ifb"];

/// Makes the link, or takes over a dead run's. Answers with its index, or why this kernel has none.
pub async fn raise() -> Result<Result<u32, String>, Error> {
    let netlink = Netlink::new()?;
    if find(&netlink).await?.is_none()
        && let Err(why) = add(&netlink).await?
    {
        return Ok(Err(why));
    }
    let Some(link) = find(&netlink).await? else {
        return Err(netlink::Error::NoLink(NAME.to_owned()).into());
    };
    sysctl::disable_ipv6(NAME)?;
    if !link.up {
        netlink.set_up(link.index).await?;
    }
    // systemd-resolved asks no link without an address that reaches beyond it, and its versions 248 to 251 no server on the
    // loopback that is not a link's own address.
    match netlink.add_site_address(link.index, LOOPBACK.into()).await {
        Err(error) if error.errno() == Some(libc::EEXIST) => {}
        added => added?,
    }
    Ok(Ok(link.index))
}

pub async fn remove(index: u32) -> Result<(), Error> {
    match Netlink::new()?.delete_link(index).await {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        deleted => Ok(deleted?),
    }
}

/// `None`: it is not there.
pub async fn index() -> Result<Option<u32>, Error> {
    Ok(find(&Netlink::new()?).await?.map(|link| link.index))
}

async fn find(netlink: &Netlink) -> Result<Option<netlink::Link>, Error> {
    Ok(netlink.links().await?.into_iter().find(|link| link.name == NAME))
}

async fn add(netlink: &Netlink) -> Result<Result<(), String>, Error> {
    for kind in KINDS {
        match netlink.add_link(NAME, kind).await {
            Ok(()) => return Ok(Ok(())),
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let why = format!("the kernel has neither {} links", KINDS.join(" nor "));
    warn!("after a crash systemd-resolved will ask others for the policy's names: {why}");
    Ok(Err(why))
}

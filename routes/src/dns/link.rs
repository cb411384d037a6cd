//! A link of our own for systemd-resolved, which forgets what it was told of a link with the link: unlike the TUN it outlives
//! the process, and so keeps the policy's names from being asked elsewhere. Nothing is ever sent by it.

use super::LOOPBACK;
use crate::{
    Error,
    netlink::{self, Netlink},
    sysctl,
};

pub const NAME: &str = policy::DNS_LINK;

/// By this it is ours, from its birth on: somebody else's link of that name is let be. Locally administered.
const MAC: [u8; 6] = [0x02, 127, 51, 82, 53, 1];
/// What has a carrier without a process or a far end, as systemd-resolved wants it: the more usual one first.
const KINDS: [&str; 2] = ["dummy", "ifb"];

/// Makes the link, or takes over a dead run's. Answers with its index, or why there can be none.
pub async fn raise() -> Result<u32, String> {
    let netlink = Netlink::new().map_err(|error| error.to_string())?;
    let link = match find(&netlink).await.map_err(|error| error.to_string())? {
        Some(link) => link,
        None => add(&netlink, KINDS).await?,
    };
    prepare(&netlink, &link).await.map_err(|error| error.to_string())?;
    Ok(link.index)
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

pub fn is_ours(link: &netlink::Link) -> bool {
    link.name == NAME && link.mac == MAC
}

async fn find(netlink: &Netlink) -> Result<Option<netlink::Link>, netlink::Error> {
    Ok(netlink.links().await?.into_iter().find(is_ours))
}

async fn add(netlink: &Netlink, kinds: [&str; 2]) -> Result<netlink::Link, String> {
    for kind in kinds {
        match netlink.add_link(NAME, kind, MAC).await {
            Ok(()) => {
                let found = find(netlink).await.map_err(|error| error.to_string())?;
                return found.ok_or_else(|| format!("the link {NAME} was gone at once"));
            }
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {}
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                return Err(format!("somebody else has a link {NAME}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(format!("the kernel has neither {} links", kinds.join(" nor ")))
}

async fn prepare(netlink: &Netlink, link: &netlink::Link) -> Result<(), Error> {
    sysctl::disable_ipv6(NAME)?;
    if !link.up {
        netlink.set_up(link.index).await?;
    }
    // systemd-resolved asks no link without an address that reaches beyond it, and its versions 248 to 251 no server on the
    // loopback that is not a link's own address.
    match netlink.add_site_address(link.index, LOOPBACK.into()).await {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        added => Ok(added?),
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_kernel_without_such_links_is_told_from_other_errors() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "this needs root");
            return println!("skipped, because this needs root");
        }
        let test = async {
            let netlink = Netlink::new().unwrap();
            let refused = add(&netlink, ["nothing", "nobody"]).await.unwrap_err();
            assert_eq!(refused, "the kernel has neither nothing nor nobody links");
            assert_eq!(find(&netlink).await.unwrap(), None);

            let link = add(&netlink, ["nothing", "veth"]).await.unwrap();
            assert!(is_ours(&link));
            let refused = add(&netlink, ["nothing", "veth"]).await.unwrap_err();
            assert_eq!(refused, "somebody else has a link breakout-dns");
        };
        let inside = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
        });
        inside.join().unwrap();
    }
}

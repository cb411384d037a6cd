//! Kernel settings under /proc/sys/net, which shows the network namespace of the thread that looks.
//!
//! Strict reverse path filtering drops the answers of the bypass: it looks the way back up without a mark, and without
//! one that way is the TUN. Loose filtering only asks that there be some way back.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, State, netlink::Link};

const STRICT: u8 = 1;
const LOOSE: u8 = 2;

pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// IPv6 on, and no link-local address of its own (`IN6_ADDR_GEN_MODE_NONE`, linux/if_link.h): the TUN has the configured
/// addresses and sends nothing by itself.
pub(crate) fn prepare_tun(tun: &str) -> Result<(), Error> {
    write(&ipv6(tun, "disable_ipv6"), 0)?;
    write(&ipv6(tun, "addr_gen_mode"), 1)
}

/// Makes `rp_filter` loose where it is strict, each old value noted first. Answers with the names of those changed.
pub(crate) fn loosen(state: &mut State, links: &[Link]) -> Result<Vec<String>, Error> {
    let all = read(&rp_filter("all"))?.unwrap_or(0);
    let mut strict = Vec::new();
    let mut found = BTreeMap::new();
    for link in links.iter().filter(|link| !link.loopback) {
        // The kernel goes by the greater of the two (ip-sysctl). An interface may have gone meanwhile.
        let Some(value) = read(&rp_filter(&link.name))? else { continue };
        if value.max(all) == STRICT {
            strict.push(link.name.clone());
            found.insert(link.index, value);
        }
    }
    state.forget_rp_filter(|index| links.iter().all(|link| link.index != index))?;
    if strict.is_empty() {
        return Ok(strict);
    }
    state.note_rp_filter(&found)?;
    for name in &strict {
        write(&rp_filter(name), LOOSE)?;
    }
    Ok(strict)
}

/// Puts back what [`loosen`] has changed, in this run or an earlier one; a value that somebody else has set since stays.
/// Answers with how many there were.
pub(crate) fn restore(state: &mut State, links: &[Link]) -> Result<usize, Error> {
    let undo = state.rp_filter().clone();
    let mut restored = 0;
    for link in links {
        let Some(value) = undo.get(&link.index) else { continue };
        let path = rp_filter(&link.name);
        if read(&path)? == Some(LOOSE) {
            write(&path, *value)?;
            restored += 1;
        }
    }
    state.forget_rp_filter(|_| true)?;
    Ok(restored)
}

fn rp_filter(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join("rp_filter")
}

fn ipv6(interface: &str, key: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv6/conf").join(interface).join(key)
}

/// `None` if the interface is gone.
fn read(path: &Path) -> Result<Option<u8>, Error> {
    let failed = |source| Error::Sysctl { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            let number = text.trim().parse().map_err(|_| failed(io::ErrorKind::InvalidData.into()))?;
            Ok(Some(number))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

/// Nothing happens if the interface is gone.
fn write(path: &Path, value: u8) -> Result<(), Error> {
    match fs::OpenOptions::new().write(true).open(path).and_then(|mut file| write_number(&mut file, value)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Sysctl { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write_number(file: &mut fs::File, value: u8) -> io::Result<()> {
    io::Write::write_all(file, value.to_string().as_bytes())
}

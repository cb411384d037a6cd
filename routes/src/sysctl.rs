//! Kernel settings under /proc/sys/net, which shows the network namespace of the thread that looks.
//!
//! Strict reverse path filtering drops the answers of the bypass: it looks the way back up without a mark, and without
//! one that way is the TUN. Loose filtering only asks that there be some way back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, Undo, crash_point, dns, journal::Journal, netlink::Link};

const STRICT: u8 = 1;
const LOOSE: u8 = 2;

pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

pub(crate) fn enable_ipv6(link: &str) -> Result<(), Error> {
    set(&disable_ipv6_of(link), 0)
}

/// A link that is to say nothing by itself.
pub(crate) fn disable_ipv6(link: &str) -> Result<(), Error> {
    set(&disable_ipv6_of(link), 1)
}

/// Makes `rp_filter` loose where it is strict, each old value noted first. Answers with the names of those changed.
pub(crate) fn loosen(journal: &Journal, links: &[Link]) -> Result<Vec<String>, Error> {
    let all = read(&rp_filter("all"))?.unwrap_or(0);
    let mut found = Vec::new();
    for link in links.iter().filter(|link| !link.loopback && !dns::is_our_link(link)) {
        // The kernel goes by the greater of the two (ip-sysctl). An interface may have gone meanwhile.
        let Some(was) = read(&rp_filter(&link.name))? else { continue };
        if was.max(all) == STRICT {
            found.push((link, was));
        }
    }
    follow_renamed(journal, links)?;
    let is_gone =
        |name: &str, index: u32| links.iter().all(|link| (&*link.name, link.index) != (name, index));
    journal.forget(|undo| matches!(undo, Undo::RpFilter { name, index, .. } if is_gone(name, *index)))?;
    let undo =
        |(link, was): &(&Link, u8)| Undo::RpFilter { name: link.name.clone(), index: link.index, was: *was };
    journal.note(found.iter().map(undo))?;
    for (link, _) in &found {
        write(&rp_filter(&link.name), LOOSE)?;
    }
    Ok(found.into_iter().map(|(link, _)| link.name.clone()).collect())
}

/// Notes an interface's new name: udev gives one to each that appears. One that has taken the index of another has not its value.
fn follow_renamed(journal: &Journal, links: &[Link]) -> Result<(), Error> {
    for undo in journal.undo() {
        let Undo::RpFilter { name, index, was } = undo else { continue };
        if let Some(link) = links.iter().find(|link| link.index == index && link.name != name)
            && read(&rp_filter(&link.name))? == Some(LOOSE)
        {
            journal.renew(Undo::RpFilter { name: link.name.clone(), index, was })?;
        }
    }
    Ok(())
}

/// Puts an interface's value back that [`loosen`] has changed, in this run or an earlier one; one that somebody else has set
/// since stays, and so does that of another interface which has come to have the name or the index. Whether there was anything to do.
pub(crate) fn restore(name: &str, index: u32, was: u8, links: &[Link]) -> Result<bool, Error> {
    if !links.iter().any(|link| link.index == index && link.name == name) {
        return Ok(false);
    }
    let path = rp_filter(name);
    if read(&path)? != Some(LOOSE) {
        return Ok(false);
    }
    write(&path, was)?;
    Ok(true)
}

fn rp_filter(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join("rp_filter")
}

fn disable_ipv6_of(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv6/conf").join(interface).join("disable_ipv6")
}

/// Where /proc/sys cannot be written, as in most containers, what is as wanted already must do.
fn set(path: &Path, value: u8) -> Result<(), Error> {
    if read(path)? == Some(value) { Ok(()) } else { write(path, value) }
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
    crash_point::reached();
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

//! The journal: what is to be undone, on disk before it is done.
//!
//! Another kind of change becomes a variant of [`Undo`]; `take_back` in `clean.rs` says how it is undone. What is noted here
//! outlives neither the machine's run nor the network namespace, so that another boot's journal is void, and one of a namespace that is
//! gone, as a container's is after its restart; /etc/resolv.conf, which does, says itself what was there.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Error, crash_point, dns, namespace};

const FILE: &str = "undo.json";
const VERSION: u32 = 1;

/// How a change is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Undo {
    /// Delete the rules and routes that carry our protocol number, [`crate::PROTOCOL`].
    Routing,
    /// Take these addresses from the TUN and set it down. It vanishes with the process that opened it.
    Tun { name: String, index: u32, addresses: Vec<IpNet> },
    /// Give an interface's `rp_filter` its value back, if it has still both: either alone may become another's.
    RpFilter { name: String, index: u32, was: u8 },
    /// Delete a table of nftables' `inet` family.
    Table { name: String },
    /// Put this back at /etc/resolv.conf, unless somebody else has put something there since.
    ResolvConf { before: dns::Entry },
    /// Take our entry from resolvconf(8).
    ResolvconfEntry,
    /// Take back what systemd-resolved was told of our own link, [`dns::LINK`], and delete that.
    DnsLink,
    /// Take back what systemd-resolved was told of the TUN. It forgets it with the link.
    ResolvedLink { name: String, index: u32 },
}

/// What a journal holds. Changed only together with the file, one change after the other: whoever notes something holds it
/// until it is on disk, and nobody while the machine is changed.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    content: Mutex<Content>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// The machine's run.
    boot: String,
    /// The network namespace, as /proc names it. Older versions did not note it.
    #[serde(default)]
    namespace: Option<String>,
    /// In the order in which it was noted.
    undo: Vec<Undo>,
}

/// What every version of the file has.
#[derive(Deserialize)]
struct Header {
    version: u32,
    boot: String,
    #[serde(default)]
    namespace: Option<String>,
}

impl Journal {
    /// As [`Journal::read`], for who holds the lock: nobody else writes.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let journal = Self::read(directory)?;
        let torn = journal.path.with_extension("new");
        remove(&torn).map_err(|source| Error::Directory { path: torn, source })?;
        Ok(journal)
    }

    /// Reads what earlier runs have left to undo in the calling thread's network namespace.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let failed = |source| Error::Directory { path: path.clone(), source };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?.trim().to_owned();
        let namespace = Some(namespace::own().map_err(failed)?);
        let void = Content { version: VERSION, boot, namespace, undo: Vec::new() };
        let content = match fs::read(&path) {
            Ok(text) => read(&path, &text, void)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => void,
            Err(source) => return Err(failed(source)),
        };
        Ok(Self { path, content: Mutex::new(content) })
    }

    pub fn undo(&self) -> Vec<Undo> {
        self.lock().undo.clone()
    }

    /// Notes what is about to change, on disk when this returns. Of a thing that is noted already the older note stands:
    /// what is found since may be ours.
    pub fn note(&self, undo: impl IntoIterator<Item = Undo>) -> Result<(), Error> {
        let mut content = self.lock();
        let before = content.undo.len();
        for undo in undo {
            if !content.undo.iter().any(|noted| noted.is_of_the_same(&undo)) {
                content.undo.push(undo);
            }
        }
        self.save_unless(&content, before).inspect_err(|_| content.undo.truncate(before))
    }

    /// Notes what is about to change in place of an older note of the same: others have changed it since.
    pub fn renew(&self, undo: Undo) -> Result<(), Error> {
        let mut content = self.lock();
        let before = content.undo.clone();
        match content.undo.iter_mut().find(|noted| noted.is_of_the_same(&undo)) {
            Some(noted) if *noted == undo => return Ok(()),
            Some(noted) => *noted = undo,
            None => content.undo.push(undo),
        }
        self.save(&content).inspect_err(|_| content.undo = before)
    }

    /// Forgets what is undone or gone.
    pub fn forget(&self, is_done: impl Fn(&Undo) -> bool) -> Result<(), Error> {
        let mut content = self.lock();
        let before = content.undo.len();
        content.undo.retain(|undo| !is_done(undo));
        self.save_unless(&content, before)
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save_unless(&self, content: &Content, unchanged: usize) -> Result<(), Error> {
        if content.undo.len() == unchanged { Ok(()) } else { self.save(content) }
    }

    fn save(&self, content: &Content) -> Result<(), Error> {
        self.write(content).map_err(|source| Error::Directory { path: self.path.clone(), source })
    }

    /// In one step: a crash, of the machine too, leaves the old journal or the new one.
    fn write(&self, content: &Content) -> io::Result<()> {
        crash_point::reached();
        if content.undo.is_empty() {
            remove(&self.path)?;
        } else {
            let new = self.path.with_extension("new");
            let text = serde_json::to_vec(content)?;
            let (half, rest) = text.split_at_checked(text.len() / 2).unwrap_or((&text, &[]));
            let mut file = File::create(&new)?;
            file.write_all(half)?;
            crash_point::reached();
            file.write_all(rest)?;
            file.sync_all()?;
            crash_point::reached();
            fs::rename(&new, &self.path)?;
        }
        crash_point::reached();
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// What the file says; `void` if that was for another run of the machine, or for a namespace that is gone.
fn read(path: &Path, text: &[u8], void: Content) -> Result<Content, Error> {
    let broken = |source| Error::Journal { path: path.to_owned(), source };
    let header: Header = serde_json::from_slice(text).map_err(broken)?;
    if header.boot != void.boot {
        return Ok(void);
    }
    if let Some(theirs) = header.namespace.filter(|theirs| void.namespace.as_ref() != Some(theirs)) {
        if namespace::is_gone(&theirs) {
            return Ok(void);
        }
        let own = void.namespace.unwrap_or_default();
        return Err(Error::JournalNamespace { path: path.to_owned(), theirs, own });
    }
    if header.version != VERSION {
        return Err(Error::JournalVersion { path: path.to_owned(), found: header.version, known: VERSION });
    }
    let content: Content = serde_json::from_slice(text).map_err(broken)?;
    Ok(Content { namespace: void.namespace, ..content })
}

impl Undo {
    fn is_of_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::RpFilter { index, .. }, Self::RpFilter { index: other, .. }) => index == other,
            (Self::ResolvConf { .. }, Self::ResolvConf { .. }) => true,
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routing => write!(f, "delete the routing rules and routes of protocol {}", crate::PROTOCOL),
            Self::Tun { name, addresses, .. } => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "take {} from {name} and set it down", addresses.join(", "))
            }
            Self::RpFilter { name, was, .. } => write!(f, "set rp_filter of {name} to {was}"),
            Self::Table { name } => write!(f, "delete the nftables table inet {name}"),
            Self::ResolvConf { .. } => write!(f, "put /etc/resolv.conf back as it was"),
            Self::ResolvconfEntry => write!(f, "take Breakout's entry from resolvconf"),
            Self::DnsLink => write!(f, "delete the link {}", dns::LINK),
            Self::ResolvedLink { name, .. } => write!(f, "revert systemd-resolved's settings of {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rp_filter(index: u32, was: u8) -> Undo {
        Undo::RpFilter { name: format!("eth{index}"), index, was }
    }

    #[test]
    fn what_was_found_first_is_what_is_undone() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::read(directory.path()).unwrap();
        journal.note([rp_filter(3, 1), rp_filter(4, 0), Undo::Routing]).unwrap();

        let journal = Journal::read(directory.path()).unwrap();
        journal.note([Undo::Routing, rp_filter(3, 2), rp_filter(5, 1)]).unwrap();
        let kept = [rp_filter(3, 1), rp_filter(4, 0), Undo::Routing, rp_filter(5, 1)];
        assert_eq!(journal.undo(), kept);
        assert_eq!(Journal::read(directory.path()).unwrap().undo(), kept);
        journal.forget(|_| true).unwrap();
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn a_renewed_note_takes_the_olders_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = |content: &str| Undo::ResolvConf {
            before: dns::Entry::File {
                content: content.as_bytes().to_vec().into(),
                mode: 0o644,
                user: 0,
                group: 0,
            },
        };
        let journal = Journal::read(directory.path()).unwrap();
        journal.renew(file("a")).unwrap();
        journal.note([Undo::Routing]).unwrap();
        journal.note([file("b")]).unwrap();
        assert_eq!(journal.undo(), [file("a"), Undo::Routing]);
        journal.renew(file("b")).unwrap();
        assert_eq!(Journal::read(directory.path()).unwrap().undo(), [file("b"), Undo::Routing]);
    }

    #[test]
    fn a_torn_write_leaves_the_old_journal() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::read(directory.path()).unwrap();
        journal.note([rp_filter(3, 1)]).unwrap();
        let whole = fs::read(directory.path().join(FILE)).unwrap();
        for length in 0..whole.len() {
            fs::write(directory.path().join("undo.new"), &whole[..length]).unwrap();
            let journal = Journal::read(directory.path()).unwrap();
            assert_eq!(journal.undo(), [rp_filter(3, 1)]);
            journal.note([Undo::Routing]).unwrap();
            journal.forget(|undo| *undo == Undo::Routing).unwrap();
        }
        assert_eq!(fs::read(directory.path().join(FILE)).unwrap(), whole);

        fs::write(directory.path().join("undo.new"), &whole).unwrap();
        Journal::open(directory.path()).unwrap().forget(|_| true).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is to be undone any more");
    }

    #[test]
    fn another_boots_journal_is_void_and_a_broken_or_newer_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let journal = Journal::read(directory.path()).unwrap();
        journal.note([Undo::Routing, rp_filter(7, 1)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();

        fs::write(&path, text.replace(&journal.lock().boot, "another")).unwrap();
        assert_eq!(Journal::read(directory.path()).unwrap().undo(), []);

        fs::write(&path, text.replace("\"version\":1", "\"version\":2")).unwrap();
        let refused = Journal::read(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::JournalVersion { found: 2, .. }), "{refused}");

        for length in 0..text.len() {
            fs::write(&path, &text[..length]).unwrap();
            let refused = Journal::read(directory.path()).unwrap_err();
            assert!(matches!(&refused, Error::Journal { path: found, .. } if *found == path), "{refused}");
        }
    }
}

//! The state directory: the lock that says who is at work, and the journal of what to undo.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Who can open a file can lock it (flock(2)), and so keep the daemon from starting.
const LOCK_MODE: u32 = 0o600;

/// The lock on a state directory, and its journal. The kernel frees the lock with the process.
#[derive(Debug)]
pub struct State {
    _lock: Flock<File>,
    path: PathBuf,
    journal: Journal,
}

/// Changed settings that the kernel does not put back by itself.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    /// Sysctls do not outlive the machine's run.
    boot: String,
    /// The interface's index → its `rp_filter` as it was found. By index, since a name may come to mean another one.
    rp_filter: BTreeMap<u32, u8>,
}

impl State {
    /// Takes the lock and reads what an earlier run has left to undo. The directory is made if missing.
    /// Each network namespace needs a directory of its own.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        make(directory).and_then(|()| refuse_if_others_write(directory)).map_err(failed)?;
        let lock = lock(&directory.join("lock")).map_err(failed)?;
        let mut lock = match lock {
            Ok(lock) => lock,
            Err(pid) => return Err(Error::Running(pid)),
        };
        write_pid(&mut lock).map_err(failed)?;

        let path = directory.join("undo.json");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?.trim().to_owned();
        let mut journal: Journal = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| Error::Journal { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Journal::default(),
            Err(source) => return Err(Error::Directory { path, source }),
        };
        if journal.boot != boot {
            journal = Journal { boot, ..Journal::default() };
        }
        Ok(Self { _lock: lock, path, journal })
    }

    /// What interfaces' `rp_filter` was before any run of ours changed it.
    pub(crate) fn rp_filter(&self) -> &BTreeMap<u32, u8> {
        &self.journal.rp_filter
    }

    /// Notes values found, on disk when this returns. A value noted earlier stands: what is found since may be ours.
    pub(crate) fn note_rp_filter(&mut self, found: &BTreeMap<u32, u8>) -> Result<(), Error> {
        for (index, value) in found {
            self.journal.rp_filter.entry(*index).or_insert(*value);
        }
        self.save()
    }

    /// Forgets interfaces that are put back or gone.
    pub(crate) fn forget_rp_filter(&mut self, forget: impl Fn(u32) -> bool) -> Result<(), Error> {
        let before = self.journal.rp_filter.len();
        self.journal.rp_filter.retain(|index, _| !forget(*index));
        if self.journal.rp_filter.len() == before {
            return Ok(());
        }
        self.save()
    }

    fn save(&self) -> Result<(), Error> {
        self.replace().map_err(|source| Error::Directory { path: self.path.clone(), source })
    }

    /// In one step, so that a crash leaves the old journal or the new one.
    fn replace(&self) -> io::Result<()> {
        if self.journal.rp_filter.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, &self.journal)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

/// Whatever the umask, others may look and no more.
fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)
}

/// Who can write to it could put another control socket or journal in place.
fn refuse_if_others_write(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let owner = metadata.uid();
    if owner != 0 && owner != Uid::effective().as_raw() {
        return Err(io::Error::other(format!("it belongs to user {owner}; chown it to root")));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "others may write to it, its mode is {mode:04o}; chmod go-w it"
        )));
    }
    Ok(())
}

/// The lock, or the process that has it.
fn lock(path: &Path) -> io::Result<Result<Flock<File>, Option<i32>>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(LOCK_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(LOCK_MODE))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Ok(lock)),
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            Ok(Err(pid.trim().parse().ok()))
        }
        Err((_, errno)) => Err(errno.into()),
    }
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_told_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = State::open(directory.path()).unwrap();
        let refused = State::open(directory.path()).unwrap_err();
        let me = std::process::id() as i32;
        assert!(matches!(refused, Error::Running(Some(pid)) if pid == me), "{refused}");
        assert!(refused.to_string().contains(&format!("process {me}")));
        drop(first);
        State::open(directory.path()).unwrap();
    }

    #[test]
    fn others_can_neither_lock_it_out_nor_write_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        fs::write(directory.path().join("lock"), "").unwrap();
        drop(State::open(directory.path()).unwrap());
        assert_eq!(mode(&directory.path().join("lock")), 0o600);

        for open in [0o777, 0o1777, 0o775] {
            fs::set_permissions(directory.path(), Permissions::from_mode(open)).unwrap();
            let refused = State::open(directory.path()).unwrap_err();
            assert!(refused.to_string().contains(&format!("{open:04o}; chmod go-w")), "{refused}");
        }
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        let inside = directory.path().join("deep/state");
        drop(State::open(&inside).unwrap());
        assert_eq!(mode(&inside) & 0o022, 0);
    }

    #[test]
    fn what_was_found_first_is_what_is_undone() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::open(directory.path()).unwrap();
        state.note_rp_filter(&BTreeMap::from([(3, 1), (4, 0)])).unwrap();
        drop(state);

        let mut state = State::open(directory.path()).unwrap();
        state.note_rp_filter(&BTreeMap::from([(3, 2), (5, 1)])).unwrap();
        assert_eq!(*state.rp_filter(), BTreeMap::from([(3, 1), (4, 0), (5, 1)]));
        state.forget_rp_filter(|_| true).unwrap();
        assert!(!directory.path().join("undo.json").exists());
    }

    #[test]
    fn another_boots_journal_is_void_and_a_broken_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("undo.json");
        fs::write(&path, r#"{"boot":"another","rp_filter":{"3":1}}"#).unwrap();
        assert!(State::open(directory.path()).unwrap().rp_filter().is_empty());

        fs::write(&path, "{").unwrap();
        let refused = State::open(directory.path()).unwrap_err();
        assert!(matches!(&refused, Error::Journal { path: found, .. } if *found == path), "{refused}");
    }
}

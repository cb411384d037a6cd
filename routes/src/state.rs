//! The state directory: the lock that says who is at work, and the journal of what to undo.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Error, Undo, dns, journal::Journal};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::kill,
    unistd::{Pid, Uid},
};

/// Who can open a file can lock it (flock(2)), and so keep the daemon from starting.
const LOCK_MODE: u32 = 0o600;
const LOCK: &str = "lock";
/// For the lock of a process that is dead.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// The lock on a state directory, and its journal, for all who change the machine: a clone is the same one. The lock is free
/// when the last of them is dropped, and the kernel frees it with the process.
#[derive(Clone, Debug)]
pub struct State(Arc<Held>);

#[derive(Debug)]
struct Held {
    _lock: Flock<File>,
    journal: Journal,
}

/// What is noted in a state directory, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers {
    /// The process that holds the lock: what is noted is in use, and undone when that ends.
    pub running: Option<Holder>,
    /// In the order in which it was noted; undone in reverse.
    pub undo: Vec<Undo>,
}

/// Who holds a state directory's lock: the process, if it has said so yet.
pub type Holder = Option<i32>;

impl State {
    /// Takes the lock and reads what an earlier run has left to undo. The directory is made if missing.
    /// Each network namespace needs a directory of its own.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        make(directory).and_then(|()| refuse_if_others_write(directory)).map_err(failed)?;
        let lock = lock(&directory.join(LOCK)).map_err(failed)?;
        let mut lock = match lock {
            Ok(lock) => lock,
            Err(pid) => return Err(Error::Running(pid)),
        };
        write_pid(&mut lock).map_err(failed)?;

        Ok(Self(Arc::new(Held { _lock: lock, journal: Journal::open(directory)? })))
    }

    /// Whether how names are resolved was changed, and not put back so far.
    pub fn leads_names(&self) -> bool {
        self.journal().undo().iter().any(dns::is_about_dns)
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }
}

impl Leftovers {
    /// Looks without taking the lock: whoever is at work goes on. Empty where there is no state directory.
    pub fn look(directory: &Path) -> Result<Self, Error> {
        Ok(Self { running: running(directory)?, undo: Journal::read(directory)?.undo() })
    }
}

/// Who holds the lock of a state directory; `None`: nobody.
pub fn running(directory: &Path) -> Result<Option<Holder>, Error> {
    let path = directory.join(LOCK);
    let found = match File::open(&path) {
        Ok(file) => holder(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    found.map_err(|source| Error::Directory { path, source })
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

/// The lock, or who has it.
fn lock(path: &Path) -> io::Result<Result<Flock<File>, Holder>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(LOCK_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(LOCK_MODE))?;
    take(file, FlockArg::LockExclusiveNonblock)
}

fn holder(file: File) -> io::Result<Option<Holder>> {
    Ok(take(file, FlockArg::LockSharedNonblock)?.err())
}

/// A process that the holder was just starting when it was killed has the lock too, until it begins its own program.
fn take(mut file: File, how: FlockArg) -> io::Result<Result<Flock<File>, Holder>> {
    let started = Instant::now();
    loop {
        file = match Flock::lock(file, how) {
            Ok(lock) => return Ok(Ok(lock)),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(errno.into()),
        };
        let holder = read_pid(&mut file)?;
        if !is_dead(holder) || started.elapsed() > PATIENCE {
            return Ok(Err(holder));
        }
        sleep(POLL);
    }
}

fn is_dead(holder: Holder) -> bool {
    holder.is_some_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

fn read_pid(lock: &mut File) -> io::Result<Holder> {
    let mut pid = String::new();
    lock.rewind()?;
    lock.read_to_string(&mut pid)?;
    Ok(pid.trim().parse().ok().filter(|pid| *pid > 0))
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
        assert_eq!(Leftovers::look(directory.path()).unwrap().running, Some(Some(me)));
        drop(first);
        State::open(directory.path()).unwrap();
        assert_eq!(Leftovers::look(directory.path()).unwrap(), Leftovers { running: None, undo: vec![] });
        let nowhere = Leftovers::look(&directory.path().join("nowhere")).unwrap();
        assert_eq!(nowhere, Leftovers { running: None, undo: vec![] });
    }

    #[test]
    fn who_was_just_starting_a_process_when_it_was_killed_has_the_lock_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOCK);
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let hold = || {
            fs::write(&path, dead.id().to_string()).unwrap();
            Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap()
        };

        let held = hold();
        let begins_its_program = std::thread::spawn(move || {
            sleep(PATIENCE / 5);
            drop(held);
        });
        drop(State::open(directory.path()).unwrap());
        begins_its_program.join().unwrap();

        let _held = hold();
        let refused = State::open(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::Running(Some(pid)) if pid == dead.id() as i32), "{refused}");
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
}

use std::fs::{self, OpenOptions};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getegid, geteuid};

use crate::directory::Directory;
use crate::{During, LabError};

/// The bits of CapEff (linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Prepares the process for a lab: takes on a user namespace where the rights to make network namespaces are missing, and holds back the
/// signals that end a program, so that [`crate::run`] can clean up on them.
///
/// Must be called before the process has a second thread.
///
/// # Errors
/// [`LabError::Privilege`] says what the kernel denies and how to allow it.
pub fn enter() -> Result<(), LabError> {
    ending_signals().thread_block().during(|| "hold back signals".to_owned())?;
    if !has_rights() {
        take_user_namespace()?;
    }
    check_tun()
}

/// Whether this process may build a lab without [`enter`]: for tests, which have threads already.
pub fn has_rights() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or_default();
    let needed = CAP_NET_ADMIN | CAP_SYS_ADMIN;
    effective & needed == needed
}

/// Waits, in a thread, for the signals that end a program. The first one ends [`crate::Run::keep`], if that is waiting; otherwise what
/// the lab has in the file system is removed and the process exits. Namespaces and child processes go with it. [`crate::run`] calls it.
pub fn clean_up_on_signals() -> Result<(), LabError> {
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(|| {
            while let Ok(signal) = ending_signals().wait() {
                let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
                if waiting.is_none_or(|waiting| waiting.send(()).is_err()) {
                    Directory::remove_all();
                    std::process::exit(128 + signal as i32);
                }
            }
        })
        .map(drop)
        .during(|| "start the thread that waits for signals".to_owned())
}

/// Blocks until a signal comes that would end the program. [`clean_up_on_signals`] must have been called.
pub(crate) fn wait_for_signal() -> Result<(), LabError> {
    let (signal, came) = channel();
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
    came.recv().during(|| "wait for Ctrl-C".to_owned())
}

static WAITING: Mutex<Option<Sender<()>>> = Mutex::new(None);

/// Whether this process made itself a user namespace to build labs in.
pub(crate) fn in_user_namespace() -> bool {
    TOOK_USER_NAMESPACE.load(Ordering::Relaxed)
}

static TOOK_USER_NAMESPACE: AtomicBool = AtomicBool::new(false);

fn ending_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

fn take_user_namespace() -> Result<(), LabError> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refused(error.to_string()))?;
    // user_namespaces(7): an ordinary user may map its own group only after giving up setgroups.
    fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {uid} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {gid} 1")))
        .map_err(|error| refused(error.to_string()))?;
    // Ubuntu's AppArmor lets the namespace be made, but without rights in it.
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| refused(format!("a user namespace gives no rights ({error})")))?;
    TOOK_USER_NAMESPACE.store(true, Ordering::Relaxed);
    Ok(())
}

fn refused(reason: String) -> LabError {
    LabError::Privilege {
        what: "this user may not make network namespaces",
        reason,
        remedy: format!("Run the lab as root, or allow user namespaces:{}", obstacles()),
    }
}

/// The switches that are known to forbid user namespaces, with what they are set to here.
fn obstacles() -> String {
    let switches = [
        ("user/max_user_namespaces", "0", "15000"),
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    let found: String = switches
        .iter()
        .filter(|(name, bad, _)| {
            fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|value| value.trim() == *bad)
        })
        .map(|(name, bad, good)| {
            let name = name.replace('/', ".");
            format!("\n  {name} is {bad}: sysctl -w {name}={good}")
        })
        .collect();
    if found.is_empty() {
        return " none of the usual sysctls forbids them, so it is a container's or a security module's limit.".to_owned();
    }
    found
}

fn check_tun() -> Result<(), LabError> {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") else { return Ok(()) };
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "Load the module: modprobe tun. In a container, pass the device on: --device /dev/net/tun."
        }
        _ => "Run the lab as root, or let users open it, as most systems do: chmod 0666 /dev/net/tun.",
    };
    Err(LabError::Privilege {
        what: "/dev/net/tun cannot be opened",
        reason: error.to_string(),
        remedy: remedy.to_owned(),
    })
}

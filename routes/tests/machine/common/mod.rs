//! Network namespaces for tests: each test runs in a thread of its own that moves into a new one, which ends with it.

pub mod attempt;
pub mod etc;
pub mod world;

use std::{
    fs::File,
    future::Future,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::Command,
};

use nix::sched::{CloneFlags, setns, unshare};
use routes::{Cleaned, Error, State};

/// Says that a test cannot run here. With BREAKOUT_REQUIRE_ALL in the environment that is a failure.
pub fn skip(why: &str) {
    let sentence = format!("skipped, because {why}");
    assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "{sentence}");
    println!("{sentence}");
}

/// Why namespaces cannot be made here, if so.
pub fn unable() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("this needs root")
}

/// Runs `test` in a new network namespace, on a current-thread runtime; or says why not.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if let Some(reason) = unable() {
        return skip(reason);
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run(["ip", "link", "set", "lo", "up"]);
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        });
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Takes the lock and undoes what is noted there.
pub async fn clean(directory: &Path) -> Result<Cleaned, Error> {
    routes::clean(&State::open(directory)?).await
}

/// An open namespace beside the test's own.
pub struct Neighbour(pub OwnedFd);

impl Neighbour {
    pub fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run(["ip", "link", "set", "lo", "up"]);
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        };
        Self(std::thread::spawn(open).join().unwrap())
    }

    /// Runs `work` inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }
}

pub fn run<const N: usize>(command: [&str; N]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether there is such a program; or says that what needs it cannot run.
pub fn has(program: &str) -> bool {
    let is_there = Command::new(program).arg("-V").output().is_ok();
    if !is_there {
        skip(&format!("there is no {program}"));
    }
    is_there
}

/// Opens a TUN (linux/if_tun.h); it vanishes when dropped.
pub fn open_tun(name: &str) -> OwnedFd {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zeroes is a valid ifreq, and the ioctl writes no further than its end.
    let created = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request)
    };
    assert_eq!(created, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: ioctl on an fd of ours, no memory passed.
    let fd = unsafe { libc::fcntl(device.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    assert!(fd >= 0);
    // SAFETY: fcntl has just made it, nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{During, LabError, Stop, StopSource};

type Job = Box<dyn FnOnce() + Send>;

/// A computer of the lab: one long-lived thread in a network and a mount namespace of its own.
///
/// The namespaces are held by threads, sockets and child processes only, never by a name in the file system:
/// they are gone when this is dropped and also when the process is killed.
#[derive(Debug)]
pub struct Host {
    name: String,
    tid: i32,
    netns: OwnedFd,
    jobs: Option<Sender<Job>>,
    holder: Option<JoinHandle<()>>,
    services: Mutex<Vec<JoinHandle<()>>>,
    stop: StopSource,
}

impl Host {
    /// Makes a host without any link; its loopback is down.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let (jobs, inbox) = channel::<Job>();
        let (report, ready) = sync_channel(1);
        let holder = thread::Builder::new()
            .name(format!("host-{name}"))
            .spawn(move || {
                let made = enter_new_namespaces();
                let failed = made.is_err();
                if report.send(made).is_err() || failed {
                    return;
                }
                for job in inbox {
                    job();
                }
            })
            .during(|| format!("start the thread of host `{name}`"))?;
        let (tid, netns) = ready
            .recv()
            .map_err(|_| LabError::HostGone(name.to_owned()))?
            .during(|| format!("make the namespaces of host `{name}`"))?;
        let stop = StopSource::new().during(|| format!("prepare host `{name}`"))?;
        Ok(Self {
            name: name.to_owned(),
            tid,
            netns,
            jobs: Some(jobs),
            holder: Some(holder),
            services: Mutex::default(),
            stop,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The thread that lives in this host's namespaces.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The network namespace, as other processes of this user can enter it while the lab lives.
    pub fn netns_path(&self) -> PathBuf {
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid).into()
    }

    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Runs `job` on the host's own thread and returns what it returns: sockets opened in it belong to this host for good, child
    /// processes spawned in it live there. Jobs run one after another. A panic of the job goes on in the caller.
    pub fn run<T, F>(&self, job: F) -> Result<T, LabError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let gone = || LabError::HostGone(self.name.clone());
        let (reply, answer) = sync_channel(1);
        let job: Job = Box::new(move || {
            // An error means that the caller has stopped waiting.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(job)));
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        match answer.recv().map_err(|_| gone())? {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Starts a thread in this host, for traffic.
    pub fn thread<T, F>(&self, name: &str, body: F) -> Result<JoinHandle<T>, LabError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let builder = thread::Builder::new().name(name.to_owned());
        // A new thread inherits the namespaces of the one that starts it.
        self.run(move || builder.spawn(body))?.during(|| format!("start `{name}` on host `{}`", self.name))
    }

    /// Starts a thread in this host that serves until the token says stop; it is joined when the host is dropped.
    pub fn serve<F>(&self, name: &str, body: F) -> Result<(), LabError>
    where
        F: FnOnce(Stop) + Send + 'static,
    {
        let stop = self.stop.token();
        let service = self.thread(name, move || body(stop))?;
        self.services.lock().unwrap_or_else(PoisonError::into_inner).push(service);
        Ok(())
    }

    /// Runs a program in this host to its end and returns what it said.
    pub fn output(&self, mut command: Command) -> Result<Output, LabError> {
        let program = command.get_program().to_owned();
        let what = || format!("run {} on host `{}`", Path::new(&program).display(), self.name);
        // Not on the host's own thread, which others may need meanwhile.
        let thread = self.thread("command", move || command.stdin(Stdio::null()).output())?;
        thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)
    }

    /// Writes a kernel parameter of this host's network, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), LabError> {
        let path = format!("/proc/sys/{name}");
        let (at, value) = (path.clone(), value.to_owned());
        self.run(move || std::fs::write(at, value))?
            .during(|| format!("write {path} on host `{}`", self.name))
    }

    /// Shows `file` in place of `at`, which exists, to this host alone.
    pub fn show_instead(&self, at: &Path, file: &Path) -> Result<(), LabError> {
        let (over, source) = (at.to_owned(), file.to_owned());
        self.run(move || mount(Some(&source), &over, None::<&str>, MsFlags::MS_BIND, None::<&str>))?
            .during(|| format!("show {} as {} on host `{}`", file.display(), at.display(), self.name))
    }

    /// Covers a directory with an empty one that only this host sees.
    pub fn cover(&self, directory: &Path) -> Result<(), LabError> {
        let at = directory.to_owned();
        self.run(move || mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")))?
            .during(|| format!("cover {} on host `{}`", directory.display(), self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.stop();
        self.jobs = None;
        let services = std::mem::take(self.services.get_mut().unwrap_or_else(PoisonError::into_inner));
        for thread in services.into_iter().chain(self.holder.take()) {
            // A service that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

fn enter_new_namespaces() -> io::Result<(i32, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    // Otherwise what is mounted here would show on the machine.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let netns = File::open("/proc/thread-self/ns/net")?;
    Ok((nix::unistd::gettid().as_raw(), netns.into()))
}

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{During, Host, LabError};

const POLL: Duration = Duration::from_millis(10);
/// How much of a program's output an error quotes, in bytes.
const QUOTE: u64 = 4096;

/// A program running in a host. It is killed when this is dropped, when the host is, and when the lab's process dies however it dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in `host`; its standard output and error go to `log`.
    pub fn spawn(host: &Host, name: &str, mut command: Command, log: &Path) -> Result<Self, LabError> {
        let file = File::create(log).during(|| format!("create {}", log.display()))?;
        let program = command.get_program().to_owned();
        let child = host
            .run(move || -> io::Result<Child> {
                command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
                let parent = Pid::this();
                // SAFETY: between fork and exec only async-signal-safe system calls are made.
                unsafe {
                    command.pre_exec(move || {
                        // Bound to the spawning thread, which is the host's own and lives as long as the host.
                        prctl::set_pdeathsig(Signal::SIGKILL)?;
                        if Pid::parent() != parent {
                            return Err(io::Error::other("the lab died meanwhile"));
                        }
                        Ok(())
                    });
                }
                command.spawn()
            })?
            .during(|| format!("start {} on host `{}`", Path::new(&program).display(), host.name()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the program has said so far.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the program has said a line that contains `text`.
    pub fn wait_for_line(&mut self, text: &str, patience: Duration) -> Result<(), LabError> {
        self.wait_until(&format!("a line with `{text}`"), patience, |said| said.contains(text))
    }

    /// Waits until `ready` holds for the program's output so far; `awaited` says in an error what that would have been.
    pub fn wait_until(
        &mut self,
        awaited: &str,
        patience: Duration,
        mut ready: impl FnMut(&str) -> bool,
    ) -> Result<(), LabError> {
        let started = Instant::now();
        loop {
            if ready(&self.output()) {
                return Ok(());
            }
            if let Some(status) =
                self.child.try_wait().during(|| format!("ask whether {} still runs", self.name))?
            {
                return Err(LabError::Ended {
                    program: self.name.clone(),
                    status: status.to_string(),
                    said: self.last_words(),
                });
            }
            if started.elapsed() > patience {
                return Err(self.overdue(awaited, patience));
            }
            sleep(POLL);
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.pid()).during(|| format!("signal {}", self.name))?;
        kill(Pid::from_raw(pid), signal).during(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for the program to end; `None` if it still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, LabError> {
        let started = Instant::now();
        loop {
            let status = self.child.try_wait().during(|| format!("wait for {}", self.name))?;
            if status.is_some() || started.elapsed() > patience {
                return Ok(status);
            }
            sleep(POLL);
        }
    }

    /// The error for something that did not come within `patience`.
    pub(crate) fn overdue(&self, awaited: &str, patience: Duration) -> LabError {
        LabError::NotReady {
            program: self.name.clone(),
            awaited: awaited.to_owned(),
            after: patience,
            said: self.last_words(),
        }
    }

    /// The end of what it has said, for an error.
    pub fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut log = File::open(&self.log)?;
            let len = log.metadata()?.len();
            log.seek(SeekFrom::Start(len.saturating_sub(QUOTE)))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        match read() {
            Ok(said) if said.is_empty() => "(nothing)".to_owned(),
            Ok(said) => said,
            Err(error) => format!("({}: {error})", self.log.display()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks a program up in PATH, to its real file: hosts may cover the directory of a symbolic link.
pub fn find_program(program: &str, remedy: &str) -> Result<PathBuf, LabError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // System programs are often kept out of an ordinary user's PATH.
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(OsStr::new(program)))
        .find_map(|file| file.canonicalize().ok().filter(|file| file.is_file()))
        .ok_or_else(|| LabError::Missing { program: program.to_owned(), remedy: remedy.to_owned() })
}

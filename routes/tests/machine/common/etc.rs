//! An /etc, a /run and a network of a test's own.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use routes::{
    Error, State,
    dns::{Dns, LOOPBACK, Settings, put_back},
};

use super::{run, skip, unable};

pub const RESOLV_CONF: &str = "/etc/resolv.conf";
const LIFE: &str = "BREAKOUT_TEST_LIFE";

/// Runs `test` where /etc and /run are its own, in a new network namespace, on a current-thread runtime; or says why not.
pub fn with_own_etc<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if let Some(reason) = unable() {
        return skip(reason);
    }
    let etc = tempfile::tempdir().unwrap();
    fs::set_permissions(etc.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(etc.path().join("nsswitch.conf"), "hosts: dns\npasswd: files\n").unwrap();
    for file in ["passwd", "group"] {
        fs::copy(Path::new("/etc").join(file), etc.path().join(file)).unwrap();
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
            run(["mount", "--make-rprivate", "/"]);
            run(["mount", "--bind", etc.path().to_str().unwrap(), "/etc"]);
            run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"]);
            run(["ip", "link", "set", "lo", "up"]);
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        });
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// For a link that nobody looks at.
pub fn settings() -> Settings {
    Settings {
        link: "lo".to_owned(),
        index: 1,
        on_link: "10.99.0.1".parse().unwrap(),
        domains: vec!["mypurecloud.com".to_owned(), "pure.cloud".to_owned()],
    }
}

pub fn servers(dns: &Dns) -> Vec<String> {
    dns.before().iter().map(ToString::to_string).collect()
}

pub fn plain_lines(path: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// What stands in /etc, each with its kind, mode and owner.
pub fn look() -> BTreeMap<PathBuf, String> {
    let entry = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if metadata.is_file() {
            format!("{:?}", fs::read(&path).unwrap())
        } else {
            String::new()
        };
        let said = format!("{:o} {}:{} {content}", metadata.mode(), metadata.uid(), metadata.gid());
        (path, said)
    };
    fs::read_dir("/etc").unwrap().map(|found| entry(found.unwrap().path())).collect()
}

/// As programs that care do it.
pub fn replace(content: &str) {
    fs::write("/etc/resolv.conf.tmp", content).unwrap();
    fs::rename("/etc/resolv.conf.tmp", RESOLV_CONF).unwrap();
}

pub async fn soon(future: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap();
}

/// What the C library finds.
pub fn getent(name: &str) -> String {
    let output = Command::new("getent").args(["ahostsv4", name]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// One life in a process of its own, which dies at that step: the test `life`, by way of [`live`].
pub fn live_and_die(life: &str, directory: &Path, crash_at: u64) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", life]).env(LIFE, directory).env("BREAKOUT_CRASH_AT", crash_at.to_string());
    command.stdout(Stdio::null()).status().unwrap()
}

/// Sets up, has `between` done and tears down, where [`live_and_die`] asks for it. The state is in `state` of the directory.
pub fn live(between: impl AsyncFn(&Path, &State, &mut Dns)) {
    let Some(directory) = std::env::var_os(LIFE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = Path::new(&directory);
        let state = State::open(&directory.join("state")).unwrap();
        let mut dns = Dns::set_up(&state, settings()).await.unwrap();
        between(directory, &state, &mut dns).await;
        tear_down(dns, &state).await.unwrap();
    });
}

/// Ends it as the daemon does: leaves all as it was found, or as others have made it since.
pub async fn tear_down(dns: Dns, state: &State) -> Result<(), Error> {
    drop(dns);
    put_back(state).await.map(drop)
}

/// The files of a Debian package that `./do peers` has unpacked; or says that there are none.
pub fn package(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = |directory: PathBuf| Some(directory.parent()?.join("debian").join(name));
    let found = std::env::split_paths(&path).filter_map(beside).find(|package| package.is_dir());
    if found.is_none() {
        skip(&format!("the package {name} is not unpacked (./do peers)"));
    }
    found
}

/// Seconds. No test waits for a cache to forget by itself.
const TTL: u32 = 600;

/// A DNS server that answers every question with its own address, and remembers the names.
pub struct Server {
    asked: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(address.into(), 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (names, over) = (asked.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let mut query = [0; 4096];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                let (name, answer) = answer(&query[..length], address);
                names.lock().unwrap().push(name);
                socket.send_to(&answer, client).unwrap();
            }
        });
        Self { asked, is_over, thread: Some(thread) }
    }

    pub fn breakouts() -> Self {
        Self::new(LOOPBACK)
    }

    pub fn was_asked_for(&self, name: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.eq_ignore_ascii_case(name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// RFC 1035 section 4: one question, and to one about an address one answer.
fn answer(query: &[u8], address: Ipv4Addr) -> (String, Vec<u8>) {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    let question = &query[12..at + 5];
    let is_about_address = question[question.len() - 4..] == [0, 1, 0, 1];
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, u8::from(is_about_address), 0, 0, 0, 0]);
    message.extend(question);
    if is_about_address {
        message.extend([0xc0, 12, 0, 1, 0, 1]);
        message.extend(TTL.to_be_bytes());
        message.extend([0, 4]);
        message.extend(address.octets());
    }
    (labels.join("."), message)
}

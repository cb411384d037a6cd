//! The socket between a daemon and its clients, good and bad.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers")]

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use control::{
    Access, Call, Client, ClientError, Command, Flows, MAX_REQUEST, RefusalKind, Reloaded, Reply, Server,
    VERSION,
};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(10);

/// A daemon's control side that answers `flows` and `reload`, and never answers `status`.
struct Daemon {
    directory: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(&path, Access::default()).unwrap();
                ready.send(()).unwrap();
                let (calls, mut asked) = mpsc::channel::<Call>(4);
                let mut unanswered = Vec::new();
                let answering = async {
                    while let Some(call) = asked.recv().await {
                        match call.command {
                            Command::Status => unanswered.push(call),
                            Command::Flows => {
                                let _ =
                                    call.answer.send(Reply::Flows(Flows { flows: Vec::new(), omitted: 3 }));
                            }
                            Command::Reload => {
                                let reloaded = Reloaded {
                                    changes: vec!["x".repeat(3 << 20)],
                                    cut_flows: 0,
                                    warnings: vec![],
                                };
                                let _ = call.answer.send(Reply::Reloaded(reloaded));
                            }
                            Command::Names | Command::Down => drop(call),
                        }
                    }
                };
                tokio::select! {
                    served = server.serve(calls) => served.unwrap(),
                    () = answering => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { directory, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    fn assert_alive(&self) {
        let flows = self.client().call(Command::Flows, LIMIT).unwrap();
        assert_eq!(flows, Reply::Flows(Flows { flows: Vec::new(), omitted: 3 }));
    }

    /// Sends bytes as they are and returns all that comes back.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        // The daemon may have refused and closed before everything is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the daemon's thread panicked");
        }
    }
}

#[test]
fn one_connection_carries_several_requests() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    for _ in 0..3 {
        assert!(matches!(client.call(Command::Flows, LIMIT), Ok(Reply::Flows(_))));
    }
}

#[test]
fn an_answer_of_megabytes_arrives_whole() {
    let daemon = Daemon::start();
    match daemon.client().call(Command::Reload, LIMIT).unwrap() {
        Reply::Reloaded(reloaded) => assert_eq!(reloaded.changes[0].len(), 3 << 20),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rubbish_is_refused_and_harms_nobody() {
    let daemon = Daemon::start();
    let too_long = vec![b'a'; MAX_REQUEST * 3];
    let deep = [b"[".repeat(MAX_REQUEST - 2), b"\n".to_vec()].concat();
    let rubbish: [(&[u8], &str); 10] = [
        (b"\n", "malformed"),
        (b"hello\n", "malformed"),
        (b"\0\xff\xfe\n", "malformed"),
        (b"{}\n", "malformed"),
        (b"{\"version\":2}\n", "malformed"),
        (b"{\"version\":2,\"command\":\"format-disk\"}\n", "malformed"),
        (b"{\"version\":-1,\"command\":\"status\"}\n", "malformed"),
        (b"{\"version\":1,\"command\":\"status\"}\n", "version"),
        (&deep, "malformed"),
        (&too_long, "malformed"),
    ];
    for (bytes, kind) in rubbish {
        let answer = daemon.raw(bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        if bytes == too_long {
            // Unread bytes in the socket turn the close into a reset, which may overtake the answer.
            assert!(answer.is_empty() || answer.contains(kind), "{shown}: {answer}");
        } else {
            assert!(answer.contains(&format!("\"kind\":\"{kind}\"")), "{shown}: {answer}");
        }
        daemon.assert_alive();
    }
}

#[test]
fn half_a_request_gets_no_answer() {
    let daemon = Daemon::start();
    assert_eq!(daemon.raw(b"{\"version\":2,\"comm"), "");
    daemon.assert_alive();
}

#[test]
fn a_client_that_says_nothing_is_dropped_and_hinders_nobody() {
    let daemon = Daemon::start();
    let mut silent = UnixStream::connect(daemon.path()).unwrap();
    daemon.assert_alive();
    silent.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "closed by the daemon");
}

#[test]
fn a_client_that_never_reads_its_answer_hinders_nobody() {
    let daemon = Daemon::start();
    let mut deaf = UnixStream::connect(daemon.path()).unwrap();
    writeln!(deaf, "{{\"version\":{VERSION},\"command\":\"reload\"}}").unwrap();
    thread::sleep(Duration::from_millis(100));
    daemon.assert_alive();
}

#[test]
fn more_clients_than_places_are_told_so() {
    let daemon = Daemon::start();
    let hanging: Vec<_> = (0..16).map(|_| UnixStream::connect(daemon.path()).unwrap()).collect();
    thread::sleep(Duration::from_millis(100));
    match daemon.client().call(Command::Flows, LIMIT) {
        Err(ClientError::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::Busy),
        other => panic!("{other:?}"),
    }
    drop(hanging);
    thread::sleep(Duration::from_millis(100));
    daemon.assert_alive();
}

#[test]
fn a_client_does_not_wait_beyond_its_limit() {
    let daemon = Daemon::start();
    let limit = Duration::from_millis(200);
    let asked = Instant::now();
    assert!(matches!(daemon.client().call(Command::Status, limit), Err(ClientError::Timeout(_))));
    assert!(asked.elapsed() >= limit);
}

#[test]
fn a_request_that_is_dropped_says_that_the_daemon_ends() {
    let daemon = Daemon::start();
    match daemon.client().call(Command::Down, LIMIT) {
        Err(ClientError::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::Busy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_daemon_the_client_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    assert!(matches!(Client::connect(&path), Err(ClientError::NoDaemon(found)) if found == path));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::connect(&path), Err(ClientError::NoDaemon(_))), "a dead daemon's socket");
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_a_live_ones_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _in_runtime = runtime.enter();
    let server = Server::bind(&path, Access::default()).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
    assert_eq!(mode(&path), 0o600);
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_group_opens_the_socket_for_itself_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _in_runtime = runtime.enter();
    let own = nix::unistd::Group::from_gid(nix::unistd::Gid::effective()).unwrap().unwrap();
    let server = Server::bind(&path, Access::for_group(Some(&own.name)).unwrap()).unwrap();
    assert_eq!(mode(&path), 0o660);
    server.set_access(Access::default()).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert!(Access::for_group(Some("no-such-group")).unwrap_err().to_string().contains("no-such-group"));
}

/// SO_PEERCRED decides even where the file's mode would let the client in.
#[test]
fn another_user_is_denied() {
    if !nix::unistd::Uid::effective().is_root() {
        return skip("only root can become another user");
    }
    let daemon = Daemon::start();
    std::fs::set_permissions(daemon.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(daemon.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let path = daemon.path();
    let answer = thread::spawn(move || {
        // SAFETY: takes no pointers. The bare system call changes this thread only, unlike glibc's function.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        Client::connect(&path).and_then(|mut client| client.call(Command::Flows, LIMIT))
    })
    .join()
    .unwrap();
    match answer {
        Err(ClientError::Refused(refusal)) => {
            assert_eq!(refusal.kind, RefusalKind::Denied);
            assert!(refusal.message.contains("65534"), "{}", refusal.message);
        }
        other => panic!("{other:?}"),
    }
    daemon.assert_alive();
}

fn skip(why: &str) {
    assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "skipped, because {why}");
    println!("skipped, because {why}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

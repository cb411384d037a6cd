use std::{
    cell::Cell,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::{Gid, Group, Uid, User};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::UCred},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::{
    Command, MAX_REPLY, MAX_REQUEST, Refusal, RefusalKind, Reply, VERSION,
    line::{Line, read_line},
    messages::{Answer, Request, Versioned},
};

/// How long a client may take to ask, and to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may be in the making: a reload resolves names.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_CLIENTS: usize = 16;

/// Who besides root and the daemon's own user may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub group: Option<Gid>,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Call {
    pub command: Command,
    /// Who asks; for the log.
    pub uid: u32,
    pub answer: oneshot::Sender<Reply>,
}

/// A bound control socket. The file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    access: Cell<Access>,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("the control group `{0}` does not exist")]
    NoGroup(String),
    #[error("cannot look up the control group `{group}`")]
    Group { group: String, source: io::Error },
    #[error("cannot open the control socket {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

impl Access {
    /// Access for root and, if given, the members of a group.
    pub fn for_group(group: Option<&str>) -> Result<Self, BindError> {
        let Some(name) = group else { return Ok(Self::default()) };
        let found = Group::from_name(name)
            .map_err(|error| BindError::Group { group: name.to_owned(), source: error.into() })?
            .ok_or_else(|| BindError::NoGroup(name.to_owned()))?;
        Ok(Self { group: Some(found.gid) })
    }

    fn admits(self, peer: &UCred) -> bool {
        let uid = Uid::from_raw(peer.uid());
        uid.is_root()
            || uid == Uid::effective()
            || self.group.is_some_and(|group| peer.gid() == group.as_raw() || is_member(uid, group))
    }
}

impl Server {
    /// Binds `path`, replacing what a dead daemon left there: the caller holds the lock that says it is dead.
    /// Must be called within a tokio runtime.
    pub fn bind(path: &Path, access: Access) -> Result<Self, BindError> {
        let failed = |source| BindError::Socket { path: path.to_owned(), source };
        // Permissions are right before the name can be found: bound elsewhere, then renamed.
        let unfinished = path.with_extension("new");
        remove_if_there(&unfinished).map_err(failed)?;
        let listener = UnixListener::bind(&unfinished).map_err(failed)?;
        restrict(&unfinished, access)
            .and_then(|()| fs::rename(&unfinished, path))
            .inspect_err(|_| drop(fs::remove_file(&unfinished)))
            .map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), access: Cell::new(access) })
    }

    /// Changes who may connect; connections that are open stay.
    pub fn set_access(&self, access: Access) -> Result<(), BindError> {
        restrict(&self.path, access)
            .map_err(|source| BindError::Socket { path: self.path.clone(), source })?;
        self.access.set(access);
        Ok(())
    }

    pub fn access(&self) -> Access {
        self.access.get()
    }

    /// Accepts connections and hands their requests to `calls`; each connection has a task of its own on the
    /// current runtime. Returns only with an error of the listening socket.
    pub async fn serve(&self, calls: mpsc::Sender<Call>) -> io::Result<()> {
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let (stream, _) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "cannot accept a control client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let refusal = self.refusal(&stream);
            let place = Arc::clone(&clients).try_acquire_owned();
            let calls = calls.clone();
            tokio::spawn(async move {
                let served = match (refusal, place) {
                    (Some(refusal), _) => write_reply(stream, refusal.into()).await,
                    (None, Err(_)) => write_reply(stream, too_many()).await,
                    (None, Ok(_place)) => converse(stream, &calls).await,
                };
                if let Err(error) = served {
                    tracing::debug!(%error, "a control client went away");
                }
            });
        }
    }

    fn refusal(&self, stream: &UnixStream) -> Option<Refusal> {
        match stream.peer_cred() {
            Ok(peer) if self.access().admits(&peer) => None,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), gid = peer.gid(), "refused a control client");
                Some(Refusal::new(RefusalKind::Denied, self.who_may(peer.uid())))
            }
            Err(error) => {
                Some(Refusal::new(RefusalKind::Denied, format!("cannot tell who is asking: {error}")))
            }
        }
    }

    fn who_may(&self, uid: u32) -> String {
        match self.access().group {
            Some(group) => format!(
                "uid {uid} is neither root nor a member of group {group}; ask to be made one, or use sudo"
            ),
            None => format!("uid {uid} is not root; use sudo, or name a group in `[control] group`"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
    }
}

async fn converse(stream: UnixStream, calls: &mpsc::Sender<Call>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let mut stream = BufReader::new(stream);
    loop {
        let line = match timeout(CLIENT_TIMEOUT, read_line(&mut stream, MAX_REQUEST)).await {
            Ok(line) => line?,
            Err(_) => return Ok(()),
        };
        let (reply, go_on) = match line {
            Line::End => return Ok(()),
            Line::TooLong => (
                Refusal::new(RefusalKind::Malformed, format!("a request has at most {MAX_REQUEST} bytes"))
                    .into(),
                false,
            ),
            Line::Whole(line) => match parse(&line) {
                Ok(command) => (ask(command, uid, calls).await, true),
                Err(refusal) => (refusal.into(), false),
            },
        };
        write_reply(stream.get_mut(), reply).await?;
        if !go_on {
            return Ok(());
        }
    }
}

fn parse(line: &[u8]) -> Result<Command, Refusal> {
    let malformed =
        |error: serde_json::Error| Refusal::new(RefusalKind::Malformed, format!("not a request: {error}"));
    let Versioned { version } = serde_json::from_slice(line).map_err(malformed)?;
    if version != VERSION {
        return Err(Refusal::new(
            RefusalKind::Version,
            format!(
                "this daemon speaks version {VERSION}, the client {version}; restart the daemon after an update"
            ),
        ));
    }
    serde_json::from_slice::<Request>(line).map(|request| request.command).map_err(malformed)
}

async fn ask(command: Command, uid: u32, calls: &mpsc::Sender<Call>) -> Reply {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        calls.send(Call { command, uid, answer }).await.ok()?;
        answered.await.ok()
    };
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Some(reply)) => reply,
        Ok(None) => Refusal::new(RefusalKind::Busy, "the daemon is ending").into(),
        Err(_) => {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Refusal::new(RefusalKind::Failed, format!("the daemon had no answer within {seconds} s")).into()
        }
    }
}

async fn write_reply(mut stream: impl AsyncWrite + Unpin, reply: Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Answer { version: VERSION, reply })?;
    line.push(b'\n');
    debug_assert!(line.len() <= MAX_REPLY);
    timeout(CLIENT_TIMEOUT, stream.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

fn too_many() -> Reply {
    Refusal::new(RefusalKind::Busy, format!("{MAX_CLIENTS} clients are being served already; try again"))
        .into()
}

fn restrict(path: &Path, access: Access) -> io::Result<()> {
    let mode = if access.group.is_some() { 0o660 } else { 0o600 };
    // The narrow mode first: between the two calls nobody may connect who may not after them.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let group = access.group.unwrap_or_else(Gid::effective);
    std::os::unix::fs::chown(path, None, Some(group.as_raw()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn is_member(uid: Uid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    nix::unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

/// Errors of one connection or of the moment, after which accepting goes on.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

//! Who writes /etc/resolv.conf, or what it leads to, is noticed by inotify(7).

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::io::unix::AsyncFd;

use super::{
    UPLINKS,
    file::{Entry, PATH},
    resolvconf,
};

#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<Descriptor>,
    /// What counts in the directories that have more.
    names: Vec<OsString>,
    /// The directories that have nothing else.
    entries: Vec<WatchDescriptor>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, for descriptors that close or change; this one does neither while it lives"
        )]
        let inotify = AsyncFd::new(Descriptor(inotify))?;
        let mut watch = Self { inotify, names: Vec::new(), entries: Vec::new() };
        watch.follow(&Entry::Missing)?;
        Ok(watch)
    }

    /// Watches the path, where `others` leads if it is a link, systemd-resolved's servers, and the directories of resolvconf's
    /// entries. To be called before any of it is read: what changes from here on is told.
    pub fn follow(&mut self, others: &Entry) -> io::Result<()> {
        self.names.clear();
        self.entries.clear();
        let paths = [Some(Path::new(PATH).to_owned()), others.target(), Some(Path::new(UPLINKS).to_owned())];
        for path in paths.iter().flatten() {
            self.add_way(path)?;
            // A mount's directory tells nothing of it.
            self.add(path)?;
        }
        for directory in resolvconf::ENTRIES.map(Path::new) {
            self.add_way(directory)?;
            let added = self.add(directory)?;
            self.entries.extend(added);
        }
        Ok(())
    }

    /// Resolves when there was a change. Safe to drop in between.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let events = match ready.get_inner().0.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            if events.iter().any(|event| self.is_about_it(event)) {
                return Ok(());
            }
        }
    }

    fn is_about_it(&self, event: &InotifyEvent) -> bool {
        let is_named = || event.name.as_ref().is_none_or(|name| self.names.contains(name));
        !event.mask.contains(AddWatchFlags::IN_IGNORED) && (self.entries.contains(&event.wd) || is_named())
    }

    /// The directories on the way to it, as far as there are any: each tells when the next one comes, goes or is replaced.
    fn add_way(&mut self, path: &Path) -> io::Result<()> {
        for step in path.ancestors() {
            if let (Some(directory), Some(name)) = (step.parent(), step.file_name()) {
                self.add(directory)?;
                self.names.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// `None` if there is nothing.
    fn add(&self, path: &Path) -> io::Result<Option<WatchDescriptor>> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE;
        match self.inotify.get_ref().0.add_watch(path, changes) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            added => Ok(Some(added?)),
        }
    }
}

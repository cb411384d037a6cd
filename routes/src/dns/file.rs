//! /etc/resolv.conf itself: what stands there, and putting something else in its place.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink},
    },
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::resolv_conf;
use crate::{Error, Undo, crash_point, journal::Journal};

pub const PATH: &str = "/etc/resolv.conf";
/// Where the next one is made: in the same directory, so that it can be renamed.
const NEW: &str = "/etc/resolv.conf.breakout";
/// Bytes. What is larger is no resolv.conf.
const SIZE_MAX: u64 = 64 * 1024;
const MODE: u32 = 0o644;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    Missing,
    Link { target: Text },
    File { content: Text, mode: u32, user: u32, group: u32 },
}

/// Bytes that are mostly ASCII. In JSON a string, each character a byte (Latin-1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Text(Vec<u8>);

/// Puts a file that names only our resolver there. What stood there is noted first; answers with it, and whether somebody
/// else had put it there since.
pub fn take(journal: &Journal) -> Result<(Entry, bool), Error> {
    let found = Entry::look().map_err(Error::ResolvConf)?;
    let before = others(noted(journal).as_ref(), &found);
    let ours = Entry::File { content: resolv_conf::ours(&before).into(), mode: MODE, user: 0, group: 0 };
    journal.renew(Undo::ResolvConf { before: before.clone() })?;
    if found.text() != ours.text() {
        ours.put().map_err(Error::ResolvConf)?;
    }
    Ok((before, !resolv_conf::is_ours(found.text())))
}

/// What the journal says was there before ours.
pub fn noted(journal: &Journal) -> Option<Entry> {
    journal.undo().into_iter().find_map(|undo| match undo {
        Undo::ResolvConf { before } => Some(before),
        _ => None,
    })
}

/// What there is or, in place of ours, what was there before it. That is what ours says itself: who has saved one restores an
/// older one than what is `noted` is about.
pub fn others(noted: Option<&Entry>, found: &Entry) -> Entry {
    let Entry::File { content: Text(content), mode, user, group } = found else { return found.clone() };
    let file =
        |content: Vec<u8>| Entry::File { content: content.into(), mode: *mode, user: *user, group: *group };
    match resolv_conf::before(content) {
        Some(before) if resolv_conf::is_ours(content) => before,
        Some(before) => file(resolv_conf::without_ours(content, &before)),
        None if resolv_conf::is_torn(content) => noted.cloned().unwrap_or_else(|| file(Vec::new())),
        None => found.clone(),
    }
}

/// Puts what was there before back where ours stands; what somebody else has put there since stays. Whether there was anything to do.
pub fn give_back(noted: Option<&Entry>) -> Result<bool, Error> {
    let given_back = || -> io::Result<bool> {
        remove(NEW)?;
        let found = Entry::look()?;
        let others = others(noted, &found);
        if others == found {
            return Ok(false);
        }
        others.put()?;
        Ok(true)
    };
    given_back().map_err(Error::ResolvConf)
}

impl Entry {
    /// What stands at /etc/resolv.conf.
    pub fn look() -> io::Result<Self> {
        let metadata = match fs::symlink_metadata(PATH) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(error),
        };
        if metadata.is_symlink() {
            return Ok(Self::Link { target: fs::read_link(PATH)?.into_os_string().into_vec().into() });
        }
        if !metadata.is_file() {
            return Err(io::Error::other("it is neither a file nor a symbolic link"));
        }
        let content = read(Path::new(PATH))?.into();
        Ok(Self::File {
            content,
            mode: metadata.mode() & 0o7777,
            user: metadata.uid(),
            group: metadata.gid(),
        })
    }

    /// What who opens the path reads: a link is followed as it is now. Nothing where that cannot be read.
    pub fn content(&self) -> Vec<u8> {
        match self {
            Self::Missing => Vec::new(),
            Self::Link { .. } => self.target().and_then(|target| read(&target).ok()).unwrap_or_default(),
            Self::File { content, .. } => content.0.clone(),
        }
    }

    /// Where a link leads to.
    pub fn target(&self) -> Option<PathBuf> {
        let Self::Link { target } = self else { return None };
        let directory = Path::new(PATH).parent()?;
        Some(directory.join(std::ffi::OsStr::from_bytes(&target.0)))
    }

    fn text(&self) -> &[u8] {
        match self {
            Self::File { content, .. } => &content.0,
            Self::Missing | Self::Link { .. } => &[],
        }
    }

    /// Makes /etc/resolv.conf this, in one step: a crash, of the machine too, leaves the old or the new. In a container it may be a
    /// mount, or its directory read-only; then a file's content is overwritten.
    fn put(&self) -> io::Result<()> {
        crash_point::reached();
        match self.put_by_renaming() {
            Err(error) if is_fixed(&error) => self.overwrite(),
            put => put,
        }
    }

    fn put_by_renaming(&self) -> io::Result<()> {
        remove(NEW)?;
        match self {
            Self::Missing => {
                remove(PATH)?;
                return sync_directory();
            }
            Self::Link { target } => symlink(std::ffi::OsStr::from_bytes(&target.0), NEW)?,
            Self::File { content, mode, user, group } => {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(NEW)?;
                crash_point::reached();
                let metadata = file.metadata()?;
                if (metadata.uid(), metadata.gid()) != (*user, *group) {
                    fchown(&file, Some(*user), Some(*group))?;
                }
                file.set_permissions(Permissions::from_mode(*mode))?;
                file.write_all(&content.0)?;
                file.sync_all()?;
            }
        }
        crash_point::reached();
        fs::rename(NEW, PATH).inspect_err(|_| drop(remove(NEW)))?;
        crash_point::reached();
        sync_directory()
    }

    fn overwrite(&self) -> io::Result<()> {
        let Self::File { content, .. } = self else {
            return Err(io::Error::other("it is a mount, and was none before"));
        };
        let mut file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(PATH)?;
        file.set_len(0)?;
        crash_point::reached();
        file.write_all(&content.0)?;
        file.sync_all()
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0.into_iter().map(char::from).collect()
    }
}

impl TryFrom<String> for Text {
    type Error = std::char::TryFromCharError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.chars().map(u8::try_from).collect::<Result<_, _>>().map(Self)
    }
}

pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(SIZE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > SIZE_MAX {
        return Err(io::Error::other(format!("it has more than {SIZE_MAX} bytes")));
    }
    Ok(content)
}

fn sync_directory() -> io::Result<()> {
    Path::new(PATH).parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Where nothing can be removed there may be nothing to remove.
fn remove(path: &str) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_fixed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EROFS | libc::EXDEV))
}

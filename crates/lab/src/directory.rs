use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{During, LabError};

/// A lab's own directory for keys, configurations, logs and sockets; removed when dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

const PREFIX: &str = "breakout-lab-";

static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Directory {
    /// Makes one that only this user can enter. Removes what labs that were killed have left.
    pub fn new() -> Result<Self, LabError> {
        remove_orphans();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                // What a killed lab left under the same process id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result.during(|| format!("make the directory {}", path.display()))?,
            }
            LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
            return Ok(Self(path));
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a file of this name would lie.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file that only this user can read.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf, LabError> {
        let path = self.file(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .during(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Removes the directories of all labs of this process, before it exits without dropping them.
    pub(crate) fn remove_all() {
        for path in LIVE.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Nobody is left to tell.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Directories of processes that no longer live; other users' ones cannot be removed, which is as well.
fn remove_orphans() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if owner.is_some_and(|owner: u32| !Path::new(&format!("/proc/{owner}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
        // A directory in /tmp that cannot be removed is no reason to fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_private_and_goes_away() {
        let directory = Directory::new().unwrap();
        let file = directory.write("key", "secret").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(directory.path()), mode(&file)), (0o700, 0o600));
        drop(directory);
        assert!(!file.exists());
    }

    #[test]
    fn what_dead_labs_have_left_is_removed() {
        // Above the kernel's largest process id (PID_MAX_LIMIT, 2²²).
        let orphan = std::env::temp_dir().join(format!("{PREFIX}4194305-0"));
        fs::create_dir_all(orphan.join("state")).unwrap();
        drop(Directory::new().unwrap());
        assert!(!orphan.exists());
    }
}

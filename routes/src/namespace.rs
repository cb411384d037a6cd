//! Network namespaces by the names that /proc has for them: `net:[4026531840]`.

use std::{fs, io, path::Path};

/// The calling thread's.
pub(crate) fn own() -> io::Result<String> {
    name(Path::new("/proc/thread-self/ns/net"))
}

/// Whether no mount has it any more, and no thread that this process may look at.
pub(crate) fn is_gone(namespace: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    !mounts.split(' ').any(|field| field == namespace) && threads().all(|thread| thread != namespace)
}

/// Each thread's. What is no process has none, and one may end meanwhile.
fn threads() -> impl Iterator<Item = String> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(Path::new("/proc"))
        .flat_map(move |process| entries(&process.path().join("task")))
        .filter_map(|thread| name(&thread.path().join("ns/net")).ok())
}

fn name(link: &Path) -> io::Result<String> {
    Ok(fs::read_link(link)?.to_string_lossy().into_owned())
}

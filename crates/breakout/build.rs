//! Says of what commit the program is, as BREAKOUT_VERSION: `0.1.0 (436c0d5)`, and `-dirty` behind the commit if the sources were others. Where
//! they are no working tree of git (a source archive), it is the version alone.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where sources of the program lie, from the workspace's root; besides them `crates/*/src`.
const SOURCES: [&str; 4] = ["Cargo.lock", "dataplane/src", "dataplane/bpf", "routes/src"];

fn main() {
    let version = env!("CARGO_PKG_VERSION");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    println!("cargo::rerun-if-changed=build.rs");
    match commit(&root) {
        None => println!("cargo::rustc-env=BREAKOUT_VERSION={version}"),
        Some(commit) => {
            println!("cargo::rustc-env=BREAKOUT_VERSION={version} ({commit})");
            watch(&root);
        }
    }
}

fn commit(root: &Path) -> Option<String> {
    // An archive that was unpacked within another tree is not that tree.
    let top = PathBuf::from(git(root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    git(root, &["describe", "--always", "--dirty", "--abbrev=12"])
}

/// Whatever moves HEAD writes its log; what makes the tree dirty is a source, and then the program is compiled anyway.
fn watch(root: &Path) {
    let of_git = |name: &str| Some(root.join(git(root, &["rev-parse", "--git-path", name])?));
    let git = ["HEAD", "logs/HEAD"].into_iter().filter_map(of_git);
    let crates = std::fs::read_dir(root.join("crates")).into_iter().flatten().flatten();
    let sources = crates.map(|entry| entry.path().join("src")).chain(SOURCES.map(|path| root.join(path)));
    // A path that is not there would make cargo run this each time.
    for path in git.chain(sources).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}

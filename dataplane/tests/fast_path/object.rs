//! The object that is checked in is what its source says.

use std::path::Path;
use std::process::Command;

use dataplane::fast_path::OBJECT;

use crate::differential;
use crate::machine::skip;
use crate::programs::Programs;

/// The clang that made the object that is checked in.
const CLANG: &str = "14.";

#[test]
fn a_build_here_equals_the_one_that_is_checked_in() {
    let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let Some(version) = clang_version() else { return skip("clang is missing") };
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fast_path.o");
    let status = Command::new(room.join("build")).arg(&built).status().unwrap();
    assert!(status.success(), "bpf/build failed with clang {version}");
    let built = std::fs::read(&built).unwrap();
    if version.starts_with(CLANG) {
        assert!(built == OBJECT, "the source was changed without running bpf/build");
        return;
    }
    // Another compiler writes other instructions, which must do the same.
    match Programs::start_object(&built) {
        Ok(programs) => differential::hold(programs, 3000),
        Err(why) => skip(&why),
    }
}

fn clang_version() -> Option<String> {
    let told = Command::new("clang").arg("-dumpversion").output().ok()?;
    Some(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

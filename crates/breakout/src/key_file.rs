//! Files with a private or a pre-shared key: one line of base64, readable by nobody but their owner.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use tunnel::{PresharedKey, PrivateKey};
use zeroize::Zeroizing;

use crate::failure::{Failure, Problem};

/// Far more than a key with its newline.
const MAX_LENGTH: u64 = 1024;

pub fn private_key(path: &Path) -> Result<PrivateKey, Failure> {
    let text = read(path)?;
    text.parse().map_err(|error| not_a_key(path, "private", error).into())
}

pub fn preshared_key(path: &Path) -> Result<PresharedKey, Failure> {
    let text = read(path)?;
    text.parse().map_err(|error| not_a_key(path, "pre-shared", error).into())
}

/// Makes a key file; one that exists is never overwritten.
pub fn create(path: &Path, key: &str) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let problem = Failure::system(format!("cannot make the key file {}", path.display()));
        if error.kind() == io::ErrorKind::AlreadyExists {
            return problem
                .because(error)
                .remedy("a key is never overwritten: give another name, or move the old key away yourself");
        }
        problem.because(error)
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let line = Zeroizing::new(format!("{key}\n"));
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(())
}

fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let problem = Failure::usage(format!("cannot read the key file {shown}"));
        match error.kind() {
            io::ErrorKind::NotFound => problem.because(error).remedy(format!(
                "`breakout keygen {shown}` makes one; a relative name is looked for beside the configuration"
            )),
            io::ErrorKind::PermissionDenied => {
                problem.because(error).remedy("run it as the file's owner or as root")
            }
            _ => problem.because(error),
        }
    };
    // O_NONBLOCK: a FIFO in the file's place must not hold the daemon up.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    refuse_if_shared(&file, path)?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_LENGTH as usize));
    file.take(MAX_LENGTH).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn refuse_if_shared(file: &File, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let metadata = file
        .metadata()
        .map_err(|error| Failure::usage(format!("cannot look at the key file {shown}")).because(error))?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!("the key file {shown} is not a regular file")).into());
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::usage(format!("the key file {shown} is open to others: its mode is {mode:04o}"))
        .remedy(format!(
            "chmod 600 {shown}; if others may have read it, make a new key with `breakout keygen`"
        ))
        .into())
}

fn not_a_key(path: &Path, kind: &str, error: tunnel::KeyError) -> Problem {
    Failure::usage(format!("{} holds no {kind} key", path.display()))
        .because(error)
        .remedy("the file holds one line: 32 bytes in base64, as `breakout keygen` or `wg genkey` write it")
}

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tunnel::{KeyError, PresharedKey, PrivateKey};

use crate::{
    exit::{self, Exit},
    failure::{Failure, Problem},
    key_file, output,
};

/// Make a private key and print its public key
///
/// The file is made with mode 0600; one that exists is never overwritten.
/// The public key goes to the gateway's administrator, the file never leaves this machine.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Keygen {
    /// The key file to make; with --public, the one to read
    file: PathBuf,
    /// Print the public key of an existing key file
    #[arg(long, conflicts_with = "preshared")]
    public: bool,
    /// Make a pre-shared key instead, which both sides keep secret; nothing is printed
    #[arg(long)]
    preshared: bool,
    /// Print one JSON object: file, public_key
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Made {
    file: PathBuf,
    public_key: Option<String>,
}

impl Keygen {
    pub fn run(self) -> Result<Exit, Failure> {
        let public_key = self.key()?;
        if self.json {
            output::json(&Made { file: self.file, public_key })?;
        } else if let Some(public_key) = public_key {
            output::text(&format!("{public_key}\n"))?;
        }
        Ok(Exit::Ok)
    }

    /// Makes or reads the key; returns the public one where there is one.
    fn key(&self) -> Result<Option<String>, Failure> {
        if self.preshared {
            key_file::create(&self.file, &PresharedKey::generate().map_err(no_random)?.to_base64())?;
            return Ok(None);
        }
        if self.public {
            return Ok(Some(key_file::private_key(&self.file)?.public_key().to_string()));
        }
        let key = PrivateKey::generate().map_err(no_random)?;
        key_file::create(&self.file, &key.to_base64())?;
        Ok(Some(key.public_key().to_string()))
    }
}

fn no_random(error: KeyError) -> Problem {
    Failure::system("cannot make a key").because(error)
}

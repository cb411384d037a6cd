use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use policy::Config;
use serde::Serialize;
use tunnel::{KeyError, PresharedKey, PrivateKey};
use zeroize::Zeroizing;

use crate::{
    configuration,
    exit::{self, Exit},
    failure::{Failure, Problem},
    import::{self, Converted, WgQuick},
    key_file, output,
};

/// Turn a wg-quick file into a configuration
///
/// Writes NAME.toml, NAME.key and, where there is a pre-shared key, NAME.psk (the keys with mode 0600); NAME is the
/// file's. AllowedIPs become the signaling set. What cannot be carried over is said; nothing in the file is executed,
/// and no file is overwritten.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Import {
    /// A file as wg-quick reads it, such as wg0.conf
    file: PathBuf,
    /// Where to write; made if it does not exist
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Print one JSON object: config, key, preshared_key, notes
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Imported {
    config: PathBuf,
    key: PathBuf,
    preshared_key: Option<PathBuf>,
    notes: Vec<String>,
}

impl Import {
    pub fn run(self) -> Result<Exit, Failure> {
        let name = self.file.display().to_string();
        let text = Zeroizing::new(configuration::read_text(&self.file)?);
        let wg_quick = import::read(&text, &name)?;
        let stem = self.file.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| {
            Failure::usage(format!("{name} has no name to call the new files by"))
                .remedy("rename it, to wg0.conf say")
        })?;
        let imported = write(&wg_quick, stem, &self.out)?;
        if self.json {
            output::json(&imported)?;
        } else {
            output::text(&imported.sentences())?;
        }
        Ok(Exit::Ok)
    }
}

fn write(wg_quick: &WgQuick, stem: &str, out: &Path) -> Result<Imported, Failure> {
    let Converted { toml, mut notes } = import::convert(wg_quick, stem);
    let config = out.join(format!("{stem}.toml"));
    let (_, warnings) = Config::parse(&toml, &config.display().to_string())
        .map_err(|error| Failure::diagnostic(Exit::Usage, error))?;
    notes.extend(warnings.iter().map(|warning| format!("{warning:#}")));
    let private: PrivateKey = wg_quick.private_key.parse().map_err(|error| bad_key("PrivateKey", error))?;
    let preshared: Option<PresharedKey> = wg_quick
        .preshared_key
        .as_ref()
        .map(|key| key.parse())
        .transpose()
        .map_err(|error| bad_key("PresharedKey", error))?;

    fs::create_dir_all(out)
        .map_err(|error| Failure::system(format!("cannot make {}", out.display())).because(error))?;
    let key = out.join(format!("{stem}.key"));
    let preshared_key = preshared.as_ref().map(|_| out.join(format!("{stem}.psk")));
    let exists =
        [Some(&config), Some(&key), preshared_key.as_ref()].into_iter().flatten().find(|path| path.exists());
    if let Some(path) = exists {
        return Err(overwrite(path).into());
    }
    key_file::create(&key, &private.to_base64())?;
    if let (Some(path), Some(secret)) = (&preshared_key, &preshared) {
        key_file::create(path, &secret.to_base64())?;
    }
    create(&config, &toml)?;
    Ok(Imported { config, key, preshared_key, notes })
}

fn create(path: &Path, text: &str) -> Result<(), Failure> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => overwrite(path).into(),
        _ => Failure::system(format!("cannot write {}", path.display())).because(error).into(),
    })
}

fn overwrite(path: &Path) -> Problem {
    Failure::system(format!("{} exists already", path.display()))
        .remedy("nothing is overwritten: move it away, or give another directory with --out")
}

fn bad_key(name: &str, error: KeyError) -> Problem {
    Failure::usage(format!("{name} is no key"))
        .because(error)
        .remedy("32 bytes in base64, as `wg genkey` writes them")
}

impl Imported {
    fn sentences(&self) -> String {
        let mut out = format!("wrote {}\nwrote {} (mode 0600)\n", self.config.display(), self.key.display());
        if let Some(preshared) = &self.preshared_key {
            out += &format!("wrote {} (mode 0600)\n", preshared.display());
        }
        for note in &self.notes {
            out += &format!("note: {note}\n");
        }
        out + &format!("next: breakout check {0}; breakout up --config {0}\n", self.config.display())
    }
}

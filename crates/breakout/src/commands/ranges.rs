use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use policy::SIGNALING;
use serde::Serialize;

use crate::{
    configuration,
    exit::{self, Exit},
    failure::{Failure, Problem},
    output,
    ranges::{self, Selected},
};

/// More than any such list has.
const MAX_LENGTH: u64 = 16 * 1024 * 1024;

/// The address ranges that Genesys lists
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Ranges {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Import(Import),
}

/// Widen signaling by what Genesys's API lists
///
/// Reads an answer of `GET https://api.DOMAIN/api/v2/ipranges`, saved or fetched, and takes from it the ranges of the service
/// `api` that others connect to, aggregated. Prints them as a section of a configuration, or adds them to one. Media is not in
/// that list, and what another set holds, such as media's, is never taken.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
struct Import {
    /// The saved answer, `-` for standard input, or an https URL, which is fetched: 16 MiB at most, within 30 s
    #[arg(value_name = "FILE|URL")]
    from: PathBuf,
    /// Add the prefixes to [sets.genesys-signaling] of this configuration; the rest of it stays as it is written
    #[arg(long, value_name = "CONFIG")]
    into: Option<PathBuf>,
    /// Print one JSON object: cidrs, config, added, notes
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Imported {
    cidrs: Vec<IpNet>,
    config: Option<PathBuf>,
    /// Those that `config` did not have.
    added: Vec<IpNet>,
    notes: Vec<String>,
}

impl Ranges {
    pub fn run(self) -> Result<Exit, Failure> {
        match self.command {
            Command::Import(import) => import.run(),
        }
    }
}

impl Import {
    fn run(self) -> Result<Exit, Failure> {
        let (name, answer) = self.read()?;
        let policy = match &self.into {
            Some(config) => configuration::read_policy(config)?,
            None => configuration::built_in_policy()?,
        };
        let Selected { prefixes, mut notes } = ranges::select(&answer, &name, &policy.snapshot)?;
        let added = match &self.into {
            Some(config) => add(config, &prefixes, &mut notes)?,
            None => Vec::new(),
        };
        let imported = Imported { cidrs: prefixes, config: self.into, added, notes };
        if self.json {
            output::json(&imported)?;
            return Ok(Exit::Ok);
        }
        for note in &imported.notes {
            eprintln!("note: {note}");
        }
        output::text(&imported.text())?;
        Ok(Exit::Ok)
    }

    fn read(&self) -> Result<(String, String), Failure> {
        let name = self.from.display().to_string();
        if name.starts_with("https://") {
            let text = ranges::fetch(&name, MAX_LENGTH).map_err(|error| not_fetched(&name, error))?;
            return Ok((name, text));
        }
        if name.contains("://") {
            return Err(Failure::usage(format!("{name} is fetched by nobody"))
                .remedy("give a URL with https, so that nobody on the way can add ranges; or a file")
                .into());
        }
        let (name, text) = if name == "-" {
            ("standard input".to_owned(), read_text(io::stdin().lock()))
        } else {
            let text = fs::File::open(&self.from).and_then(read_text);
            (name, text)
        };
        let text = text.map_err(|error| Failure::usage(format!("cannot read {name}")).because(error))?;
        Ok((name, text))
    }
}

impl Imported {
    fn text(&self) -> String {
        let Some(config) = &self.config else { return ranges::section(&self.cidrs) };
        let config = config.display();
        if self.added.is_empty() {
            return format!("{config} has all of them already\n");
        }
        let lines: String = self.added.iter().map(|prefix| format!("  {prefix}\n")).collect();
        format!("added to {SIGNALING} in {config}:\n{lines}next: breakout check {config}; breakout reload\n")
    }
}

/// Checks what the configuration becomes before it is replaced; says what was added.
fn add(config: &Path, prefixes: &[IpNet], notes: &mut Vec<String>) -> Result<Vec<IpNet>, Failure> {
    let name = config.display().to_string();
    let (text, added) = ranges::add(&configuration::read_text(config)?, &name, prefixes)?;
    if added.is_empty() {
        return Ok(added);
    }
    let changed = configuration::parse(&text, &name)?;
    notes.extend(changed.warnings.iter().map(|warning| format!("{warning:#}")));
    replace(config, &text)
        .map_err(|error| Failure::system(format!("cannot replace {name}")).because(error))?;
    Ok(added)
}

/// Puts a new file with the same owner and mode in the place of the old one, in one step.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let old = fs::metadata(&path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
            file.set_permissions(fs::Permissions::from_mode(old.mode()))?;
            file.sync_all()?;
            fs::rename(&new, &path)
        });
    written.inspect_err(|error| {
        if error.kind() != io::ErrorKind::AlreadyExists {
            let _ = fs::remove_file(&new);
        }
    })
}

fn not_fetched(url: &str, error: ureq::Error) -> Problem {
    Failure::system(format!("cannot fetch {url}")).because(error).remedy(format!(
        "save the answer by other means, or `curl --fail --silent --show-error {url} | breakout ranges import -`"
    ))
}

fn read_text(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MAX_LENGTH + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_LENGTH {
        let problem = format!("it has more than {MAX_LENGTH} bytes: this is no such list");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(text)
}

use std::path::{Path, PathBuf};

use clap::Args;
use miette::{Diagnostic, JSONReportHandler};
use serde::Serialize;
use serde_json::Value;

use crate::{
    configuration,
    exit::{self, Exit},
    failure::Failure,
    output,
};

/// Say whether a configuration can be used
///
/// Looks for syntax, unknown keys, sets that are empty or overlap, rules that can never match, and the key files:
/// all that `up` would refuse, each with its line, what was found, and the remedy. Changes nothing.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Check {
    file: PathBuf,
    /// Print one JSON object: valid, then errors and warnings as miette renders them
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked {
    valid: bool,
    errors: Vec<Value>,
    warnings: Vec<Value>,
}

impl Check {
    pub fn run(self) -> Result<Exit, Failure> {
        // A file that cannot be read is no answer to the question.
        configuration::read_text(&self.file)?;
        let (warnings, outcome) = check(&self.file);
        let exit = if outcome.is_ok() { Exit::Ok } else { Exit::No };
        if self.json {
            output::json(&Checked {
                valid: outcome.is_ok(),
                errors: outcome.err().iter().map(|failure| rendered(&*failure.report)).collect(),
                warnings: warnings.iter().map(|warning| rendered(warning)).collect(),
            })?;
            return Ok(exit);
        }
        for warning in warnings {
            eprintln!("{:?}", miette::Report::new(warning));
        }
        match outcome {
            Ok(()) => output::text(&format!("{} can be used\n", self.file.display()))?,
            Err(failure) => eprintln!("{:?}", failure.report),
        }
        Ok(exit)
    }
}

fn check(file: &Path) -> (Vec<policy::Warning>, Result<(), Failure>) {
    match configuration::read_policy(file) {
        Ok(policy) => {
            let keys = configuration::read_keys(&policy.config, file).map(drop);
            (policy.warnings, keys)
        }
        Err(failure) => (Vec::new(), Err(failure)),
    }
}

fn rendered(diagnostic: &dyn Diagnostic) -> Value {
    let mut json = String::new();
    match JSONReportHandler::new().render_report(&mut json, diagnostic) {
        Ok(()) => serde_json::from_str(&json).unwrap_or(Value::String(json)),
        Err(_) => Value::String(diagnostic.to_string()),
    }
}

use std::{error::Error, fmt};

use miette::{Diagnostic, Report};

use crate::exit::Exit;

/// What ends a command: an exit status, and what was found, where, and what to do.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub report: Report,
}

impl Failure {
    /// A configuration or a command line that cannot be used.
    pub fn usage(message: impl Into<String>) -> Problem {
        Problem::new(Exit::Usage, message)
    }

    /// The system refused.
    pub fn system(message: impl Into<String>) -> Problem {
        Problem::new(Exit::System, message)
    }

    pub fn no_daemon(message: impl Into<String>) -> Problem {
        Problem::new(Exit::NoDaemon, message)
    }

    /// Takes a diagnostic that already says all, such as a configuration's errors.
    pub fn diagnostic(exit: Exit, diagnostic: impl Diagnostic + Send + Sync + 'static) -> Self {
        Self { exit, report: Report::new(diagnostic) }
    }
}

impl Failure {
    /// In plain sentences, for logs and for other programs.
    pub fn plain(&self) -> String {
        if let Some(error) = self.report.downcast_ref::<policy::ConfigError>() {
            return format!("{error:#}");
        }
        let causes: Vec<String> = self.report.chain().map(ToString::to_string).collect();
        let remedy = self.report.help().map(|help| format!("; {help}")).unwrap_or_default();
        format!("{}{remedy}", causes.join(": "))
    }
}

/// A failure in the making; `?` turns it into a [`Failure`].
#[derive(Debug)]
pub struct Problem {
    exit: Exit,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    remedy: Option<String>,
}

impl Problem {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), source: None, remedy: None }
    }

    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.remedy.as_ref().map(|remedy| Box::new(remedy) as Box<dyn fmt::Display>)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { exit: problem.exit, report: Report::new(problem) }
    }
}

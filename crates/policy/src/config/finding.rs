use std::{fmt, ops::Range, sync::Arc};

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};

pub(super) type Span = Range<usize>;

/// Something wrong or odd in a configuration: what was found, where, and what to do.
#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub message: String,
    /// The remedy.
    pub help: String,
    /// The line it is in, counted from 1; `None` where something is missing from the file as a whole.
    pub line: Option<usize>,
    labels: Vec<LabeledSpan>,
    file: Arc<NamedSource<String>>,
}

/// A finding that does not prevent use.
pub type Warning = Finding;

/// Everything that is wrong with a configuration, each with its place, what was found and the remedy.
///
/// Displays as one line about the first error; as all of them, a line each, with `{:#}`; `miette` shows the source too.
#[derive(Clone, Debug)]
pub struct ConfigError {
    file: String,
    errors: Vec<Finding>,
}

impl ConfigError {
    pub(super) fn new(file: &str, errors: Vec<Finding>) -> Self {
        Self { file: file.to_owned(), errors }
    }

    /// All errors, in the file's order.
    pub fn findings(&self) -> &[Finding] {
        &self.errors
    }
}

impl Finding {
    /// Points to a second place.
    pub(super) fn also(&mut self, span: Option<Span>, label: impl Into<String>) {
        if let Some(span) = span {
            self.labels.push(LabeledSpan::new_with_span(Some(label.into()), span));
        }
    }

    fn offset(&self) -> usize {
        self.labels.first().map_or(0, LabeledSpan::offset)
    }
}

/// Collects what is found while a text is read.
pub(super) struct Findings {
    file: Arc<NamedSource<String>>,
    list: Vec<Finding>,
    is_built_in: bool,
}

impl Findings {
    pub(super) fn new(text: &str, name: &str) -> Self {
        let file = Arc::new(NamedSource::new(name, text.to_owned()).with_language("toml"));
        Self { file, list: Vec::new(), is_built_in: false }
    }

    /// For the text that comes with the program, which no message can point into.
    pub(super) fn built_in(text: &str) -> Self {
        Self { is_built_in: true, ..Self::new(text, "built in") }
    }

    /// The place to remember for later checks.
    pub(super) fn place(&self, span: Span) -> Option<Span> {
        (!self.is_built_in).then_some(span)
    }

    pub(super) fn error(
        &mut self,
        at: impl Into<Option<Span>>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Finding {
        self.add(Severity::Error, at.into(), message.into(), help.into())
    }

    pub(super) fn warn(
        &mut self,
        at: impl Into<Option<Span>>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Finding {
        self.add(Severity::Warning, at.into(), message.into(), help.into())
    }

    /// How many errors there are so far.
    pub(super) fn errors(&self) -> usize {
        self.list.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    /// Errors and warnings, each in the file's order.
    pub(super) fn finish(mut self) -> (Vec<Finding>, Vec<Finding>) {
        self.list.sort_by_key(Finding::offset);
        self.list.into_iter().partition(|finding| finding.severity == Severity::Error)
    }

    fn add(&mut self, severity: Severity, at: Option<Span>, message: String, help: String) -> &mut Finding {
        let line = at.as_ref().map(|span| {
            let before = self.file.inner().bytes().take(span.start);
            1 + before.filter(|byte| *byte == b'\n').count()
        });
        let labels = at.map(|span| LabeledSpan::new_with_span(None, span)).into_iter().collect();
        self.list.push(Finding { severity, message, help, line, labels, file: self.file.clone() });
        let last = self.list.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "pushed just now")]
        &mut self.list[last]
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if f.alternate() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            for (at, error) in self.errors.iter().enumerate() {
                let separator = if at == 0 { "" } else { "\n" };
                write!(f, "{separator}{}{}: {error:#}", self.file, OptionalLine(error.line))?;
            }
            return Ok(());
        }
        let Some(first) = self.errors.first() else { return write!(f, "{} cannot be used", self.file) };
        write!(f, "{}{}: {first}", self.file, OptionalLine(first.line))?;
        match self.errors.len() - 1 {
            0 => Ok(()),
            more => write!(f, " (and {more} more)"),
        }
    }
}

struct OptionalLine(Option<usize>);

impl fmt::Display for OptionalLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl std::error::Error for Finding {}

impl std::error::Error for ConfigError {}

impl Diagnostic for Finding {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.file)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}

impl Diagnostic for ConfigError {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.errors.iter().map(|error| error as &dyn Diagnostic)))
    }
}

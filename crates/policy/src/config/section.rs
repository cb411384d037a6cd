use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::finding::{Findings, Span};

/// One table of the file, with typed access to its keys. What has the wrong type is reported and counts as absent.
pub(super) struct Section<'t> {
    title: String,
    pub(super) span: Span,
    table: &'t DeTable<'t>,
}

impl<'t> Section<'t> {
    /// Keys other than `known` are errors.
    pub(super) fn new(
        title: impl Into<String>,
        span: Span,
        table: &'t DeTable<'t>,
        known: &[&str],
        findings: &mut Findings,
    ) -> Self {
        let title = title.into();
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let message = format!("unknown key `{}` in {title}", key.get_ref());
            findings.error(key.span(), message, did_you_mean(key.get_ref(), known));
        }
        Self { title, span, table }
    }

    pub(super) fn section(&self, key: &str, known: &[&str], findings: &mut Findings) -> Option<Self> {
        let table = self.table(key, findings)?;
        Some(Self::new(format!("[{key}]"), self.key_span(key), table, known, findings))
    }

    pub(super) fn table(&self, key: &str, findings: &mut Findings) -> Option<&'t DeTable<'t>> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => {
                wrong_type(key, "a table", other, value.span(), findings);
                None
            }
        }
    }

    pub(super) fn array(
        &self,
        key: &str,
        findings: &mut Findings,
    ) -> Option<Spanned<&'t [Spanned<DeValue<'t>>]>> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Array(array) => Some(Spanned::new(value.span(), array.as_ref())),
            other => {
                wrong_type(key, "a list", other, value.span(), findings);
                None
            }
        }
    }

    /// Of a list's entries, right or wrong; 0 for what is no list.
    pub(super) fn count(&self, key: &str) -> usize {
        self.table.get(key).and_then(|value| value.get_ref().as_array()).map_or(0, |array| array.len())
    }

    pub(super) fn string(&self, key: &str, findings: &mut Findings) -> Option<Spanned<&'t str>> {
        let value = self.table.get(key)?;
        string(key, value, findings)
    }

    pub(super) fn required_string(
        &self,
        key: &str,
        example: &str,
        findings: &mut Findings,
    ) -> Option<Spanned<&'t str>> {
        if !self.has(key) {
            self.missing(key, example, findings);
        }
        self.string(key, findings)
    }

    /// A list of strings, or one string alone. An empty list is an error and counts as absent.
    pub(super) fn strings(&self, key: &str, findings: &mut Findings) -> Option<Vec<Spanned<&'t str>>> {
        let value = self.table.get(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            return string(key, value, findings).map(|text| vec![text]);
        };
        if array.is_empty() {
            findings.error(
                value.span(),
                format!("`{key}` is empty"),
                format!("list at least one in `{key}`"),
            );
            return None;
        }
        Some(array.iter().filter_map(|value| string(key, value, findings)).collect())
    }

    /// An integer in `min..=u16::MAX`.
    pub(super) fn integer(&self, key: &str, min: u16, findings: &mut Findings) -> Option<Spanned<u16>> {
        let value = self.table.get(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            wrong_type(key, "a number", value.get_ref(), value.span(), findings);
            return None;
        };
        match u16::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if number >= min => Some(Spanned::new(value.span(), number)),
            _ => {
                let message = format!("`{key}` is {integer}");
                findings.error(value.span(), message, format!("give a number from {min} to {}", u16::MAX));
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &str, findings: &mut Findings) -> Option<bool> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            other => {
                wrong_type(key, "true or false", other, value.span(), findings);
                None
            }
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn missing(&self, key: &str, example: &str, findings: &mut Findings) {
        let message = format!("`{key}` is missing from {}", self.title);
        findings.error(self.span.clone(), message, format!("add `{example}`"));
    }

    /// The key's place; the table's if it has no such key.
    pub(super) fn key_span(&self, key: &str) -> Span {
        self.table.get_key_value(key).map_or(self.span.clone(), |(key, _)| key.span())
    }
}

pub(super) fn string<'t>(
    key: &str,
    value: &'t Spanned<DeValue<'t>>,
    findings: &mut Findings,
) -> Option<Spanned<&'t str>> {
    match value.get_ref() {
        DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
        other => {
            wrong_type(key, "text in quotes", other, value.span(), findings);
            None
        }
    }
}

pub(super) fn wrong_type(key: &str, expected: &str, found: &DeValue<'_>, at: Span, findings: &mut Findings) {
    let found = match found {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    findings.error(at, format!("`{key}` is {found}"), format!("`{key}` must be {expected}"));
}

/// The value of the word; what is none of `known` is an error and counts as absent.
pub(super) fn choose<T: Copy>(
    key: &str,
    word: &Spanned<&str>,
    known: &[(&str, T)],
    findings: &mut Findings,
) -> Option<T> {
    if let Some((_, value)) = known.iter().find(|(name, _)| name == word.get_ref()) {
        return Some(*value);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let message = format!("`{key}` is `{}`", word.get_ref().escape_debug());
    let help = match nearest(word.get_ref(), &names) {
        Some(name) => format!("did you mean `{name}`? It can be {}", list(&names)),
        None => format!("it can be {}", list(&names)),
    };
    findings.error(word.span(), message, help);
    None
}

/// A remedy for a word that is none of `known`.
pub(super) fn did_you_mean(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(name) => format!("did you mean `{name}`?"),
        _ if known.is_empty() => "there is none to choose from".to_owned(),
        _ => format!("it can be {}", list(known)),
    }
}

/// The name that a slip may have turned into `word`.
pub(super) fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    let (distance, name) = names.iter().map(|name| (strsim::osa_distance(word, name), *name)).min()?;
    (3 * distance <= name.len()).then_some(name)
}

/// `` `a`, `b` or `c` ``
pub(super) fn list(names: &[&str]) -> String {
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => format!("`{last}`"),
        Some((last, rest)) => {
            let rest: Vec<_> = rest.iter().map(|name| format!("`{name}`")).collect();
            format!("{} or `{last}`", rest.join(", "))
        }
    }
}

/// Names that appear in messages, tables and the control socket's answers.
pub(super) fn check_name(what: &str, name: &str, at: Span, findings: &mut Findings) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
        let message = format!("{what} cannot be called `{}`", name.escape_debug());
        findings.error(at, message, "use 1 to 64 letters, digits, `-`, `_` or `.`");
    }
}

//! What goes to standard output: the answer, and nothing else.

use std::io::{self, Write};

use serde::Serialize;

use crate::{exit::Exit, failure::Failure};

/// Prints text as it is. A reader that has gone away (`| head`) is no failure.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("cannot write to standard output").because(error).into())
        }
        _ => Ok(()),
    }
}

/// Prints an answer as JSON, or as the text that is made of it.
pub fn answer<T: Serialize>(
    value: &T,
    as_json: bool,
    as_text: impl FnOnce(&T) -> String,
) -> Result<Exit, Failure> {
    if as_json {
        json(value)?
    } else {
        text(&as_text(value))?
    }
    Ok(Exit::Ok)
}

/// Prints one JSON value, indented.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut rendered = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::system("cannot render the answer as JSON").because(error))?;
    rendered.push('\n');
    text(&rendered)
}

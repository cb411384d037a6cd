//! What goes to standard output: the answer, and nothing else.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

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

/// Prints one JSON value, indented.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut rendered = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::system("cannot render the answer as JSON").because(error))?;
    rendered.push('\n');
    text(&rendered)
}

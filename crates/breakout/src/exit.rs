//! What the exit status says. The numbers stand here and nowhere else.

use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// The answer is no: a check failed, the lab is red, a dead run left something.
    No = 1,
    /// The command line or a configuration cannot be used (clap uses the same number).
    Usage = 2,
    /// The system refused: permission, a missing feature, something that is in the way.
    System = 3,
    NoDaemon = 4,
}

/// Shown at the end of every command's `--help`.
pub const HELP: &str = "\
Exit status:
  0  done; the answer is yes
  1  the answer is no (check: not valid; lab: red; state list: a dead daemon left something)
  2  the command line or a configuration cannot be used
  3  the system refused: permission, a missing feature, something that is in the way
  4  no daemon is running";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

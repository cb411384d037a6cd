use std::error::Error;
use std::time::Duration;

/// Why the lab could not run. None of these says anything about the packets: that is the report's business.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A step of building or driving the lab failed.
    #[error("{what}: {source}")]
    Step { what: String, source: Box<dyn Error + Send + Sync> },

    /// The kernel does not let this user make what the lab needs.
    #[error("{what}: {reason}\n{remedy}")]
    Privilege { what: &'static str, reason: String, remedy: String },

    #[error("`{program}` was not found in PATH\n{remedy}")]
    Missing { program: String, remedy: String },

    #[error("{program} ended before it was ready ({status}); it said:\n{said}")]
    Ended { program: String, status: String, said: String },

    #[error("{program}: waited {after:?} for {awaited}, in vain; it said:\n{said}")]
    NotReady { program: String, awaited: String, after: Duration, said: String },

    #[error("the thread that holds host `{0}` is gone")]
    HostGone(String),
}

impl LabError {
    /// The process exit status for this error: the lab could not run.
    pub const fn exit_status(&self) -> i32 {
        2
    }
}

/// Says during which step an error came up.
pub trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::Step { what: what(), source: source.into() })
    }
}

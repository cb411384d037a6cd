use std::path::PathBuf;

use lab::LabError;

/// Why the bench could not measure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A step of building the site or of driving traffic failed.
    #[error(transparent)]
    Step(#[from] LabError),

    /// A report that cannot be read.
    #[error("{}: {problem}", path.display())]
    Report { path: PathBuf, problem: String },
}

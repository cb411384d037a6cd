//! Asking the running daemon.

use std::time::Duration;

use control::{Client, ClientError, Command, RefusalKind, Reply};

use crate::{
    failure::{Failure, Problem},
    progress,
    state::StateDir,
};

const LIMIT: Duration = Duration::from_secs(10);
/// A reload resolves names.
const RELOAD_LIMIT: Duration = Duration::from_secs(35);

/// Asks the daemon of the state directory; a refusal is a failure.
pub fn daemon(state: &StateDir, command: Command) -> Result<Reply, Failure> {
    let limit = if command == Command::Reload { RELOAD_LIMIT } else { LIMIT };
    let _waiting = progress::waiting_for("the daemon's answer");
    Client::connect(&state.control_socket())
        .and_then(|mut client| client.call(command, limit))
        .map_err(failure)
}

/// The daemon answered something else than what was asked.
pub fn unexpected(reply: &Reply) -> Failure {
    Failure::system("the daemon's answer does not fit the question").because(format!("{reply:?}")).into()
}

fn failure(error: ClientError) -> Failure {
    match &error {
        ClientError::NoDaemon(_) => Failure::no_daemon("no breakout daemon is running")
            .because(error)
            .remedy("start one with `breakout up --config FILE`")
            .into(),
        ClientError::Denied(_) => Failure::system("this user may not talk to the daemon")
            .because(error)
            .remedy("use sudo, or name a group that you are in under `[control] group` in the configuration")
            .into(),
        ClientError::Refused(refusal) => refused(refusal.kind, refusal.message.clone()).into(),
        ClientError::Version(_) => Failure::system("the daemon and this program are of different versions")
            .because(error)
            .remedy("restart the daemon")
            .into(),
        _ => Failure::system("the daemon did not answer").because(error).into(),
    }
}

fn refused(kind: RefusalKind, message: String) -> Problem {
    match kind {
        RefusalKind::Configuration => Failure::usage(message),
        RefusalKind::Denied
        | RefusalKind::Malformed
        | RefusalKind::Version
        | RefusalKind::Busy
        | RefusalKind::Failed => Failure::system(message),
    }
}

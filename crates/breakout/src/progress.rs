use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(2);

/// Says on standard error what is being waited for, if it takes longer than two seconds. Ends when dropped.
pub struct Waiting {
    _over: Sender<()>,
}

pub fn waiting_for(what: &'static str) -> Waiting {
    let (over, is_over) = mpsc::channel::<()>();
    thread::spawn(move || {
        if is_over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("waiting for {what} …");
        }
    });
    Waiting { _over: over }
}

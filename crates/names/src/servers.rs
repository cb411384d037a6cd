use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The DNS servers behind the tunnel in the order to ask them: the one that answered last comes first, so that a dead one costs its second once.
#[derive(Debug)]
pub struct Servers(Mutex<Vec<SocketAddr>>);

impl Servers {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self(Mutex::new(servers))
    }

    pub fn order(&self) -> Vec<SocketAddr> {
        self.lock().clone()
    }

    pub fn answered(&self, server: SocketAddr) {
        let mut servers = self.lock();
        if let Some(at) = servers.iter().position(|one| *one == server) {
            servers.rotate_left(at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

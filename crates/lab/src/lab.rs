use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::internet::addresses::{MEDIA, MEDIA_2, SIGNALING, STREAMING, WEB};
use crate::service::{Identity, answer_udp, http, listen_tcp, listen_tls, media, sip, ssh, stun};
use crate::traffic::{EF_TOS, Ports};
use crate::{Daemon, Directory, Gateway, Internet, Keys, LabError, Process, Wiring, write_config};

/// Inside the tunnel at its far end, in bytes.
const MTU: u32 = 1420;

/// The internet with everything in it that answers, and the tunnel's two ends once they are started. All of it is gone when this is dropped.
#[derive(Debug)]
pub struct Lab {
    // In the order in which they are to end.
    pub daemon: Option<Daemon>,
    pub gateway: Option<Process>,
    pub internet: Internet,
    pub identity: Identity,
    pub keys: Keys,
    pub directory: Directory,
}

impl Lab {
    /// Builds the internet and starts its far ends; without gateway and daemon, so that the agent sends everything directly.
    pub fn build(wiring: Wiring) -> Result<Self, LabError> {
        let directory = Directory::new()?;
        let addresses = [SIGNALING, STREAMING, MEDIA, MEDIA_2, WEB].map(IpAddr::from);
        let identity = Identity::new(&addresses)?;
        directory.write("lab.pem", &identity.certificate_pem)?;
        let internet = Internet::build(wiring)?;
        start_far_ends(&internet, &identity)?;
        Ok(Self { daemon: None, gateway: None, internet, identity, keys: Keys::generate()?, directory })
    }

    /// Starts the tunnel's far end. `exe` is the `breakout` program.
    pub fn start_gateway(&mut self, gateway: Gateway, exe: &Path) -> Result<(), LabError> {
        self.gateway = Some(gateway.start(&self.internet.gateway, &self.keys, exe, &self.directory, MTU)?);
        Ok(())
    }

    /// Starts the daemon on the agent. `more` is added to the end of its configuration, such as `[[rules]]`.
    pub fn start_daemon(&mut self, exe: &Path, more: &str) -> Result<(), LabError> {
        let config = write_config(&self.keys, &self.directory, more)?;
        self.daemon = Some(Daemon::start(&self.internet.agent, exe, &config, &self.directory)?);
        Ok(())
    }

    /// Ends the daemon as a service manager would.
    pub fn stop_daemon(&mut self) -> Result<(), LabError> {
        self.daemon.take().map_or(Ok(()), Daemon::stop)
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill_daemon(&mut self) -> Result<(), LabError> {
        self.daemon.take().map_or(Ok(()), Daemon::kill)
    }
}

fn start_far_ends(internet: &Internet, identity: &Identity) -> Result<(), LabError> {
    let at = |ip: Ipv4Addr, port: u16| SocketAddr::from((ip, port));
    let Internet { signaling, media: far, web, .. } = internet;
    let tls = || identity.server.clone();
    for address in [SIGNALING, STREAMING] {
        listen_tls(signaling, at(address, 443), tls(), http::serve)?;
    }
    listen_tls(signaling, at(SIGNALING, 5061), tls(), sip::serve)?;
    listen_tcp(signaling, at(SIGNALING, 5060), sip::serve)?;
    listen_tcp(signaling, at(SIGNALING, 80), http::serve)?;
    answer_udp(signaling, at(SIGNALING, 5060), 0, |request, _| {
        sip::answer(&String::from_utf8_lossy(request)).map(String::into_bytes)
    })?;
    for address in [MEDIA, MEDIA_2] {
        media::serve(far, at(address, Ports::VOICE_EF), EF_TOS)?;
        media::serve(far, at(address, Ports::VOICE_UNMARKED), EF_TOS)?;
        media::serve(far, at(address, Ports::PLAIN), 0)?;
        listen_tcp(far, at(address, 22), ssh::serve)?;
        listen_tls(far, at(address, 443), tls(), |stream| {
            let from = stream.sock.peer()?;
            stun::serve(stream, from)
        })?;
    }
    listen_tls(web, at(WEB, 443), tls(), http::serve)?;
    media::serve(web, at(WEB, Ports::GOOGLE_STUN), 0)
}

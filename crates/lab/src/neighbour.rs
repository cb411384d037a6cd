//! Another computer at home that tries to reach the agent's address inside the tunnel, past the tunnel.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use packet::protocol;

use crate::internet::addresses::{AGENT, AGENT_TUNNEL, NEIGHBOUR};
use crate::report::{Path, Row};
use crate::{Internet, LabError, Wires};

/// How the attempt ended.
#[derive(Debug)]
pub struct Attempt {
    to: SocketAddr,
    sent: u64,
    received: u64,
    /// Why it could not be made.
    failure: Option<String>,
}

const DATAGRAMS: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(1);

/// Opens a socket on the TUN's address and lets the neighbour send to it. The daemon must be up.
pub fn start(internet: &Internet) -> Result<JoinHandle<Attempt>, LabError> {
    let socket = internet.agent.run(|| UdpSocket::bind((AGENT_TUNNEL, 0)))?;
    internet.router.add_route(Ipv4Net::from(AGENT_TUNNEL).into(), AGENT.into())?;
    internet.router.thread("neighbour", move || {
        let mut attempt = Attempt { to: (AGENT_TUNNEL, 0).into(), sent: 0, received: 0, failure: None };
        if let Err(error) = socket.and_then(|socket| attempt.send_to(&socket)) {
            attempt.failure = Some(error.to_string());
        }
        attempt
    })
}

impl Attempt {
    fn send_to(&mut self, target: &UdpSocket) -> io::Result<()> {
        self.to = target.local_addr()?;
        let neighbour = UdpSocket::bind((NEIGHBOUR, 0))?;
        for number in 0..DATAGRAMS {
            neighbour.send_to(&number.to_be_bytes(), self.to)?;
            self.sent += 1;
        }
        let until = Instant::now() + PATIENCE;
        let mut datagram = [0; 64];
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            target.set_read_timeout(Some(left))?;
            match target.recv(&mut datagram) {
                Ok(_) => self.received += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn judge(&self, wires: &Wires) -> Row {
        let on_wire =
            wires.lan.records.iter().filter(|record| record.outgoing && record.destination == self.to);
        let on_wire: Vec<_> = on_wire.filter(|record| record.protocol == protocol::UDP).collect();
        let mut problems = Vec::new();
        if self.received > 0 {
            problems.push(format!("{} datagrams reached the socket past the tunnel", self.received));
        }
        if let Some(failure) = &self.failure {
            problems.push(format!("could not be tried: {failure}"));
        } else if on_wire.is_empty() {
            problems.push("the neighbour's datagrams were not on the wire: nothing was tested".to_owned());
        }
        Row {
            kind: "tun-address-in".to_owned(),
            what: "neighbour to the TUN's address".to_owned(),
            protocol: "udp".to_owned(),
            destination: self.to.to_string(),
            sent: self.sent,
            answered: self.received,
            path_expected: Path::Dropped,
            path_seen: if self.received > 0 { Path::Direct } else { Path::Dropped },
            packets_in_clear: on_wire.len() as u64,
            packets_behind_gateway: 0,
            dscp: Vec::new(),
            dscp_back: Vec::new(),
            external: Vec::new(),
            rtt_p50_us: None,
            rtt_p99_us: None,
            jitter_us: None,
            loss: 1.0 - self.received as f64 / self.sent.max(1) as f64,
            ok: problems.is_empty(),
            problems,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Driven;
    use crate::{Captures, Lab, Wiring, has_rights, skip, traffic};

    /// With the TUN's address on an ordinary interface and no daemon, both traps snap: the rows can turn red.
    #[test]
    fn without_a_daemon_the_tun_address_is_open_in_both_directions() {
        if !has_rights() {
            return skip("making network namespaces needs root");
        }
        let lab = Lab::build(Wiring::default()).unwrap();
        let net = &lab.internet;
        net.agent.add_address("lo", Ipv4Net::from(AGENT_TUNNEL).into()).unwrap();
        let captures = Captures::start(net).unwrap();
        let out = net.agent.thread("out", || Driven::new(traffic::from_tun_address())).unwrap();
        let attempt = start(net).unwrap().join().unwrap();
        let out = out.join().unwrap();
        let wires = captures.finish().unwrap();
        let row = attempt.judge(&wires);
        assert_eq!((row.answered, row.ok, row.path_seen), (DATAGRAMS, false, Path::Direct));
        let row = out.judge(&wires);
        assert_eq!((row.ok, row.path_seen), (false, Path::Direct));
    }
}

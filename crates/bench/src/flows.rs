//! What the daemon says of the flows that were measured.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::report::Path;

/// The part of `breakout flows --json` that tells who moved what.
#[derive(Clone, Debug, Deserialize)]
pub struct Flows {
    pub flows: Vec<Flow>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Flow {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub path: String,
    pub in_kernel: bool,
    pub out_packets: u64,
}

/// Whether there is a flow to `to` from each of these ports, all of them go the way that `path` names, and they have carried no less than
/// `packets` together; otherwise what was found.
pub fn check(flows: &[Flow], path: Path, to: SocketAddr, ports: &[u16], packets: u64) -> Result<(), String> {
    let mut carried = 0;
    for port in ports {
        let is_it = |flow: &&Flow| flow.destination == to && flow.source.port() == *port;
        let Some(flow) = flows.iter().find(is_it) else {
            return Err(format!(
                "the daemon has no flow from port {port} to {to}: its packets went another way"
            ));
        };
        let way = way(flow);
        if way != path.name() {
            return Err(format!("the flow from port {port} to {to} is {way}, not {path}"));
        }
        carried += flow.out_packets;
    }
    if carried < packets {
        return Err(format!("of {packets} packets to {to} only {carried} went by {path}"));
    }
    Ok(())
}

/// Whether the kernel moved so many packets while threads of the daemon ran so often: that an entry is installed does not say that it is used.
pub fn check_mover(switches: u64, packets: u64) -> Result<(), String> {
    /// Timers and the flow's beginning.
    const SPARE: u64 = 10;
    if switches > SPARE + packets / 10 {
        return Err(format!(
            "the daemon ran {switches} times for {packets} packets: it moved them, not the kernel"
        ));
    }
    Ok(())
}

fn way(flow: &Flow) -> &str {
    match (flow.path.as_str(), flow.in_kernel) {
        ("tunnel", _) => Path::Tunnel.name(),
        ("bypass", true) => Path::BypassFastPath.name(),
        ("bypass", false) => Path::BypassPump.name(),
        (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_moves_packets_itself_is_found() {
        assert_eq!(
            (check_mover(0, 500), check_mover(12, 20), check_mover(60, 500)),
            (Ok(()), Ok(()), Ok(()))
        );
        let error = check_mover(450, 500).unwrap_err();
        assert!(error.contains("ran 450 times for 500 packets"), "{error}");
    }

    #[test]
    fn what_did_not_go_the_way_it_is_named_after_is_found() {
        let to: SocketAddr = "52.129.96.10:20000".parse().unwrap();
        let flow = |port: u16, path: &str, in_kernel, out_packets| Flow {
            source: ([10, 99, 0, 1], port).into(),
            destination: to,
            path: path.to_owned(),
            in_kernel,
            out_packets,
        };
        let flows = [flow(1, "bypass", true, 51), flow(2, "bypass", true, 50), flow(3, "bypass", false, 50)];
        let found = |path, ports: &[u16], packets| check(&flows, path, to, ports, packets);
        assert_eq!(found(Path::BypassFastPath, &[1, 2], 101), Ok(()));
        assert_eq!(found(Path::BypassPump, &[3], 50), Ok(()));
        for (path, ports, packets, said) in [
            (
                Path::BypassFastPath,
                &[1, 3][..],
                0,
                "port 3 to 52.129.96.10:20000 is bypass (pump), not bypass (fast path)",
            ),
            (
                Path::BypassPump,
                &[3, 1],
                0,
                "port 1 to 52.129.96.10:20000 is bypass (fast path), not bypass (pump)",
            ),
            (Path::Tunnel, &[1], 0, "is bypass (fast path), not tunnel"),
            (Path::BypassPump, &[4], 0, "has no flow from port 4"),
            (Path::BypassPump, &[3], 51, "of 51 packets to 52.129.96.10:20000 only 50 went by bypass (pump)"),
        ] {
            let error = found(path, ports, packets).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}

//! Asking on the physical side, by plain HTTP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::Mark};
use policy::{Endpoint, Facts, PortalCheck, Snapshot};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, lookup_host},
    task::JoinSet,
    time::timeout,
};

use super::answer::{self, Finding};

/// From the name to the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses of each family that are tried: a network may swallow either.
const MAX_EACH: usize = 2;
/// Bytes of an answer; the rest is of no interest.
const MAX_ANSWER: usize = 8 * 1024;

/// Asks once. `mark` leads past the TUN; what is routed into it by the policy is not asked, nor is this machine (`own`).
pub async fn ask(check: PortalCheck, policy: Arc<Snapshot>, own: Vec<IpAddr>, mark: u32) -> Finding {
    match timeout(PATIENCE, exchange(&check, &policy, &own, mark)).await {
        Ok(answered) => answered.unwrap_or_else(|error| Finding::Unclear(error.to_string())),
        Err(_) => Finding::Unclear(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn exchange(check: &PortalCheck, policy: &Snapshot, own: &[IpAddr], mark: u32) -> io::Result<Finding> {
    let mut stream = connect(addresses(check, policy, own).await?, mark).await?;
    stream.write_all(request(check).as_bytes()).await?;
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    loop {
        let is_over = stream.read_buf(&mut answer).await? == 0 || answer.len() >= MAX_ANSWER;
        if let Some(finding) = answer::read(&answer, is_over, check) {
            return Ok(finding);
        }
    }
}

fn request(check: &PortalCheck) -> String {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: */*\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n",
        check.path, check.host
    )
}

/// A name is asked for as any that is not the policy's: at the network's own resolver.
async fn addresses(check: &PortalCheck, policy: &Snapshot, own: &[IpAddr]) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = match &check.endpoint {
        Endpoint::Address(address) => vec![*address],
        Endpoint::Name { host, .. } if policy.set_for_name(host).is_some() => {
            return Err(io::Error::other(format!("{host} is one of the policy's names")));
        }
        Endpoint::Name { host, port } => lookup_host((host.as_str(), *port)).await?.collect(),
    };
    let chosen = choose(found, policy, own);
    if chosen.is_empty() {
        return Err(io::Error::other(format!("{} has no address that is reached directly", check.host)));
    }
    Ok(chosen)
}

fn choose(found: Vec<SocketAddr>, policy: &Snapshot, own: &[IpAddr]) -> Vec<SocketAddr> {
    // The socket of an IPv4-mapped address sends IPv4.
    let plain = found.into_iter().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
    let direct = plain.filter(|address| is_direct(*address, policy, own));
    let (mut v4, mut v6): (Vec<_>, Vec<_>) = direct.partition(SocketAddr::is_ipv4);
    v4.truncate(MAX_EACH);
    v6.truncate(MAX_EACH);
    [v4, v6].concat()
}

/// Whether it is another machine's, and reached past the tunnel.
fn is_direct(address: SocketAddr, policy: &Snapshot, own: &[IpAddr]) -> bool {
    let ip = address.ip();
    let is_another = match ip {
        // "This network" (RFC 791).
        IpAddr::V4(v4) => v4.octets()[0] != 0 && !v4.is_broadcast(),
        // ::/96, IPv4-compatible (RFC 4291 section 2.5.5.1).
        IpAddr::V6(v6) => v6.to_bits() >> 32 != 0,
    };
    is_another
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !own.contains(&ip)
        && !policy.is_routed(&Facts::tcp(address))
        && translated(ip).is_none_or(|v4| is_direct(SocketAddr::new(v4, address.port()), policy, own))
}

/// The IPv4 address that a NAT64 makes of it (RFC 6052 section 2.1).
fn translated(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let bits = address.to_bits();
    (bits >> 32 == 0x0064_ff9b << 64).then(|| Ipv4Addr::from_bits(bits as u32).into())
}

/// To all of them at once; the first that answers is asked.
async fn connect(addresses: Vec<SocketAddr>, mark: u32) -> io::Result<TcpStream> {
    let mut connecting: JoinSet<_> = addresses.into_iter().map(|address| connect_to(address, mark)).collect();
    let mut last = io::ErrorKind::NotFound.into();
    while let Some(connected) = connecting.join_next().await {
        match connected.map_err(io::Error::other).flatten() {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    setsockopt(&socket.as_fd(), Mark, &mark)?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[interface]
address = "10.99.0.1/32"
[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "198.18.0.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24", "2001:db8:1::/48"]
"#;

    fn chosen(found: &[&str]) -> Vec<String> {
        let (config, _) = policy::Config::parse(CONFIG, "test").unwrap();
        let own = ["192.0.2.7".parse().unwrap(), "2001:db8:2::7".parse().unwrap()];
        let at = |ip: &&str| SocketAddr::new(ip.parse().unwrap(), 80);
        let found = found.iter().map(at).collect();
        choose(found, &Snapshot::compile(&config), &own).iter().map(|at| at.ip().to_string()).collect()
    }

    #[test]
    fn neither_this_machine_nor_what_is_routed_is_asked() {
        for refused in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "0.0.0.1",
            "::",
            "::127.0.0.1",
            "::ffff:0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "2001:db8:2::7",
            "203.0.113.7",
            "::ffff:203.0.113.7",
            "2001:db8:1::7",
            "64:ff9b::203.0.113.7",
            "64:ff9b::127.0.0.1",
            "64:ff9b::192.0.2.7",
        ] {
            assert_eq!(chosen(&[refused]), [""; 0], "{refused}");
        }
        for (found, asked) in [
            ("192.0.2.8", "192.0.2.8"),
            ("::ffff:192.0.2.8", "192.0.2.8"),
            ("10.0.0.1", "10.0.0.1"),
            ("2001:db8:2::8", "2001:db8:2::8"),
            ("64:ff9b::192.0.2.8", "64:ff9b::c000:208"),
        ] {
            assert_eq!(chosen(&[found]), [asked]);
        }
    }

    #[test]
    fn each_family_is_asked_whichever_comes_first() {
        let found =
            ["2001:db8:2::1", "2001:db8:2::2", "2001:db8:2::3", "192.0.2.1", "192.0.2.2", "192.0.2.3"];
        assert_eq!(chosen(&found), ["192.0.2.1", "192.0.2.2", "2001:db8:2::1", "2001:db8:2::2"]);
    }
}

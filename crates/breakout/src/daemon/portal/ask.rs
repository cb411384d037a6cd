//! Asking on the physical side, by plain HTTP.

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use nix::sys::socket::{setsockopt, sockopt::Mark};
use policy::{Endpoint, Facts, PortalCheck, Snapshot};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};

use super::answer::{self, Finding};

/// From the name to the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// For one address.
const CONNECTING: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 3;
/// Bytes of an answer; the rest is of no interest.
const MAX_ANSWER: usize = 8 * 1024;

/// Asks once. `mark` leads past the TUN; what is routed into it by the policy is not asked.
pub async fn ask(check: PortalCheck, policy: Arc<Snapshot>, mark: u32) -> Finding {
    match timeout(PATIENCE, exchange(&check, &policy, mark)).await {
        Ok(answered) => answered.unwrap_or_else(|error| Finding::Unclear(error.to_string())),
        Err(_) => Finding::Unclear(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn exchange(check: &PortalCheck, policy: &Snapshot, mark: u32) -> io::Result<Finding> {
    let mut stream = connect(&addresses(check, policy).await?, mark).await?;
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
async fn addresses(check: &PortalCheck, policy: &Snapshot) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = match &check.endpoint {
        Endpoint::Address(address) => vec![*address],
        Endpoint::Name { host, .. } if policy.set_for_name(host).is_some() => {
            return Err(io::Error::other(format!("{host} is one of the policy's names")));
        }
        Endpoint::Name { host, port } => lookup_host((host.as_str(), *port)).await?.collect(),
    };
    let is_direct = |address: &SocketAddr| {
        let ip = address.ip();
        !ip.is_loopback()
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !policy.is_routed(&Facts::tcp(*address))
    };
    let direct: Vec<_> = found.into_iter().filter(is_direct).take(MAX_ADDRESSES).collect();
    if direct.is_empty() {
        return Err(io::Error::other(format!("{} has no address that is reached directly", check.host)));
    }
    Ok(direct)
}

/// To the first that answers.
async fn connect(addresses: &[SocketAddr], mark: u32) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        setsockopt(&socket.as_fd(), Mark, &mark)?;
        match timeout(CONNECTING, socket.connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

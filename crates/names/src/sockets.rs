use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::failure::BindError;

const BACKLOG: i32 = 64;
/// For a burst of queries, in bytes, if the system allows for so many.
const RECEIVE_BUFFER: usize = 1 << 20;

/// By UDP and TCP at the same port, also where `address` leaves it to the system.
pub fn listen(address: SocketAddr) -> Result<(UdpSocket, TcpListener, SocketAddr), BindError> {
    let failed = |protocol| move |source| BindError { address, protocol, source };
    let udp = listen_udp(address).map_err(failed("UDP"))?;
    let bound = udp.local_addr().map_err(failed("UDP"))?;
    let tcp = listen_tcp(bound).map_err(failed("TCP"))?;
    Ok((udp, tcp, bound))
}

fn listen_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bound(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    UdpSocket::from_std(socket.into())
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // A connection in TIME_WAIT does not keep a restarted daemon from listening.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A socket of its own for one query: the system draws its port at random, and gives it only what `server` sends.
pub async fn ask_udp(from: Option<IpAddr>, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(from.unwrap_or(any(server)), 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

pub async fn ask_tcp(from: Option<IpAddr>, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(server).await
}

fn any(server: SocketAddr) -> IpAddr {
    if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// One datagram, however large.
pub async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    // Pages that nothing is written to cost nothing.
    let mut buffer = Vec::with_capacity(usize::from(u16::MAX));
    socket.recv_buf(&mut buffer).await?;
    Ok(buffer)
}

/// A message with its length before it. RFC 1035 §4.2.2
pub async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // In one segment: some servers read the length alone and give up.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use dataplane::gateway::{Gateway, GatewaySetup};
use dataplane::{PumpError, Tun};
use ipnet::IpNet;
use routes::netlink::{Netlink, Route};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tunnel::{Responder, ResponderPeer};

use super::config::Config;
use crate::{
    configuration::{self, beside},
    daemon,
    exit::Exit,
    failure::Failure,
    key_file, output,
};

/// Runs the gateway until SIGTERM or SIGINT.
pub fn run(path: PathBuf) -> Result<Exit, Failure> {
    let text = configuration::read_text(&path)?;
    let config = Config::parse(&text, &path.display().to_string())
        .map_err(|error| Failure::diagnostic(Exit::Usage, error))?;
    let responder = responder(&config, &path)?;
    daemon::runtime()?.block_on(serve(&config, responder))
}

fn responder(config: &Config, path: &Path) -> Result<Responder, Failure> {
    let private_key = key_file::private_key(&beside(path, &config.private_key_file))?;
    let mut peers = Vec::with_capacity(config.peers.len());
    for peer in &config.peers {
        let preshared_key = match &peer.preshared_key_file {
            Some(file) => Some(key_file::preshared_key(&beside(path, file))?),
            None => None,
        };
        peers.push(ResponderPeer {
            public_key: peer.public_key,
            preshared_key,
            allowed_ips: peer.allowed_ips.clone(),
            mtu: config.mtu,
            keepalive: None,
        });
    }
    Ok(Responder::new(private_key, peers, Instant::now())
        .map_err(|error| Failure::usage("the gateway's peers cannot be used").because(error))?)
}

async fn serve(config: &Config, responder: Responder) -> Result<Exit, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let tun = daemon::open_tun(config.name.as_deref())?;
    let name = tun.name().to_owned();
    configure(&tun, config).await.map_err(|error| {
        Failure::system(format!("cannot set up the interface {name}"))
            .because(error)
            .remedy("run it as root, or with CAP_NET_ADMIN")
    })?;
    warn_unless_forwarding(config);

    let (ended, exited) = oneshot::channel();
    let on_exit = Box::new(move |result: Result<(), PumpError>| drop(ended.send(result)));
    let listen = SocketAddr::new(config.listen_address, config.listen_port);
    let setup = GatewaySetup {
        tun,
        responder,
        addresses: config.addresses.iter().map(IpNet::addr).collect(),
        mtu: config.mtu,
        listen,
        outer_dscp: config.outer_dscp,
        on_exit,
    };
    let gateway = Gateway::start(setup).map_err(|error| {
        Failure::system(format!("cannot start the gateway on UDP {listen}"))
            .because(error)
            .remedy("another program may have the port: `ss -ulpn` shows which")
    })?;
    let addresses: Vec<_> = config.addresses.iter().map(ToString::to_string).collect();
    output::text(&format!("gateway is up: {name} {}, UDP {listen}\n", addresses.join(", ")))?;

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        result = exited => return Err(failed(result).into()),
    }
    gateway.stop().map_err(|error| Failure::system("the gateway did not end well").because(error))?;
    Ok(Exit::Ok)
}

async fn configure(tun: &Tun, config: &Config) -> Result<(), routes::netlink::Error> {
    let netlink = Netlink::new()?;
    netlink.set_mtu(tun.index(), u32::from(config.mtu)).await?;
    for address in &config.addresses {
        netlink.add_address(tun.index(), *address).await?;
    }
    netlink.set_up(tun.index()).await?;
    let is_connected = |net: &IpNet| config.addresses.iter().any(|own| own.trunc().contains(net));
    for net in config.peers.iter().flat_map(|peer| &peer.allowed_ips).filter(|net| !is_connected(net)) {
        netlink.add_route(&Route { device: Some(tun.index()), ..Route::new(net.trunc()) }).await?;
    }
    Ok(())
}

fn warn_unless_forwarding(config: &Config) {
    let families = [
        ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward", true),
        ("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", false),
    ];
    for (file, sysctl, v4) in families {
        let is_used = config.addresses.iter().any(|address| address.addr().is_ipv4() == v4);
        if is_used && fs::read_to_string(file).is_ok_and(|value| value.trim() == "0") {
            tracing::warn!(
                "the kernel does not forward packets, so that peers reach this machine only; remedy: sysctl -w {sysctl}=1"
            );
        }
    }
}

fn failed(result: Result<Result<(), PumpError>, oneshot::error::RecvError>) -> crate::failure::Problem {
    let problem = Failure::system("the gateway has stopped by itself");
    match result {
        Ok(Err(error)) => problem.because(error),
        Ok(Ok(())) | Err(_) => problem,
    }
}

fn no_signals(error: io::Error) -> Failure {
    Failure::system("cannot wait for signals").because(error).into()
}

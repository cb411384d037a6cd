use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use packet::protocol;
use routes::nft::{Chain, ChainKind, Expr, Hook, Policy, Table};

use crate::link::{End, Link, LinkKind};
use crate::{During, Host, LabError};

/// The lab's addresses. Genesys media lies in the real, built-in ranges; everything else in documentation and benchmark ranges.
pub mod addresses {
    use std::net::Ipv4Addr;

    pub const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
    pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
    /// A second address of the access router, standing for another computer at home.
    pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 20);
    /// The home as the internet sees it.
    pub const HOME: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    /// Where there are two.
    pub const OTHER_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
    pub const SIGNALING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    /// Signaling again, for WebSockets: api.… and streaming.… are different hosts.
    pub const STREAMING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
    pub const MEDIA: Ipv4Addr = Ipv4Addr::new(52, 129, 96, 10);
    /// Media again, in another of its ranges.
    pub const MEDIA_2: Ipv4Addr = Ipv4Addr::new(169, 150, 104, 10);
    pub const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

    /// The agent inside the tunnel.
    pub const AGENT_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    pub const GATEWAY_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);
    pub const GATEWAY_PORT: u16 = 51820;
}

/// All that is signaling in the lab, as the generated configuration says too.
pub const SIGNALING_NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24);

/// The hosts and how they are connected:
///
/// ```text
/// agent ── access ── router (NAT) ── uplink ── core ─┬─ gateway
///                                                    ├─ signaling
///                                                    ├─ media
///                                                    └─ web
/// ```
///
/// Each host's device is `eth0`; the router's are `lan0` and `wan0`. Everything is reachable directly as well as through the gateway, so
/// that a leak is possible; private addresses are unknown to the core, so that a packet with one gets no answer.
#[derive(Debug)]
pub struct Internet {
    // Links before hosts: a relay's devices end before their namespaces.
    pub access: Link,
    pub uplink: Link,
    _wires: [Link; 4],
    pub agent: Host,
    pub router: Host,
    pub core: Host,
    pub gateway: Host,
    pub signaling: Host,
    pub media: Host,
    pub web: Host,
}

/// How [`Internet::build`] connects the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wiring {
    pub access: LinkKind,
    pub uplink: LinkKind,
    /// For the chances of impaired links.
    pub seed: u64,
}

impl Internet {
    /// Builds it, without any service yet. Any number can live at once.
    pub fn build(wiring: Wiring) -> Result<Self, LabError> {
        use addresses::*;
        let agent = Host::new("agent")?;
        let router = Host::new("router")?;
        let core = Host::new("core")?;
        let gateway = Host::new("gateway")?;
        let signaling = Host::new("signaling")?;
        let media = Host::new("media")?;
        let web = Host::new("web")?;
        for host in [&agent, &router, &core, &gateway, &signaling, &media, &web] {
            host.up("lo")?;
        }

        let access = Link::connect(
            wiring.access,
            End { host: &agent, device: "eth0", address: net(AGENT, 24) },
            End { host: &router, device: "lan0", address: net(ROUTER, 24) },
            wiring.seed,
        )?;
        let uplink = Link::connect(
            wiring.uplink,
            End { host: &router, device: "wan0", address: net(HOME, 24) },
            End { host: &core, device: "home0", address: net(first(HOME), 24) },
            wiring.seed.wrapping_add(1),
        )?;
        let wire = |host: &Host, device: &str, address| attach(&core, host, device, address, LinkKind::Wire);
        let wires = [
            wire(&gateway, "gateway0", GATEWAY)?,
            wire(&signaling, "signaling0", SIGNALING)?,
            wire(&media, "media0", MEDIA)?,
            wire(&web, "web0", WEB)?,
        ];

        agent.add_route(EVERYWHERE, ROUTER.into())?;
        router.add_route(EVERYWHERE, first(HOME).into())?;
        router.add_address("lan0", net(NEIGHBOUR, 24))?;
        signaling.add_address("eth0", net(STREAMING, 32))?;
        media.add_address("eth0", net(MEDIA_2, 32))?;
        core.add_route(net(MEDIA_2, 32), MEDIA.into())?;
        for host in [&router, &core] {
            host.sysctl("net/ipv4/ip_forward", "1")?;
        }
        masquerade(&router, "wan0")?;
        drop_unsolicited(&router, "wan0")?;
        forward_as_one(&gateway)?;
        Ok(Self { access, uplink, _wires: wires, agent, router, core, gateway, signaling, media, web })
    }

    /// Another host for a gateway, at an address of a /24 of its own. The link ends when it is dropped.
    pub fn add_gateway(
        &self,
        name: &str,
        address: Ipv4Addr,
        link: LinkKind,
    ) -> Result<(Host, Link), LabError> {
        let host = Host::new(name)?;
        host.up("lo")?;
        let link = attach(&self.core, &host, name, address, link)?;
        forward_as_one(&host)?;
        Ok((host, link))
    }
}

const EVERYWHERE: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

fn net(address: Ipv4Addr, prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, prefix_len))
}

/// Connects a host's `eth0` to the core's `device`.
fn attach(
    core: &Host,
    host: &Host,
    device: &str,
    address: Ipv4Addr,
    kind: LinkKind,
) -> Result<Link, LabError> {
    let near = End { host, device: "eth0", address: net(address, 24) };
    let far = End { host: core, device, address: net(first(address), 24) };
    let link = Link::connect(kind, near, far, 0)?;
    host.add_route(EVERYWHERE, first(address).into())?;
    Ok(link)
}

/// A gateway forwards what comes out of its tunnel with its own address.
fn forward_as_one(gateway: &Host) -> Result<(), LabError> {
    gateway.sysctl("net/ipv4/ip_forward", "1")?;
    masquerade(gateway, "eth0")
}

/// The core's address in the /24 of `address`.
fn first(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// As home routers do. Without it, an inbound packet that comes first takes its port away from the NAT: Linux then gives the outbound
/// packet another one, and the home's mapping is no longer independent of the endpoint.
fn drop_unsolicited(host: &Host, device: &str) -> Result<(), LabError> {
    let arrives = Expr::InInterface(device.to_owned());
    let table = Table {
        name: "lab-firewall".to_owned(),
        chains: vec![Chain {
            name: "input".to_owned(),
            kind: ChainKind::Filter,
            hook: Hook::Input,
            priority: 0,
            policy: Policy::Accept,
            rules: vec![
                vec![arrives.clone(), Expr::Established, Expr::Accept],
                vec![arrives, Expr::Protocol(protocol::UDP), Expr::Drop],
            ],
        }],
        ..Table::default()
    };
    host.run(move || table.install())?.during(|| format!("the firewall of host `{}`", host.name()))
}

/// Gives what `host` sends out of `device` the device's address (the kernel keeps ports where they are free).
fn masquerade(host: &Host, device: &str) -> Result<(), LabError> {
    let table = Table {
        name: "lab".to_owned(),
        chains: vec![Chain {
            name: "masquerade".to_owned(),
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: 100,
            policy: Policy::Accept,
            rules: vec![vec![Expr::OutInterface(device.to_owned()), Expr::Masquerade]],
        }],
        ..Table::default()
    };
    host.run(move || table.install())?.during(|| format!("masquerade on host `{}`", host.name()))
}

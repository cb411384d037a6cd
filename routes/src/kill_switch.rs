//! The kill switch: a table of the firewall that keeps signaling off every interface but the TUN and the loopback, whatever
//! routes say and whichever device a socket is bound to. It outlives the process.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use policy::{Guarded, LearnedSet, Traffic};
use tokio::{task::JoinHandle, time::sleep};
use tracing::{error, warn};

use crate::{
    ip_protocol::{ICMP, ICMPV6, TCP, UDP},
    nft::{self, Chain, ChainKind, Elements, Expr, Hook, Policy, Set, Socket, Table, Watch},
    process::Process,
};

/// The table's name.
pub const KILL_SWITCH: &str = "breakout-kill-switch";

/// Stands in while the table is replaced, and beside a dead run's.
const STAND_IN: &str = "breakout-kill-switch-next";
/// All that is ever installed.
pub(crate) const TABLES: [&str; 2] = [STAND_IN, KILL_SWITCH];

const COMMENT: &str = "Keeps signaling in the tunnel. To be rid of it: breakout panic-off";
const LOOPBACK: &str = "lo";
/// `NF_IP_PRI_FILTER` (linux/netfilter_ipv4.h): after destination NAT.
const PRIORITY_FILTER: i32 = 0;
/// After the table could not be put back, it is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The table, put back at once when somebody else touches it. Dropped without [`KillSwitch::remove`], it stays.
#[derive(Debug)]
pub(crate) struct KillSwitch {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
    passing: Passing,
}

/// What it lets pass: packets into the TUN, and those of our own sockets, by their mark.
#[derive(Clone, Debug)]
pub(crate) struct Passing {
    pub tun: String,
    pub index: u32,
    pub mark: u32,
}

/// What is kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub guarded: Vec<Guarded>,
    pub learned: Vec<LearnedSet>,
}

/// What has become of the kill switch since it was raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KillSwitchReport {
    /// Ranges of addresses that it keeps in, a learned address being one.
    pub ranges: usize,
    /// How often somebody else has touched it and it was put back.
    pub put_back: u64,
    /// Who did so last, if the kernel said.
    pub last: Option<Process>,
    /// Why it is not there now; it is tried again.
    pub missing: Option<String>,
}

#[derive(Debug)]
struct Shared {
    socket: Socket,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    contents: Contents,
    table: Table,
    report: KillSwitchReport,
    is_removed: bool,
}

impl KillSwitch {
    /// Installs the table, beside a dead run's until [`KillSwitch::take_over`].
    /// Must be called within a tokio runtime with I/O and time enabled.
    pub fn raise(contents: Contents, passing: Passing) -> Result<Self, nft::Error> {
        let socket = Socket::open()?;
        let watch = Watch::new(KILL_SWITCH, &socket)?;
        let table = table(&contents, &passing);
        if socket.has(KILL_SWITCH)? {
            stand_in(&table, &socket)?;
        } else {
            replace(&table, &socket)?;
        }
        let kept = Kept { contents, table, report: KillSwitchReport::default(), is_removed: false };
        let shared = Arc::new(Shared { socket, kept: Mutex::new(kept) });
        Ok(Self { keeper: tokio::spawn(keep(watch, shared.clone())), shared, passing })
    }

    /// Puts the table in the place of a dead run's, without a gap.
    pub fn take_over(&self) -> Result<(), nft::Error> {
        let Shared { socket, .. } = &*self.shared;
        if socket.has(STAND_IN)? { replace(&self.shared.kept().table, socket) } else { Ok(()) }
    }

    /// Swaps what is kept in, without a gap. Answers with what was before.
    pub fn swap(&self, contents: Contents) -> Result<Contents, nft::Error> {
        let mut kept = self.shared.kept();
        if kept.contents != contents {
            let table = table(&contents, &self.passing);
            // Where somebody else has just touched it, an error here is no reason to go without.
            if !matches!(table.install_over(&kept.table, &self.shared.socket), Ok(true)) {
                replace(&table, &self.shared.socket)?;
            }
            kept.table = table;
        }
        Ok(std::mem::replace(&mut kept.contents, contents))
    }

    pub fn contents(&self) -> Contents {
        self.shared.kept().contents.clone()
    }

    pub fn report(&self) -> KillSwitchReport {
        let kept = self.shared.kept();
        let Contents { guarded, learned } = &kept.contents;
        let ranges: usize = guarded.iter().map(|guarded| guarded.v4.len() + guarded.v6.len()).sum();
        let learned: usize = learned.iter().map(|set| set.addresses.len()).sum();
        KillSwitchReport { ranges: ranges + learned, ..kept.report.clone() }
    }

    /// On an error it is kept.
    pub fn remove(&self) -> Result<(), nft::Error> {
        let mut kept = self.shared.kept();
        for table in TABLES {
            nft::remove_by(table, &self.shared.socket)?;
        }
        kept.is_removed = true;
        Ok(())
    }
}

impl Drop for KillSwitch {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, by: Option<&Process>) -> bool {
        let mut kept = self.kept();
        if kept.is_removed {
            return true;
        }
        let installed = replace(&kept.table, &self.socket);
        kept.report.last = by.cloned().or(kept.report.last.take());
        kept.report.missing = installed.as_ref().err().map(ToString::to_string);
        let who = by.map_or_else(|| "somebody".to_owned(), ToString::to_string);
        match installed {
            Ok(()) => {
                kept.report.put_back += 1;
                warn!("{who} has changed the kill switch (table inet {KILL_SWITCH}); it is put back");
            }
            Err(error) => error!(
                "{who} has changed the kill switch (table inet {KILL_SWITCH}), and it cannot be put back: {error}; trying again"
            ),
        }
        kept.report.missing.is_none()
    }
}

/// What was missed while it could not be watched counts as a change.
async fn keep(mut watch: Watch, shared: Arc<Shared>) {
    loop {
        let by = match watch.touched().await {
            Ok(by) => by,
            Err(error) => {
                watch = watch_again(error, &shared).await;
                None
            }
        };
        while !shared.put_back(by.as_ref()) {
            sleep(RETRY).await;
        }
    }
}

async fn watch_again(mut why: nft::Error, shared: &Shared) -> Watch {
    loop {
        error!("cannot watch the kill switch: {why}; trying again");
        shared.kept().report.missing = Some(format!("it is not watched: {why}"));
        match Watch::new(KILL_SWITCH, &shared.socket) {
            Ok(watch) => return watch,
            Err(error) => why = error,
        }
        sleep(RETRY).await;
    }
}

/// Packets that pass while one transaction replaces a table with interval sets can be refused by neither the old table nor
/// the new one (measured on Linux 6.18; not so without sets). So the same table stands in under another name.
fn replace(table: &Table, socket: &Socket) -> Result<(), nft::Error> {
    if socket.has(KILL_SWITCH)? {
        stand_in(table, socket)?;
    }
    table.install_by(socket)?;
    nft::remove_by(STAND_IN, socket).map(drop)
}

fn stand_in(table: &Table, socket: &Socket) -> Result<(), nft::Error> {
    Table { name: STAND_IN.to_owned(), ..table.clone() }.install_by(socket)
}

fn table(contents: &Contents, Passing { tun, index, mark }: &Passing) -> Table {
    let mut sets = Vec::new();
    let mut rules = vec![
        vec![Expr::OutInterface(LOOPBACK.to_owned()), Expr::Accept],
        // After a crash either alone may become another interface's.
        vec![Expr::OutIndex(*index), Expr::OutInterface(tun.clone()), Expr::Accept],
        vec![Expr::Mark(*mark), Expr::Accept],
    ];
    for (number, Guarded { v4, v6, traffic }) in contents.guarded.iter().enumerate() {
        let v4 = (!v4.is_empty()).then(|| Elements::V4(v4.clone()));
        let v6 = (!v6.is_empty()).then(|| Elements::V6(v6.clone()));
        refuse(&number.to_string(), v4, v6, traffic, &mut sets, &mut rules);
    }
    for (number, LearnedSet { addresses, traffic, .. }) in contents.learned.iter().enumerate() {
        // Its sets are there while they are empty, so that an address more changes nothing else.
        let v4 = addresses
            .iter()
            .filter_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None });
        let v6 = addresses
            .iter()
            .filter_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None });
        let (v4, v6) = (Elements::SingleV4(v4.collect()), Elements::SingleV6(v6.collect()));
        refuse(&format!("-learned{number}"), Some(v4), Some(v6), traffic, &mut sets, &mut rules);
    }
    // What machines behind this one send is forwarded, and never passes `output`.
    let chain = |name: &str, hook, rules| Chain {
        name: name.to_owned(),
        kind: ChainKind::Filter,
        hook,
        priority: PRIORITY_FILTER,
        policy: Policy::Accept,
        rules,
    };
    let output = [rules.clone(), in_its_name(&sets)].concat();
    Table {
        name: KILL_SWITCH.to_owned(),
        comment: Some(COMMENT.to_owned()),
        chains: vec![chain("output", Hook::Output, output), chain("forward", Hook::Forward, rules)],
        sets,
    }
}

/// Drops a refusal's reset: it has signaling's address for a source, and follows the device that the refused socket is bound to, also where
/// the address that it is for is another interface's. What this machine sends from an address of its own is no such thing, be that in
/// signaling's sets or not.
fn in_its_name(sets: &[Set]) -> Vec<Vec<Expr>> {
    let source = |set: &Set| match set.elements {
        Elements::V4(_) | Elements::SingleV4(_) => Some(Expr::SourceInV4(set.name.clone())),
        Elements::V6(_) | Elements::SingleV6(_) => Some(Expr::SourceInV6(set.name.clone())),
        Elements::Ports(_) => None,
    };
    let is_reset =
        |source| vec![source, Expr::SourceNotLocal, Expr::Protocol(TCP), Expr::IsReset, Expr::Drop];
    sets.iter().filter_map(source).map(is_reset).collect()
}

fn refuse(
    label: &str,
    v4: Option<Elements>,
    v6: Option<Elements>,
    traffic: &Traffic,
    sets: &mut Vec<Set>,
    rules: &mut Vec<Vec<Expr>>,
) {
    let mut add = |name: String, elements: Elements| {
        sets.push(Set { name: name.clone(), elements });
        name
    };
    let mut families = Vec::new();
    if let Some(v4) = v4 {
        families.push((Expr::DestinationInV4(add(format!("addresses{label}.v4"), v4)), ICMP));
    }
    if let Some(v6) = v6 {
        families.push((Expr::DestinationInV6(add(format!("addresses{label}.v6"), v6)), ICMPV6));
    }
    for (protocol, name, ports, refusal) in
        [(TCP, "tcp", &traffic.tcp, Expr::Reset), (UDP, "udp", &traffic.udp, Expr::Prohibit)]
    {
        let mut condition = vec![Expr::Protocol(protocol)];
        match ports.as_slice() {
            [] => continue,
            [all] if *all == (0..=u16::MAX) => {}
            some => {
                let set = add(format!("{name}{label}"), Elements::Ports(some.to_vec()));
                condition.push(Expr::DestinationPortIn(set));
            }
        }
        for (address, _) in &families {
            rules.push(
                [vec![address.clone()], condition.clone(), vec![Expr::Counter, refusal.clone()]].concat(),
            );
        }
    }
    for (address, icmp) in families {
        if traffic.other {
            rules.push(vec![address, Expr::Counter, Expr::Prohibit]);
        } else if traffic.icmp {
            rules.push(vec![address, Expr::Protocol(icmp), Expr::Counter, Expr::Prohibit]);
        }
    }
}

//! The kernel fast path: a cache of bypass flows in front of the pump. Two BPF programs move a flow's packets between the TUN and the
//! physical interface under the mapping that the pump has reserved; this is the hold on them and on their table. It has no policy: the pump
//! says what is installed, when a direction is the kernel's, and when it ends.
//!
//! Each direction of an entry is by itself
//! - **pending** from [`FastPath::install`] on: the program counts the packets that it leaves to the pump;
//! - **live** after [`FastPath::settle`] found them all through the pump: the program moves what fits, and a packet that does not fit makes
//!   the direction pending again, so that none overtakes it;
//! - **suspended** by [`FastPath::suspend`], which is pending too: `settle` brings it back.
//!
//! Outbound is suspended before inbound: answers that the kernel delivered until now would meet a firewall on the physical interface that
//! has seen no packet leave there.
//!
//! Nothing is pinned: all of it goes away with the process.

mod entries;
mod error;
mod interface;
mod layout;
mod slots;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use packet::{Dscp, Tos};
use policy::Mark;

use crate::Direction;
use crate::clock::since_boot;
use crate::rtp::RtpStream;
use entries::{Entries, NEVER};
pub use error::{InstallError, Unavailable};
pub use interface::Link;
use layout::{Rules, Tuple};
use slots::Slots;

/// The programs as `bpf/build` made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/fast_path.o");

/// How long no packet of a direction must have been handed up before the kernel takes over: longer than a packet is on its way from the
/// program to the queue in which the pump finds it, which takes microseconds, and short beside a packet interval of 20 ms.
pub const QUIET: Duration = Duration::from_millis(1);

const LOAD_ATTEMPTS: usize = 8;
/// linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

/// The loaded programs, attached to the TUN. Dropping it ends the fast path at once.
pub struct FastPath {
    ebpf: Ebpf,
    outbound: HashMap<MapData, Tuple, u32>,
    inbound: HashMap<MapData, Tuple, u32>,
    entries: Entries,
    slots: Slots,
    tun: u32,
    _tun_link: SchedClassifierLink,
    physical: BTreeMap<u32, (Link, SchedClassifierLink)>,
}

/// An entry's slot, and which of that slot's tenants it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId {
    slot: u32,
    generation: u32,
}

/// A bypass flow that the pump has judged. All endpoints are of one family.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub internal: SocketAddr,
    /// Reserved by a socket of the pump's; the same as `internal` on the identity mapping.
    pub external: SocketAddr,
    pub remote: SocketAddr,
    /// The attached physical interface that leads to `remote`.
    pub interface: u32,
    /// The router, or `remote` itself on the same link, of either family; `None` where the interface has no link header.
    pub next_hop: Option<IpAddr>,
    /// SO_MARK of the pump's own sockets.
    pub fwmark: u32,
    /// Largest outbound packet, IP header included.
    pub mtu: u32,
    pub mark: Mark,
    /// How long the flow lives without an outbound packet.
    pub life: Duration,
    /// What was measured so far, outbound and inbound; arrivals are since boot.
    pub rtp: [RtpStream; 2],
}

/// What the kernel moved and what it left to the pump. Times are since boot (CLOCK_BOOTTIME).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Of the flow that the kernel moved; a super-packet counts as the packets it becomes.
    pub packets: u64,
    /// IP header included.
    pub bytes: u64,
    /// When the kernel moved the last one; the entry's installation if it moved none.
    pub last_seen: Duration,
    /// Left to the pump since the installation.
    pub handed_up: u64,
    /// Whether the next packet that fits is the kernel's.
    pub live: bool,
    /// Of all packets, those left to the pump too; arrivals are since boot.
    pub rtp: RtpStream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub outbound: Counts,
    pub inbound: Counts,
}

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// On the TUN's egress.
    Outbound,
    /// On the ingress of a physical interface of this kind.
    Inbound(Link),
}

impl FastPath {
    /// Loads the programs and attaches to the TUN with this index in this thread's network namespace. At most `limit` flows, each of which
    /// takes 448 bytes of memory from the start. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
    pub fn open(tun: u32, limit: u32) -> Result<Self, Unavailable> {
        Self::open_object(OBJECT, tun, limit)
    }

    /// The same with another build of the programs.
    pub fn open_object(object: &[u8], tun: u32, limit: u32) -> Result<Self, Unavailable> {
        let mut loader = EbpfLoader::new();
        for map in ["outbound_flows", "inbound_flows", "entries"] {
            loader.map_max_entries(map, limit);
        }
        let mut ebpf = loader.load(object).map_err(Unavailable::at_load)?;
        let outbound = take_table(&mut ebpf, "outbound_flows")?;
        let inbound = take_table(&mut ebpf, "inbound_flows")?;
        let entries = map_entries(&ebpf, limit)?;
        for program in [Program::Outbound, Program::Inbound(Link::Ethernet), Program::Inbound(Link::None)] {
            load(classifier(&mut ebpf, program)?).map_err(Unavailable::at_program)?;
        }
        let tun_link = attach(&mut ebpf, Program::Outbound, tun)?;
        give_memory_back();
        Ok(Self {
            ebpf,
            outbound,
            inbound,
            entries,
            slots: Slots::new(limit),
            tun,
            _tun_link: tun_link,
            physical: BTreeMap::new(),
        })
    }

    /// Attaches to a physical interface; nothing changes if it is attached. Returns whether flows over it need a next hop.
    pub fn attach(&mut self, interface: u32) -> Result<Link, Unavailable> {
        if let Some((link, _)) = self.physical.get(&interface) {
            return Ok(*link);
        }
        let link = interface::link(&interface::name(interface)?)?;
        let attached = attach(&mut self.ebpf, Program::Inbound(link), interface)?;
        self.physical.insert(interface, (link, attached));
        Ok(link)
    }

    /// Leaves interfaces that are gone, whose indices may be given out again.
    pub fn detach_gone(&mut self) {
        self.physical.retain(|index, _| interface::name(*index).is_ok());
    }

    /// Caches a flow; both directions are pending. The pump must not yet be done with packets that it knows of.
    pub fn install(&mut self, flow: &Flow) -> Result<EntryId, InstallError> {
        let rules = self.rules(flow)?;
        let now = since_boot();
        let id = self.slots.take(now).ok_or(InstallError::Full)?;
        if let Err(error) = self.entries.reach(id.slot) {
            self.slots.give_back(id, now);
            return Err(InstallError::Table(error));
        }
        self.entries.write(id.slot, rules, flow.rtp, now);
        // A system call is a full barrier: whoever finds the entry sees what was written.
        let inserted = self.inbound.insert(rules.inbound, id.slot, BPF_NOEXIST).and_then(|()| {
            self.outbound.insert(rules.outbound, id.slot, BPF_NOEXIST).inspect_err(|_| {
                let _ = self.inbound.remove(&rules.inbound);
            })
        });
        if let Err(error) = inserted {
            self.slots.give_back(id, now);
            return Err(InstallError::at_insert(error));
        }
        Ok(id)
    }

    /// Gives a direction to the kernel, if every packet that it handed up is through: the queue in which the pump finds them (outbound: the
    /// TUN's; inbound: the mapping's socket) was found empty, and what had been in it was passed on, all after `since` (time since boot).
    /// `measured` is what the pump made of all packets that passed it, if it measured them: the program goes on from there.
    /// `false`: the direction was not quiet for [`QUIET`] before `since`; to be tried again. Also of an entry that is gone.
    pub fn settle(
        &self,
        id: EntryId,
        direction: Direction,
        since: Duration,
        measured: Option<RtpStream>,
    ) -> bool {
        let Some(entry) = self.entry(id) else { return false };
        let counts = direction.of(&entry.counts);
        // The program writes the time before the count: a packet that this count includes is no younger than this time.
        let handed_up = counts.handed_up.load(Ordering::Acquire);
        let last = Duration::from_nanos(counts.last_handed_up.load(Ordering::Acquire));
        if last + QUIET > since {
            return false;
        }
        if let Some(stream) = measured {
            direction.of(&entry.rtp).store(stream);
        }
        direction.of(&entry.finished).store(handed_up, Ordering::SeqCst);
        // Had one been handed up meanwhile, it would wait for somebody to look again.
        counts.handed_up.load(Ordering::SeqCst) == handed_up
    }

    /// Takes a direction back from the kernel: the next packet is the pump's. Outbound first.
    pub fn suspend(&self, id: EntryId, direction: Direction) {
        let Some(entry) = self.entry(id) else { return };
        direction.of(&entry.finished).store(NEVER, Ordering::SeqCst);
    }

    /// Ends an entry; returns what it counted. No packet that arrives later is moved by it.
    pub fn remove(&mut self, id: EntryId) -> Option<Statistics> {
        let before = self.statistics(id)?;
        self.suspend(id, Direction::Outbound);
        self.suspend(id, Direction::Inbound);
        let rules = self.entries.rules(id.slot)?;
        for removed in [self.outbound.remove(&rules.outbound), self.inbound.remove(&rules.inbound)] {
            if let Err(error) = removed {
                tracing::warn!(%error, "the kernel's flow table kept an entry, which moves nothing any more");
            }
        }
        // The system calls above take longer than a program that was at work when they began.
        let mut statistics = self.statistics(id)?;
        statistics.outbound.live = before.outbound.live;
        statistics.inbound.live = before.inbound.live;
        self.slots.give_back(id, since_boot());
        Some(statistics)
    }

    /// `None` if the entry is gone. Reads shared memory, no system call.
    pub fn statistics(&self, id: EntryId) -> Option<Statistics> {
        let entry = self.entry(id)?;
        let counts = |direction: Direction| {
            let counts = direction.of(&entry.counts);
            let handed_up = counts.handed_up.load(Ordering::Relaxed);
            Counts {
                packets: counts.packets.load(Ordering::Relaxed),
                bytes: counts.bytes.load(Ordering::Relaxed),
                last_seen: Duration::from_nanos(counts.last_seen.load(Ordering::Relaxed)),
                handed_up,
                live: direction.of(&entry.finished).load(Ordering::Relaxed) == handed_up,
                rtp: direction.of(&entry.rtp).load(),
            }
        };
        Some(Statistics { outbound: counts(Direction::Outbound), inbound: counts(Direction::Inbound) })
    }

    pub fn entries(&self) -> impl Iterator<Item = (EntryId, Statistics)> {
        self.slots.iter().filter_map(|id| Some((id, self.statistics(id)?)))
    }

    /// A program's descriptor, as BPF_PROG_TEST_RUN wants it.
    pub fn program(&self, program: Program) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        let loaded: &SchedClassifier = self.ebpf.program(program.name())?.try_into().ok()?;
        loaded.fd().ok().map(|fd| fd.as_fd())
    }

    fn entry(&self, id: EntryId) -> Option<&layout::Entry> {
        self.entries.get(id.slot).filter(|_| self.slots.holds(id))
    }

    fn rules(&self, flow: &Flow) -> Result<Rules, InstallError> {
        let &Flow { internal, external, remote, interface, .. } = flow;
        if internal.is_ipv4() != remote.is_ipv4() || external.is_ipv4() != remote.is_ipv4() {
            return Err(InstallError::Families);
        }
        let (link, _) = self.physical.get(&interface).ok_or(InstallError::NotAttached(interface))?;
        let (next_hop, next_hop_family) = match (link, flow.next_hop) {
            (Link::Ethernet, Some(next_hop)) => layout::address(next_hop),
            (Link::None, None) => ([0; 16], 0),
            _ => return Err(InstallError::NextHop),
        };
        let marking = Marking::of(flow.mark);
        Ok(Rules {
            keep: marking.keep,
            life: flow.life.as_nanos() as u64,
            outbound: Tuple::new(internal, remote),
            inbound: Tuple::new(remote, external),
            next_hop,
            next_hop_family,
            physical: interface,
            tun: self.tun,
            mark: flow.fwmark,
            mtu: flow.mtu,
            dscp: marking.dscp,
            priority: marking.priority,
            reserved: [0; 9],
        })
    }
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound(Link::Ethernet) => "inbound_link",
            Self::Inbound(Link::None) => "inbound_plain",
        }
    }
}

/// A rule's mark as the program applies it: no rule of its own, but what [`Mark::apply`] does to each code point.
struct Marking {
    keep: u64,
    dscp: u32,
    priority: u32,
}

impl Marking {
    fn of(mark: Mark) -> Self {
        let kept = |dscp: &Dscp| {
            let tos = Tos::default().with_dscp(*dscp);
            mark.apply(tos) == tos
        };
        let keep = (0..64).filter_map(Dscp::new).filter(kept).fold(0, |keep, dscp| keep | 1 << dscp.value());
        let dscp = match mark {
            Mark::Keep => Dscp::DEFAULT,
            Mark::Voice(dscp) => dscp,
        };
        Self { keep, dscp: dscp.value().into(), priority: priority(Tos::default().with_dscp(dscp)) }
    }
}

/// The queueing priority that the kernel derives from the TOS of an IPv4 socket: `ip_tos2prio` in linux/net/ipv4/route.c, whose classes are
/// best effort, bulk, interactive and interactive bulk (linux/pkt_sched.h).
fn priority(tos: Tos) -> u32 {
    match tos.0 >> 3 & 3 {
        0 => 0,
        1 => 2,
        2 => 6,
        _ => 4,
    }
}

/// The loader reads the kernel's BTF into megabytes of small pieces, and frees them into a heap that nothing else would use up.
fn give_memory_back() {
    // SAFETY: takes no pointers, and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

fn take_table(ebpf: &mut Ebpf, name: &'static str) -> Result<HashMap<MapData, Tuple, u32>, Unavailable> {
    let map =
        ebpf.take_map(name).ok_or_else(|| Unavailable::refused("the program's object lacks a map", name))?;
    HashMap::try_from(map).map_err(|error| Unavailable::at_map(&error))
}

fn map_entries(ebpf: &Ebpf, limit: u32) -> Result<Entries, Unavailable> {
    use std::os::fd::AsFd;
    let Some(Map::Array(array)) = ebpf.map("entries") else {
        return Err(Unavailable::refused("the program's object lacks a map", "entries"));
    };
    let info = array.info().map_err(|error| Unavailable::at_map(&error))?;
    if info.value_size() as usize != size_of::<layout::Entry>() || info.max_entries() != limit {
        return Err(Unavailable::refused("the program's entries have another layout", "entries"));
    }
    Entries::map(array.fd().as_fd(), limit)
        .map_err(|error| Unavailable::refused("mapping the entries", &error))
}

/// The verifier gives up with EAGAIN when a signal comes, which in a program with children may be any moment.
fn load(classifier: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 0..LOAD_ATTEMPTS {
        match classifier.load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    classifier.load()
}

fn attach(ebpf: &mut Ebpf, program: Program, interface: u32) -> Result<SchedClassifierLink, Unavailable> {
    let at = match program {
        Program::Outbound => TcAttachType::Egress,
        Program::Inbound(_) => TcAttachType::Ingress,
    };
    let name = interface::name(interface)?;
    let classifier = classifier(ebpf, program)?;
    let attached = classifier.attach_with_options(&name, at, TcAttachOptions::TcxOrder(LinkOrder::default()));
    attached
        .and_then(|link| classifier.take_link(link))
        .map_err(|error| Unavailable::at_attach(error, interface))
}

fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, Unavailable> {
    let missing = || Unavailable::refused("the program's object lacks", program.name());
    ebpf.program_mut(program.name()).and_then(|program| program.try_into().ok()).ok_or_else(missing)
}

//! Flows that are pinned, and a packet of each: a batch as the pump has it.

#[path = "../../../dataplane/tests/scenario/mod.rs"]
#[allow(dead_code, reason = "shared with the engine's tests")]
pub mod scenario;

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::engine::{Action, Engine, Limits};
use packet::{Checksum, PacketMut};
use scenario::{TUN, rtp, udp};

pub const BATCH: usize = 32;
/// Behind the IPv4 and UDP header.
const PAYLOAD_AT: usize = 28;

pub struct Flows {
    engine: Box<Engine>,
    batch: Vec<Vec<u8>>,
    now: Instant,
}

impl Flows {
    /// `payload` bytes of RTP in each packet.
    pub fn new(destination: SocketAddr, tos: u8, payload: usize) -> Self {
        let source = |place| SocketAddr::new(TUN, 5000 + place as u16);
        let batch = (0..BATCH).map(|place| udp(source(place), destination, tos, &rtp(0, payload)));
        let (engine, batch) = (Box::new(scenario::engine(Limits::default())), batch.collect());
        let mut flows = Self { engine, batch, now: Instant::now() };
        flows.open();
        // Long enough that the clock rate is known and jitter measured.
        for number in 1..60 {
            flows.now += Duration::from_millis(20);
            flows
                .batch
                .iter_mut()
                .for_each(|bytes| bytes[PAYLOAD_AT..].copy_from_slice(&rtp(number, payload)));
            flows.step();
        }
        flows
    }

    /// What the engine does for the batch.
    pub fn step(&mut self) {
        for bytes in &mut self.batch {
            let Ok(mut packet) = PacketMut::parse(black_box(bytes), Checksum::Partial) else { continue };
            black_box(self.engine.outbound(&mut packet, None, self.now));
        }
    }

    /// Sends each flow's first packet, so that it is pinned.
    fn open(&mut self) {
        for bytes in &mut self.batch {
            let Ok(mut packet) = PacketMut::parse(bytes, Checksum::Partial) else { continue };
            if let Action::Reserve { internal, external } = self.engine.outbound(&mut packet, None, self.now)
            {
                self.engine.reserved(internal, SocketAddr::new(external, internal.port()), self.now);
                self.engine.outbound(&mut packet, None, self.now);
            }
        }
    }
}

//! The names of figures in reports. Names and units are part of the schema.

/// Of payload, in Gbit/s.
pub const RATE: &str = "rate";
/// … in each direction, where both are full at once.
pub const RATE_UP: &str = "rate-up";
pub const RATE_DOWN: &str = "rate-down";
/// That arrive, in 1000/s.
pub const PACKETS: &str = "packets";
/// Of the client's process, in CPU seconds per 10⁹ bytes of payload.
pub const CPU: &str = "cpu";
/// Voluntary context switches per 10⁹ bytes.
pub const WAKEUPS: &str = "wakeups";
/// Involuntary context switches per 10⁹ bytes.
pub const PREEMPTIONS: &str = "preemptions";
/// Peak resident memory, in MiB.
pub const MEMORY: &str = "memory";
/// How often a thread of the client was put on a processor, per second.
pub const WAKEUPS_PER_SECOND: &str = "wakeups-per-second";
/// In CPU milliseconds per second.
pub const CPU_PER_SECOND: &str = "cpu-per-second";

/// Round trips in microseconds.
pub const RTT_P50: &str = "rtt-p50";
pub const RTT_P99: &str = "rtt-p99";
pub const RTT_P999: &str = "rtt-p99.9";
pub const RTT_MAX: &str = "rtt-max";
/// Delays one way, both ways together, in microseconds.
pub const ONE_WAY_P50: &str = "one-way-p50";
pub const ONE_WAY_P99: &str = "one-way-p99";
pub const ONE_WAY_P999: &str = "one-way-p99.9";
pub const ONE_WAY_MAX: &str = "one-way-max";
/// The way there alone: beside the round trip it tells in which direction packets waited.
pub const THERE_P50: &str = "there-p50";
/// RFC 3550, in microseconds.
pub const JITTER: &str = "jitter";
/// Packets of all calls.
pub const SENT: &str = "sent";
/// In percent.
pub const LOSS: &str = "loss";
pub const REORDERED: &str = "reordered";
pub const MOS: &str = "mos";
pub const GENESYS_MOS: &str = "genesys-mos";
/// What the load that ran beside voice moved meanwhile, by the agent's end of it, in Gbit/s; of the scenario `load` what arrived of all
/// of it.
pub const LOAD_RATE: &str = "load-rate";
/// By how much the bench sent packets after they were due, in microseconds: part of the round trip.
pub const LATE_P50: &str = "late-p50";
pub const LATE_P99: &str = "late-p99";
/// By how much the far end's clock is ahead of this machine's, and by how much that may be wrong, in microseconds.
pub const CLOCK_OFFSET: &str = "clock-offset";
pub const CLOCK_ERROR: &str = "clock-error";
/// How often a thread of Breakout was put on a processor for each packet sent (and its answer).
pub const SWITCHES_PER_PACKET: &str = "switches-per-packet";
/// … and for each second.
pub const SWITCHES_PER_SECOND: &str = "switches-per-second";
/// What all processors together spent for each packet sent (and its answer), endpoints and interrupts included, in microseconds.
pub const MACHINE_CPU: &str = "machine-cpu";

pub const MILLISECONDS: &str = "milliseconds";

/// Of the distributions.
pub const ROUND_TRIP: &str = "round-trip";
pub const ONE_WAY: &str = "one-way";

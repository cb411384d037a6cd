use std::fmt;

use serde::{Serialize, Serializer};

/// What `breakout lab` found. Serialized, it is the output of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    /// Which program was the tunnel's far end; `null` with `--break`.
    pub gateway: Option<String>,
    /// From the first namespace to the last row, in seconds.
    pub seconds: f64,
    pub rows: Vec<Row>,
    /// The rows of signaling that was seen in the clear on the access router's wire.
    pub signaling_in_clear: Vec<String>,
    /// Packets to or from signaling addresses on the access router's wire that belong to no row.
    pub other_signaling_in_clear: u64,
    /// Packets with the agent's address inside the tunnel as source on the access router's wire.
    pub tunnel_source_in_clear: u64,
    /// The daemon's status and last words, if it ended before it was told to.
    pub daemon_ended: Option<String>,
    /// WireGuard datagrams on the access router's wire.
    pub tunnel_datagrams: u64,
    pub captures: Vec<CapturePoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every row is as it should be.
    Green,
    /// A row is not, or signaling was seen in the clear.
    Red,
    /// Nothing wrong was seen, but a capture lost packets or could not read some, so that something may have been missed.
    Unjudged,
}

/// One kind of traffic.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub kind: String,
    pub what: String,
    /// `udp` or `tcp`.
    pub protocol: String,
    pub destination: String,
    /// Requests or datagrams that the application sent, and those of them that were answered.
    pub sent: u64,
    pub answered: u64,
    pub path_expected: Path,
    pub path_seen: Path,
    /// Packets to the destination captured on the access router's wire, and behind the gateway.
    pub packets_in_clear: u64,
    pub packets_behind_gateway: u64,
    /// Code points of the captured packets to the destination.
    pub dscp: Vec<u8>,
    /// Code points of the answers as the application got them, where it looked.
    pub dscp_back: Vec<u8>,
    /// Source addresses with which a bypassed flow left the home.
    pub external: Vec<String>,
    /// Round trips in microseconds; for voice from when the packet was due.
    pub rtt_p50_us: Option<f64>,
    pub rtt_p99_us: Option<f64>,
    /// RFC 3550 jitter of the round trip in microseconds, for voice.
    pub jitter_us: Option<f64>,
    /// 0 to 1.
    pub loss: f64,
    pub ok: bool,
    /// Empty if the row is as it should be.
    pub problems: Vec<String>,
}

/// How traffic went, or should have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Behind the gateway, and never in the clear before it.
    Tunnel,
    /// In the clear, with another source than the application's own: it went through the TUN and its NAT.
    Bypass,
    /// In the clear, with the application's own source, which is the physical address. On the wire the same as direct, unless marked by us.
    BypassOwnAddress,
    /// In the clear, with the application's own source.
    Direct,
    /// Not on any wire, and the application was told at once.
    Refused,
    /// Did not reach the application; nobody was told.
    Dropped,
    /// Both in the clear and behind the gateway.
    Both,
}

/// One capture.
#[derive(Clone, Debug, Serialize)]
pub struct CapturePoint {
    pub point: String,
    pub packets: u64,
    /// Packets that passed while its buffer was full.
    pub lost: u64,
    pub unparsed: u64,
}

impl Report {
    /// 0 green, 1 red, 2 could not be judged.
    pub fn exit_status(&self) -> i32 {
        match self.verdict {
            Verdict::Green => 0,
            Verdict::Red => 1,
            Verdict::Unjudged => 2,
        }
    }
}

impl CapturePoint {
    /// Packets of which it cannot be said what they were.
    pub fn missed(&self) -> u64 {
        self.lost + self.unparsed
    }
}

impl Path {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Bypass => "bypass",
            Self::BypassOwnAddress => "bypass as itself",
            Self::Direct => "direct",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Both => "clear and tunnel",
        }
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["traffic", "sent", "expected", "seen", "DSCP", "p50 ms", "p99 ms", "jitter", "loss", ""];
        let mut table = vec![head.map(str::to_owned)];
        table.extend(self.rows.iter().map(Row::cells));
        let widths: Vec<usize> = (0..head.len())
            .map(|column| {
                let cells = table.iter().filter_map(|cells| cells.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
            })
            .collect();
        for cells in &table {
            let mut line = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let numeric = column == 1 || (5..=8).contains(&column);
                line += &if numeric { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f)?;
        for row in &self.rows {
            for problem in &row.problems {
                writeln!(f, "{}: {problem}", row.what)?;
            }
        }
        if self.other_signaling_in_clear > 0 {
            writeln!(f, "{} more packets of signaling in the clear", self.other_signaling_in_clear)?;
        }
        if self.tunnel_source_in_clear > 0 {
            let count = self.tunnel_source_in_clear;
            writeln!(f, "{count} packets with the tunnel's source address in the clear")?;
        }
        if let Some(ended) = &self.daemon_ended {
            writeln!(f, "the daemon ended by itself: {ended}")?;
        }
        for capture in self.captures.iter().filter(|capture| capture.missed() > 0) {
            writeln!(f, "the capture {} missed {} packets: no proof", capture.point, capture.missed())?;
        }
        let verdict = match self.verdict {
            Verdict::Green => "green",
            Verdict::Red => "red",
            Verdict::Unjudged => "could not be judged",
        };
        let gateway = self.gateway.as_deref().map(|name| format!("gateway {name}, ")).unwrap_or_default();
        writeln!(
            f,
            "{verdict}: {gateway}{} packets captured, {} WireGuard datagrams, {:.1} s",
            self.captures.iter().map(|capture| capture.packets).sum::<u64>(),
            self.tunnel_datagrams,
            self.seconds
        )
    }
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let milliseconds =
            |us: Option<f64>| us.map_or_else(|| "–".to_owned(), |us| format!("{:.2}", us / 1000.0));
        let dscp: Vec<String> = self.dscp.iter().map(|dscp| dscp_name(*dscp)).collect();
        let expects_answers = !matches!(self.path_expected, Path::Refused | Path::Dropped);
        [
            self.what.clone(),
            self.sent.to_string(),
            self.path_expected.name().to_owned(),
            self.path_seen.name().to_owned(),
            if dscp.is_empty() { "–".to_owned() } else { dscp.join(" ") },
            milliseconds(self.rtt_p50_us),
            milliseconds(self.rtt_p99_us),
            milliseconds(self.jitter_us),
            // Where nothing shall be answered, that all is lost is no news.
            if expects_answers { format!("{:.1} %", self.loss * 100.0) } else { "–".to_owned() },
            if self.ok { "ok" } else { "WRONG" }.to_owned(),
        ]
    }
}

fn dscp_name(value: u8) -> String {
    match packet::Dscp::new(value) {
        Some(dscp) => dscp.to_string(),
        None => value.to_string(),
    }
}

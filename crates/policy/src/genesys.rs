//! The built-in Genesys sets and rules, written as a user would write them, and the regions.

mod regions;

pub use regions::{REGIONS, Region};

/// The set that `[genesys] region` fills.
pub const SIGNALING: &str = "genesys-signaling";

/// Media: all commercial regions share these ranges; Genesys publishes no IPv6 ones and has no API that lists them.
pub(crate) const SETS: &str = r#"
[sets.genesys-media]
cidrs = ["52.129.96.0/20", "169.150.104.0/21", "167.234.48.0/20", "136.245.64.0/18"]
"#;

pub(crate) const RULES: &str = r#"
[[rules]]
name = "media"
to = "genesys-media"
protocol = "udp"
ports = ["443", "3478", "5349", "16384-65535"]
when = "ef-or-webrtc"
path = "bypass"
dscp = "ef"

# TURN over TCP or TLS, and UDP that is neither EF nor WebRTC.
[[rules]]
name = "media-fallback"
to = "genesys-media"
protocol = ["tcp", "udp"]
ports = ["443", "3478", "5349", "16384-65535"]
path = "tunnel"

[[rules]]
name = "signaling"
to = "genesys-signaling"
protocol = ["tcp", "udp"]
ports = ["80", "443", "5060", "5061", "8061"]
path = "tunnel"
"#;

//! DNS over HTTPS (RFC 8484): who uses it resolves by himself, and none of his questions comes here. But for the server's own address.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Servers that come with programs, as of 2026: with Chromium (net/dns/public/doh_provider_entry.cc), Firefox
/// (services/settings/dumps/main/doh-providers.json, and CIRA's in Canada) and Windows (`netsh dns show encryption`).
const SERVERS: [&str; 26] = [
    "chrome.cloudflare-dns.com",
    "chromium.dns.nextdns.io",
    "cloudflare-dns.com",
    "dns.google",
    "dns.levonet.sk",
    "dns.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "dns64.dns.google",
    "doh-01.spectrum.com",
    "doh-02.spectrum.com",
    "doh.cleanbrowsing.org",
    "doh.cox.net",
    "doh.dns.sb",
    "doh.familyshield.opendns.com",
    "doh.opendns.com",
    "doh.quickline.ch",
    "doh.xfinity.com",
    "family.cloudflare-dns.com",
    "firefox.dns.nextdns.io",
    "mozilla.cloudflare-dns.com",
    "odvr.nic.cz",
    "private.canadianshield.cira.ca",
    "protective.joindns4.eu",
    "public.dns.iij.jp",
    "security.cloudflare-dns.com",
];

/// The servers that were asked for, and how often.
#[derive(Debug, Default)]
pub struct Seen(Mutex<BTreeMap<&'static str, u64>>);

impl Seen {
    /// Counts a question, and logs the first one for each server.
    pub fn note(&self, server: &'static str) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let questions = seen.entry(server).or_default();
        *questions += 1;
        if *questions == 1 {
            tracing::warn!(
                server,
                "a program asks for a server of DNS over HTTPS: if it resolves by itself, its signaling goes out directly; set the browser's policy (docs/names.md)"
            );
        }
    }

    /// By name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|(server, questions)| (*server, *questions)).collect()
    }
}

/// The known server of this name, lowercase and without trailing dot.
pub fn server(name: &str) -> Option<&'static str> {
    SERVERS.binary_search(&name).ok().and_then(|at| SERVERS.get(at)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_found() {
        for name in SERVERS {
            assert_eq!(server(name), Some(name));
        }
        for other in ["", "google", "www.dns.google", "cloudflare.com"] {
            assert_eq!(server(other), None);
        }
    }
}

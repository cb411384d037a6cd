//! What a resolv.conf(5) says, and what we say in ours.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
};

use nix::net::if_::if_nametoindex;

use super::{LOOPBACK, file::Entry};

/// Servers that the C library asks (`MAXNS`, resolv.h).
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;
/// Where systemd-resolved listens (systemd-resolved(8)).
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

const HEADER: &str = "\
# Written by Breakout: it answers the names of its policy through the tunnel and passes on all others.
# `breakout down` puts back what was here; when no daemon runs, `breakout state clean` does.
";
const BEFORE: &str = "# before: ";

/// The servers that the C library would ask: the first three, or the machine itself if there is none.
pub fn nameservers(content: &[u8]) -> Vec<SocketAddr> {
    let servers: Vec<_> = named(content).take(SERVERS_MAX).collect();
    if servers.is_empty() { vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)] } else { servers }
}

pub fn has_nameservers(content: &[u8]) -> bool {
    named(content).next().is_some()
}

/// Whether whoever follows it asks systemd-resolved and nobody else.
pub fn leads_to_stub(content: &[u8]) -> bool {
    nameservers(content).iter().all(is_stub)
}

pub fn is_stub(server: &SocketAddr) -> bool {
    STUBS.contains(&server.ip())
}

/// A file that names only our resolver; how names are completed and asked for stays. A second server would be asked when the
/// first one refuses, in the clear.
pub fn ours(before: &Entry) -> Vec<u8> {
    let mut text = head();
    for line in kept(&before.content()) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    // JSON has no line breaks of its own. Nothing in an entry can fail to become JSON.
    let entry = serde_json::to_string(before).unwrap_or_default();
    text.extend_from_slice(format!("{BEFORE}{entry}\n").as_bytes());
    text
}

/// Whether it is as we write it where there was before what it says: whoever edits ours may leave its comments.
pub fn is_ours(content: &[u8]) -> bool {
    let Some(before) = before(content) else { return false };
    let said = match &before {
        // What it leads to may have changed since.
        Entry::Link { .. } => content.to_vec(),
        entry => entry.content(),
    };
    let server = server_line();
    let lines = content.split(|byte| *byte == b'\n');
    let that_count = lines.filter(|line| !matches!(line.first(), None | Some(b'#' | b';')));
    that_count.eq(iter::once(server.as_bytes()).chain(kept(&said)))
}

/// Whether it is a part of ours, from its beginning and not up to the account of what was there before: one that is overwritten
/// in place is empty first.
pub fn is_torn(content: &[u8]) -> bool {
    let head = head();
    before(content).is_none() && (head.starts_with(content) || content.starts_with(&head))
}

/// What others have made of ours, without us: in our server's place are those that were there `before`.
pub fn without_ours(content: &[u8], before: &Entry) -> Vec<u8> {
    let before = before.content();
    let mut text = Vec::new();
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let bare = line.trim_ascii_end();
        if named(bare).any(|server| server.ip() == LOOPBACK) {
            for (_, line) in nameserver_lines(&before) {
                text.extend_from_slice(line);
                text.push(b'\n');
            }
        } else if !is_our_comment(bare) {
            text.extend_from_slice(line);
        }
    }
    text
}

/// What was there before ours, by its own account.
pub fn before(ours: &[u8]) -> Option<Entry> {
    let entry = ours.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(BEFORE.as_bytes()))?;
    serde_json::from_slice(entry).ok()
}

/// The domains of all lines for completing names, as they are written.
pub fn search(content: &[u8]) -> impl Iterator<Item = &str> {
    let lines =
        directives(content).filter(|(keyword, _)| [b"search".as_slice(), b"domain"].contains(keyword));
    let words = lines.flat_map(|(_, line)| line.split(is_space).filter(|word| !word.is_empty()).skip(1));
    words.filter_map(|word| std::str::from_utf8(word).ok())
}

/// The lines about other things than servers.
pub fn kept(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_kept =
        |keyword: &[u8]| [b"search".as_slice(), b"domain", b"options", b"sortlist"].contains(&keyword);
    directives(content).filter(move |(keyword, _)| is_kept(keyword)).map(|(_, line)| line)
}

fn head() -> Vec<u8> {
    format!("{HEADER}{}\n", server_line()).into_bytes()
}

fn server_line() -> String {
    format!("nameserver {LOOPBACK}")
}

fn is_our_comment(line: &[u8]) -> bool {
    line.starts_with(BEFORE.as_bytes()) || HEADER.lines().any(|ours| ours.as_bytes() == line)
}

fn named(content: &[u8]) -> impl Iterator<Item = SocketAddr> {
    nameserver_lines(content).filter_map(|(_, line)| server(line))
}

fn nameserver_lines(content: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    directives(content).filter(|(keyword, _)| *keyword == b"nameserver")
}

/// Keywords, which stand at a line's beginning, each with its whole line.
fn directives(content: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    content.split(|byte| *byte == b'\n').filter_map(|line| Some((line.split(is_space).next()?, line)))
}

fn server(line: &[u8]) -> Option<SocketAddr> {
    let value = line.split(is_space).filter(|word| !word.is_empty()).nth(1)?;
    let value = std::str::from_utf8(value).ok()?;
    if let Ok(address) = value.parse() {
        return Some(SocketAddr::new(address, PORT));
    }
    let (address, zone) = value.split_once('%')?;
    let scope = zone.parse().ok().or_else(|| if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(content: &[u8]) -> Entry {
        Entry::File { content: content.to_vec().into(), mode: 0o640, user: 7, group: 8 }
    }

    #[test]
    fn servers_are_those_the_c_library_asks() {
        let of =
            |text: &str| nameservers(text.as_bytes()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("nameserver 10.0.0.1\n"), ["10.0.0.1:53"]);
        assert_eq!(
            of(
                "# nameserver 1.1.1.1\n nameserver 2.2.2.2\nnameserver\t 10.0.0.1  # the first\r\nnameserver fd00::1"
            ),
            ["10.0.0.1:53", "[fd00::1]:53"]
        );
        assert_eq!(of("nameserver fe80::1%lo\nnameserver fe80::2%7\n"), ["[fe80::1%1]:53", "[fe80::2%7]:53"]);
        assert_eq!(
            of(
                "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver x\nnameserver 1.0.0.3\nnameserver 1.0.0.4"
            )
            .len(),
            3
        );
        for nobody in
            ["", "nameserver\n", "nameserver localhost", "nameservers 10.0.0.1", "nameserver fe80::1%nowhere"]
        {
            assert_eq!(of(nobody), ["127.0.0.1:53"], "{nobody}");
        }
        assert!(leads_to_stub(b"nameserver 127.0.0.53\noptions edns0 trust-ad\n"));
        assert!(!leads_to_stub(b"nameserver 127.0.0.53\nnameserver 10.0.0.1\n"));
        assert!(!leads_to_stub(b""));
    }

    #[test]
    fn ours_names_nobody_else_and_keeps_the_rest() {
        let before = file(b"nameserver 10.0.0.1\n# domain a\nsearch corp.example\noptions ndots:2 edns0\nsortlist 10.0.0.0\nnameserver fd00::1");
        let ours = ours(&before);
        let text = String::from_utf8(ours.clone()).unwrap();
        assert!(is_ours(&ours) && text.ends_with('\n'), "{text}");
        let plain: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            plain,
            ["nameserver 127.51.82.53", "search corp.example", "options ndots:2 edns0", "sortlist 10.0.0.0"]
        );
        assert!(
            text.lines()
                .any(|line| line.starts_with("# before: ") && line.contains(r"nameserver 10.0.0.1\n"))
        );
    }

    #[test]
    fn what_was_there_is_in_ours() {
        for entry in [Entry::Missing, Entry::Link { target: b"../run/x\xff y".to_vec().into() }] {
            assert_eq!(before(&ours(&entry)), Some(entry));
        }
        assert_eq!(before(b"nameserver 10.0.0.1\n"), None);
        assert_eq!(before(b"# before: {\"file\":{}}\n"), None);
    }

    #[test]
    fn what_others_make_of_ours_is_not() {
        let said = |entry: &Entry, edit: fn(&str) -> String| {
            let text = edit(std::str::from_utf8(&ours(entry)).unwrap());
            let is_ours = is_ours(text.as_bytes());
            (is_ours, String::from_utf8(without_ours(text.as_bytes(), entry)).unwrap())
        };
        let entry = file(b"nameserver 10.0.0.1\nsearch corp.example\nnameserver fd00::1");
        assert!(
            said(&entry, str::to_owned).0 && said(&entry, |ours| format!("# saved by x\n\n{ours}; \n")).0
        );
        for (edit, without_us) in [
            (
                (|ours| ours.replace("nameserver 127.51.82.53", "nameserver 192.0.2.54"))
                    as fn(&str) -> String,
                "nameserver 192.0.2.54\nsearch corp.example\n",
            ),
            (
                |ours| format!("# x\nnameserver 192.0.2.54\n{ours}"),
                "# x\nnameserver 192.0.2.54\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch corp.example\n",
            ),
            (
                |ours| format!("{ours}options rotate"),
                "nameserver 10.0.0.1\nnameserver fd00::1\nsearch corp.example\noptions rotate",
            ),
            (|ours| ours.replace("search corp.example\n", ""), "nameserver 10.0.0.1\nnameserver fd00::1\n"),
            (|ours| ours.replace("nameserver 127.51.82.53\n", ""), "search corp.example\n"),
        ] {
            assert_eq!(said(&entry, edit), (false, without_us.to_owned()));
        }
    }

    #[test]
    fn a_part_of_ours_is_torn_up_to_its_account() {
        let ours = ours(&file(b"nameserver 10.0.0.1\nsearch corp.example\n"));
        for length in 0..=ours.len() {
            let is_whole = length >= ours.len() - 1;
            assert_eq!(
                (is_ours(&ours[..length]), is_torn(&ours[..length])),
                (is_whole, !is_whole),
                "{length}"
            );
        }
        assert!(!is_torn(b"nameserver 10.0.0.1\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(content: Vec<u8>, lines in "((nameserver|search|options|# before:)[ -~]{0,12}\n){0,6}") {
            for content in [content, lines.into_bytes()] {
                let entry = file(&content);
                let text = ours(&entry);
                prop_assert!(is_ours(&text));
                prop_assert_eq!(before(&text), Some(entry));
                prop_assert_eq!(nameservers(&text), [SocketAddr::new(LOOPBACK.into(), PORT)]);
            }
        }
    }
}

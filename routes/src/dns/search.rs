//! The search list (resolv.conf(5)): what the C library puts after a name which had no answer. Whoever gives it, which a network
//! may, would have the policy's names asked for under domains of his own (RFC 1535).

use std::fs;

use super::resolv_conf;

/// What systemd-resolved takes for a link (`LINK_SEARCH_DOMAINS_MAX`, resolved-link.h).
const DOMAINS_MAX: usize = 256;
/// Bytes of a name. RFC 1035 section 2.3.4
const NAME_MAX: usize = 253;
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The domains that who reads this resolv.conf(5) completes names with, in lower case, each once.
pub fn list(content: &[u8]) -> Vec<String> {
    list_on(content, &fs::read_to_string(HOST_NAME).unwrap_or_default())
}

/// What systemd-resolved is to ask us for: the policy's domains, and each of them completed. With it why it would ask others for some
/// all the same, if so.
pub fn routed(domains: &[String], search: &[String]) -> (Vec<String>, Result<(), String>) {
    let completed =
        search.iter().flat_map(|after| domains.iter().map(move |domain| format!("{domain}.{after}")));
    let mut routed: Vec<String> = domains.to_vec();
    routed.extend(completed.filter(|name| is_name(name)));
    routed.sort();
    routed.dedup();
    if routed.len() > DOMAINS_MAX {
        let why = format!("names are completed with {} domains, which are too many", search.len());
        return (domains.to_vec(), Err(why));
    }
    // It asks each link that has the longest domain which holds a name.
    let is_within = |one: &String| routed.iter().any(|domain| lies_within(one, domain));
    if let Some(one) = search.iter().find(|one| is_within(one)) {
        let why = format!("names are completed with {one}, which is within the policy's");
        return (routed, Err(why));
    }
    (routed, Ok(()))
}

fn list_on(content: &[u8], host: &str) -> Vec<String> {
    let normal = |domain: &str| domain.trim_end_matches('.').to_ascii_lowercase();
    let mut list: Vec<String> = resolv_conf::search(content).map(normal).collect();
    if list.is_empty() {
        list.extend(host.trim().split_once('.').map(|(_, domain)| normal(domain)));
    }
    list.retain(|domain| !domain.is_empty());
    list.sort();
    list.dedup();
    list
}

fn lies_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

/// It takes no list with anything else in it.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= NAME_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(domains: &[&str]) -> Vec<String> {
        domains.iter().map(|domain| (*domain).to_owned()).collect()
    }

    #[test]
    fn all_lines_count_and_without_any_the_hosts_name() {
        for (content, host, expected) in [
            (
                "nameserver 10.0.0.1\nsearch Corp.Example. lab.example\t a\r\n",
                "h.home\n",
                &["a", "corp.example", "lab.example"][..],
            ),
            (
                "domain home.example\nsearch corp.example corp.example",
                "h.home",
                &["corp.example", "home.example"],
            ),
            ("search .\n", "h.home", &[]),
            ("search\n# search a\n search b\n", "h.Home.Example\n", &["home.example"]),
            ("", "h\n", &[]),
        ] {
            assert_eq!(list_on(content.as_bytes(), host), owned(expected), "{content}");
        }
    }

    #[test]
    fn each_domain_is_led_here_as_it_is_and_completed() {
        let domains = owned(&["one.example", "two.example"]);
        let routed = |search: &[&str]| routed(&domains, &owned(search));
        assert_eq!(routed(&[]), (domains.clone(), Ok(())));
        let completed = [
            "one.example",
            "one.example.a",
            "one.example.corp.test",
            "two.example",
            "two.example.a",
            "two.example.corp.test",
        ];
        assert_eq!(routed(&["corp.test", "a"]), (owned(&completed), Ok(())));
        // What no question can have, and systemd-resolved would not take.
        assert_eq!(routed(&["a..b", "x y", &"a.".repeat(130)]), (domains.clone(), Ok(())));
    }

    #[test]
    fn where_another_link_would_be_asked_too_that_is_said() {
        let domains = owned(&["one.example", "two.example"]);
        for within in ["one.example", "api.one.example", "two.example.corp.test", "x.two.example.corp.test"] {
            let (told, why) = routed(&domains, &owned(&["corp.test", within]));
            assert!(why.unwrap_err().contains(within));
            assert!(told.contains(&"one.example.corp.test".to_owned()));
        }
        assert_eq!(routed(&domains, &owned(&["someone.example"])).1, Ok(()));
        let many: Vec<String> = (0..128).map(|n| format!("d{n}.test")).collect();
        let (told, why) = routed(&domains, &many);
        assert_eq!((told, why.is_err()), (domains.clone(), true));
        let (told, why) = routed(&domains, &many[1..]);
        assert_eq!((told.len(), why), (DOMAINS_MAX, Ok(())));
    }
}

//! Our tables as nft itself reads them, and as packets feel them.

use routes::nft::{self, Chain, ChainKind, Elements, Expr, Hook, Policy, Set, Table};

use crate::common::{has, in_namespace, run};

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn everything() -> Table {
    let input = vec![
        vec![Expr::Established, Expr::Counter, Expr::Accept],
        vec![
            Expr::InInterface("eth0".into()),
            Expr::Source(net("10.1.0.0/16")),
            Expr::Destination(net("10.2.3.4/32")),
            Expr::Protocol(17),
            Expr::DestinationPort(5060),
            Expr::Accept,
        ],
        vec![Expr::NotInInterface("tun0".into()), Expr::Destination(net("fd00:1::/33")), Expr::Drop],
        vec![Expr::Mark(0xca6c), Expr::Source(net("fd00::1/128")), Expr::Accept],
        vec![Expr::Protocol(6), Expr::DestinationPort(443), Expr::Accept],
    ];
    let nat =
        vec![vec![Expr::OutInterface("eth1".into()), Expr::Source(net("10.0.0.0/9")), Expr::Masquerade]];
    let chain = |name: &str, kind, hook, priority, policy, rules| Chain {
        name: name.into(),
        kind,
        hook,
        priority,
        policy,
        rules,
    };
    Table {
        name: "everything".into(),
        chains: vec![
            chain("in", ChainKind::Filter, Hook::Input, 0, Policy::Drop, input),
            chain("raw", ChainKind::Filter, Hook::Prerouting, -300, Policy::Accept, vec![]),
            chain("nat", ChainKind::Nat, Hook::Postrouting, 100, Policy::Accept, nat),
        ],
        ..Table::default()
    }
}

const LISTED: &str = r#"table inet everything {
	chain in {
		type filter hook input priority filter; policy drop;
		ct state established,related counter packets 0 bytes 0 accept
		iifname "eth0" ip saddr 10.1.0.0/16 ip daddr 10.2.3.4 udp dport 5060 accept
		iifname != "tun0" ip6 daddr fd00:1::/33 drop
		meta mark 0x0000ca6c ip6 saddr fd00::1 accept
		tcp dport 443 accept
	}

	chain raw {
		type filter hook prerouting priority raw; policy accept;
	}

	chain nat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth1" ip saddr 10.0.0.0/9 masquerade
	}
}
"#;

#[test]
fn nft_reads_what_was_meant() {
    in_namespace(async || {
        if !has("nft") {
            return;
        }
        everything().install().unwrap();
        assert_eq!(run(["nft", "list", "ruleset"]), LISTED);

        // Once more, in place of itself.
        everything().install().unwrap();
        assert_eq!(run(["nft", "list", "ruleset"]), LISTED);

        assert!(nft::exists("everything").unwrap());
        assert!(nft::remove("everything").unwrap());
        assert_eq!(run(["nft", "list", "ruleset"]), "");
    });
}

#[test]
fn an_owned_table_ends_with_its_guard() {
    in_namespace(async || {
        if !has("nft") {
            return;
        }
        let guard = everything().install_owned().unwrap();
        let listed = run(["nft", "list", "ruleset"]);
        assert!(listed.contains("flags owner") && listed.contains("tcp dport 443 accept"), "{listed}");
        let refused = nft::remove("everything").unwrap_err().to_string();
        assert!(refused.contains("delete the table inet everything: Operation not permitted"), "{refused}");

        drop(guard);
        assert_eq!(run(["nft", "list", "ruleset"]), "");
    });
}

#[test]
fn a_refusal_names_what_was_refused_and_leaves_nothing() {
    in_namespace(async || {
        let mut table = everything();
        table.chains[0].rules.push(vec![Expr::Masquerade]);
        let refused = table.install().unwrap_err().to_string();
        assert!(refused.contains("add the rule [Masquerade] to the chain in"), "{refused}");

        assert!(!nft::exists("everything").unwrap());
        assert!(!nft::remove("everything").unwrap());
    });
}

#[test]
fn sets_hold_what_was_meant_however_many() {
    in_namespace(async || {
        if !has("nft") {
            return;
        }
        let ip = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap();
        let ip6 = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap();
        let v4 = vec![ip("203.0.113.0")..=ip("203.0.113.63"), ip("203.0.113.65")..=ip("203.0.113.65")];
        let v6 = vec![
            ip6("2001:db8::")..=ip6("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ip6("ffff::")..=ip6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ];
        let set = |name: &str, elements| Set { name: name.into(), elements };
        let judged = |address: Expr| {
            vec![address, Expr::Protocol(6), Expr::DestinationPortIn("ports".into()), Expr::Reset]
        };
        let table = Table {
            name: "ranges".into(),
            comment: Some("a word about it".into()),
            sets: vec![
                set("v4", Elements::V4(v4)),
                set("v6", Elements::V6(v6)),
                set("ports", Elements::Ports(vec![80..=80, 5060..=5061, 60000..=65535])),
            ],
            chains: vec![Chain {
                name: "out".into(),
                kind: ChainKind::Filter,
                hook: Hook::Output,
                priority: 0,
                policy: Policy::Accept,
                rules: vec![
                    vec![Expr::OutIndex(1), Expr::Accept],
                    judged(Expr::DestinationInV4("v4".into())),
                    judged(Expr::DestinationInV6("v6".into())),
                    vec![Expr::DestinationInV6("v6".into()), Expr::Counter, Expr::Prohibit],
                    vec![
                        Expr::SourceInV4("v4".into()),
                        Expr::SourceNotLocal,
                        Expr::Protocol(6),
                        Expr::IsReset,
                        Expr::Drop,
                    ],
                ],
            }],
        };
        table.install().unwrap();
        assert_eq!(run(["nft", "list", "ruleset"]), LISTED_SETS);

        // Many, and without a range of its own at the end of the last message.
        let many = (0..20_000u32)
            .map(|at| std::net::Ipv4Addr::from_bits(at * 4)..=std::net::Ipv4Addr::from_bits(at * 4 + 1));
        let table = Table { sets: vec![set("v4", Elements::V4(many.collect()))], chains: vec![], ..table };
        table.install().unwrap();
        let listed = run(["nft", "list", "set", "inet", "ranges", "v4"]);
        assert_eq!(listed.matches("/31").count(), 20_000);
    });
}

const LISTED_SETS: &str = r#"table inet ranges {
	comment "a word about it"
	set v4 {
		type ipv4_addr
		flags interval
		elements = { 203.0.113.0/26, 203.0.113.65 }
	}

	set v6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8::/32,
			     ffff::/16 }
	}

	set ports {
		type inet_service
		flags interval
		elements = { 80, 5060-5061, 60000-65535 }
	}

	chain out {
		type filter hook output priority filter; policy accept;
		oif "lo" accept
		ip daddr @v4 tcp dport @ports reject with tcp reset
		ip6 daddr @v6 tcp dport @ports reject with tcp reset
		ip6 daddr @v6 counter packets 0 bytes 0 reject with icmpx admin-prohibited
		ip saddr @v4 fib saddr type != local tcp flags rst drop
	}
}
"#;

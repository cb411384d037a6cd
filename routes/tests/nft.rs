//! Our tables as nft itself reads them, and as packets feel them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

mod common;

use common::{has, in_namespace, run};
use routes::nft::{self, Chain, ChainKind, Expr, Hook, Policy, Table};

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
            println!("skipped, because nft is missing");
            return;
        }
        everything().install().unwrap();
        assert_eq!(run(["nft", "list", "ruleset"]), LISTED);

        // Once more, in place of itself.
        everything().install().unwrap();
        assert_eq!(run(["nft", "list", "ruleset"]), LISTED);

        nft::remove("everything").unwrap();
        assert_eq!(run(["nft", "list", "ruleset"]), "");
    });
}

#[test]
fn an_owned_table_ends_with_its_guard() {
    in_namespace(async || {
        if !has("nft") {
            println!("skipped, because nft is missing");
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

        let refused = nft::remove("everything").unwrap_err().to_string();
        assert!(refused.contains("No such file"), "{refused}");
    });
}

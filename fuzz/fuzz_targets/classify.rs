//! Any policy, any learned addresses and any packet: the snapshot's verdict is the reference's, and `explain` tells the same
//! story.
#![no_main]

#[path = "../../crates/policy/tests/reference/mod.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use packet::Packet;
use policy::{Config, Facts, Fail, Mark, Snapshot};
use reference::{Judgement, Policy, Rule, generate, learn};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.iter();
    let mut choose = |n| bytes.next().map_or(0, |byte| usize::from(*byte) % n);
    let (mut policy, facts) = generate(&mut choose);
    let learned = learn(&mut policy, choose);
    let Ok((config, _)) = Config::parse(&policy.to_toml(), "fuzzed") else { return };
    let snapshot = Snapshot::compile(&config).with_learned(&learned);
    let judging = policy.with_learned(&learned);

    let of_packet = Packet::parse(bytes.as_slice()).map(|packet| Facts::of(&packet));
    for facts in facts.into_iter().chain(of_packet) {
        check(&judging, &snapshot, &facts);
    }
});

fn check(policy: &Policy, snapshot: &Snapshot, facts: &Facts) {
    let verdict = snapshot.classify(facts);
    let rule = snapshot.rule_name(verdict.rule).to_owned();
    let judged = Judgement { path: verdict.path, rule, gives_ef: verdict.mark != Mark::Keep };
    assert_eq!(judged, policy.judge(facts), "{facts:?}");

    let explained = snapshot.explain(facts);
    assert_eq!((explained.path, explained.rule), (judged.path, judged.rule));

    if snapshot.is_learned(facts.destination) {
        let of_set = |rule: &&Rule| policy.set_of(facts.destination).is_some_and(|(set, _)| rule.to.contains(&set));
        let mut taking = policy.rules.iter().filter(of_set).filter(|rule| rule.takes(facts.protocol, facts.port));
        return assert_eq!(snapshot.is_routed(facts), taking.next().is_some());
    }
    let holding = snapshot.captured().iter().filter(|captured| captured.prefix.contains(&facts.destination));
    let captured = holding.max_by_key(|captured| captured.prefix.prefix_len());
    assert_eq!(
        captured.map(|captured| captured.fail == Fail::Direct),
        policy.fails_direct(facts.destination)
    );
}

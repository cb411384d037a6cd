//! Snapshot and explanation against the plain second implementation, for policies and packets of every kind.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test fails by panicking")]

mod reference;

use policy::{Config, Facts, Fail, Learned, Mark, Snapshot};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use reference::{Judgement, Policy, SEVERAL, generate, learn};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_global_rejects: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn snapshot_equals_reference(choices in proptest::collection::vec(any::<u16>(), 400..900)) {
        let (policy, facts) = from_choices(&choices);
        let Ok((config, _)) = Config::parse(&policy.to_toml(), "generated") else {
            return Err(TestCaseError::reject("not a valid policy"));
        };
        let snapshot = Snapshot::compile(&config);
        for facts in &facts {
            let verdict = snapshot.classify(facts);
            let judged = Judgement {
                path: verdict.path,
                rule: snapshot.rule_name(verdict.rule).to_owned(),
                gives_ef: verdict.mark != Mark::Keep,
            };
            prop_assert_eq!(&judged, &policy.judge(facts), "{:?} in\n{}", facts, policy.to_toml());

            let explained = snapshot.explain(facts);
            prop_assert_eq!(explained.path, verdict.path);
            prop_assert_eq!(&explained.rule, &judged.rule);
            prop_assert_eq!(explained.steps.iter().filter(|step| step.decided).count(), 1);
            prop_assert!(explained.steps.last().is_some_and(|step| step.decided));

            let set = snapshot.set_of(facts.destination).map(|(name, net)| (name.to_owned(), net));
            let expected = policy.set_of(facts.destination).map(|(at, net)| (policy.sets[at].name.clone(), net));
            prop_assert_eq!(set, expected);

            let captured = snapshot.captured().iter().filter(|captured| captured.prefix.contains(&facts.destination));
            let fails = captured.max_by_key(|captured| captured.prefix.prefix_len()).map(|c| c.fail == Fail::Direct);
            prop_assert_eq!(fails, policy.fails_direct(facts.destination));
        }
    }

    #[test]
    fn a_learned_address_is_as_good_as_a_configured_one(choices in proptest::collection::vec(any::<u16>(), 400..900)) {
        let (policy, facts, learned) = with_learned(&choices);
        let Ok((config, _)) = Config::parse(&policy.to_toml(), "generated") else {
            return Err(TestCaseError::reject("not a valid policy"));
        };
        let before = Snapshot::compile(&config);
        // What was learned before must leave nothing.
        let snapshot = before.with_learned(&learned[..learned.len() / 2]).with_learned(&learned);
        let written = policy.with_learned(&learned);
        let (config, _) = Config::parse(&written.to_toml(), "written")
            .map_err(|error| TestCaseError::fail(format!("{error:#} in\n{}", written.to_toml())))?;
        let configured = Snapshot::compile(&config);

        prop_assert_eq!(snapshot.captured(), before.captured());
        prop_assert_eq!(snapshot.guarded(), before.guarded());
        let aimed = learned.iter().zip(&facts).map(|(learned, facts)| Facts { destination: learned.address, ..*facts });
        for facts in facts.iter().copied().chain(aimed) {
            let judged = |snapshot: &Snapshot| {
                let verdict = snapshot.classify(&facts);
                let explained = snapshot.explain(&facts);
                let first = |set: &str| set.split(SEVERAL).next().unwrap_or_default().to_owned();
                let set = snapshot.set_of(facts.destination).map(|(set, net)| (first(set), net));
                (verdict.path, snapshot.rule_name(verdict.rule).to_owned(), verdict.mark, explained.rule, set)
            };
            prop_assert_eq!(judged(&snapshot), judged(&configured), "{:?} in\n{}", facts, written.to_toml());

            let is_new = before.set_of(facts.destination).is_none() && snapshot.set_of(facts.destination).is_some();
            prop_assert_eq!(snapshot.is_learned(facts.destination), is_new);
            let mut rules = written.rules.iter().filter(|rule| rule.to.iter().any(|set| {
                written.set_of(facts.destination).is_some_and(|(at, _)| at == *set)
            }));
            let is_taken = rules.any(|rule| rule.takes(facts.protocol, facts.port));
            let is_routed = if is_new { is_taken } else { before.is_routed(&facts) };
            prop_assert_eq!(snapshot.is_routed(&facts), is_routed);
        }
    }
}

/// The properties above reject what is no valid configuration, and say little where nothing is learned: enough must be left.
#[test]
fn generated_policies_are_mostly_valid_and_often_learn() {
    let mut runner = TestRunner::deterministic();
    let strategy = proptest::collection::vec(any::<u16>(), 400..900);
    let (mut valid, mut learning) = (0, 0);
    for _ in 0..200 {
        let (policy, _, learned) = with_learned(&strategy.new_tree(&mut runner).unwrap().current());
        let Ok((config, _)) = Config::parse(&policy.to_toml(), "generated") else { continue };
        valid += 1;
        learning += usize::from(!Snapshot::compile(&config).with_learned(&learned).learned().is_empty());
    }
    assert!(valid > 60 && learning > 30, "of 200 generated policies {valid} are valid and {learning} learn");
}

fn from_choices(choices: &[u16]) -> (Policy, Vec<Facts>) {
    let mut choices = choices.iter();
    generate(|n| choices.next().map_or(0, |choice| usize::from(*choice) % n))
}

fn with_learned(choices: &[u16]) -> (Policy, Vec<Facts>, Vec<Learned>) {
    let mut choices = choices.iter();
    let mut choose = |n| choices.next().map_or(0, |choice| usize::from(*choice) % n);
    let (mut policy, facts) = generate(&mut choose);
    let learned = learn(&mut policy, choose);
    (policy, facts, learned)
}

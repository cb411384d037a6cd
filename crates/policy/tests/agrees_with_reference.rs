//! Snapshot and explanation against the plain second implementation, for policies and packets of every kind.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test fails by panicking")]

mod reference;

use policy::{Config, Fail, Mark, Snapshot};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use reference::{Judgement, Policy, generate};

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
}

/// The property above rejects what is no valid configuration: that must leave enough.
#[test]
fn generated_policies_are_mostly_valid() {
    let mut runner = TestRunner::deterministic();
    let strategy = proptest::collection::vec(any::<u16>(), 400..900);
    let is_valid = |_: &usize| {
        let choices = strategy.new_tree(&mut runner).unwrap().current();
        Config::parse(&from_choices(&choices).0.to_toml(), "generated").is_ok()
    };
    let valid = (0..200).filter(is_valid).count();
    assert!(valid > 60, "{valid} of 200 generated policies are valid");
}

fn from_choices(choices: &[u16]) -> (Policy, Vec<policy::Facts>) {
    let mut choices = choices.iter();
    generate(|n| choices.next().map_or(0, |choice| usize::from(*choice) % n))
}

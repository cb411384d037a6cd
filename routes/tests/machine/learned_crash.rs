//! Death at every step of learning: the next run, or cleaning, leaves the machine as it was.

use std::{
    net::Ipv4Addr,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use policy::{Guarded, LearnedSet, Traffic};
use routes::{Routes, State, Wanted, netlink::Netlink};

use crate::common::{
    clean, in_namespace,
    world::{
        SIGNALING, TUN, Tun, UNRELATED, World, captured, closed, ip, settings, settled_snapshot, snapshot,
        wanted,
    },
};

/// Where the life that is cut short has its journal.
const STATE: &str = "BREAKOUT_TEST_STATE";
/// Far more steps than there are.
const MANY: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(10);

fn learned(set: &str, addresses: &[&str]) -> LearnedSet {
    let traffic = Traffic { tcp: vec![443..=443], udp: vec![5060..=5061], ..Traffic::default() };
    LearnedSet { set: set.to_owned(), addresses: addresses.iter().map(|text| ip(text)).collect(), traffic }
}

#[test]
fn death_at_every_step_of_learning() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let mut deaths = 0;
        // An odd stride, so that both ways back are taken; BREAKOUT_LONG takes every step.
        let stride = if std::env::var_os("BREAKOUT_LONG").is_some() { 1 } else { 5 };
        for step in (1..MANY).step_by(stride) {
            let status = live(&world, step);
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
            deaths = step;
            until_the_tun_is_gone().await;
            if step % 2 == 0 {
                clean(world.state.path()).await.unwrap();
            } else {
                let tun = Tun::open();
                let state = State::open(world.state.path()).unwrap();
                let wanted = Wanted { learned: vec![learned("b", &["192.0.2.7"])], ..wanted(captured()) };
                Routes::apply(state, settings(), &wanted).await.unwrap().teardown().await.unwrap();
                tun.close().await;
            }
            assert_comes_back(&before, step).await;
            assert!(
                !world.state.path().join("undo.json").exists(),
                "after step {step} something is still noted"
            );
        }
        assert!((60..MANY - 10).contains(&deaths), "{deaths} steps: they are not all there, or have no end");
        println!("died at steps up to {deaths}, {stride} apart");
    });
}

/// A process of its own in this namespace, that dies at one of its steps.
fn live(world: &World, step: u64) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "learned_crash::life_that_is_cut_short", "--ignored"])
        .env(STATE, world.state.path())
        .env("BREAKOUT_CRASH_AT", step.to_string())
        .stdout(Stdio::null())
        .status()
        .unwrap()
}

#[test]
#[ignore = "a part of death_at_every_step_of_learning, which runs it as a process of its own"]
fn life_that_is_cut_short() {
    let Some(state) = std::env::var_os(STATE).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _tun = Tun::open();
        let v4: Ipv4Addr = SIGNALING[0].parse().unwrap();
        let guarded = vec![Guarded { v4: vec![v4..=v4], v6: vec![], traffic: Traffic::default() }];
        let first = Wanted {
            learned: vec![learned("a", &UNRELATED[..1])],
            kill_switch: Some(guarded),
            ..wanted(captured())
        };
        let mut routes = Routes::apply(State::open(&state).unwrap(), settings(), &first).await.unwrap();
        routes.learn(&[learned("a", &UNRELATED)]).await.unwrap();
        routes.learn(&[learned("a", &UNRELATED[1..]), learned("b", &["192.0.2.7"])]).await.unwrap();
        let second =
            Wanted { learned: vec![learned("b", &["192.0.2.8"])], ..wanted(vec![closed("10.0.0.0/8")]) };
        routes.update(&second).await.unwrap();
        routes.learn(&[]).await.unwrap();
        routes.learn(&[learned("c", &["192.0.2.9"])]).await.unwrap();
        routes.teardown().await.unwrap();
    });
}

async fn until_the_tun_is_gone() {
    let netlink = Netlink::new().unwrap();
    while netlink.link_index(TUN).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The kernel settles a link's state some time later.
async fn assert_comes_back(before: &str, step: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = snapshot();
        if now == before {
            return;
        }
        assert!(Instant::now() < deadline, "after step {step}:\n{now}\nbefore:\n{before}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

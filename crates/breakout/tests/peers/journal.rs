//! Death at every step: whatever was half done, the next `up` and `down`, or `state clean`, leave the machine as it was.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use lab::addresses::{GATEWAY_TUNNEL, WEB};
use lab::{Process, Random, SIGNALING_NET, Wiring, write_config};
use nix::sys::signal::Signal;

use crate::common::{Scene, eventually, exe, is_long, ok, program, said, shared};
use crate::machine::Machine;
use crate::names;
use crate::resolvers::{Keeper, getent};

const PATIENCE: Duration = Duration::from_secs(30);
/// Far more than there are.
const MANY_STEPS: u64 = 2000;
/// Of the way to the gateway, where there are names.
const PATH_MTU: u16 = 1380;
const CRASH_AT: &str = "BREAKOUT_CRASH_AT";
const MORE: &str = r#"
[sets.more]
cidrs = ["203.0.114.0/24", "2001:db8:6::/48"]
[[rules]]
name = "more"
to = ["more", "genesys-signaling"]
path = "tunnel"
[routes]
kill_switch = true
"#;

#[test]
fn death_at_every_step_of_up_reload_and_down() {
    let _turn = shared();
    let Some(bench) = Bench::new() else { return };
    let mut deaths = 0;
    for step in 1..MANY_STEPS {
        if !bench.live(Some(step)) {
            break;
        }
        deaths = step;
        bench.put_right(&format!("step {step}"), step % 2 == 0);
        if is_long() {
            assert!(bench.live(Some(step)), "step {step} is not reached any more");
            bench.put_right(&format!("step {step}"), step % 2 == 1);
        }
    }
    assert!(
        (100..MANY_STEPS - 1).contains(&deaths),
        "{deaths} steps: they are not all there, or have no end"
    );
    println!("died at each of {deaths} steps");
}

#[test]
fn death_at_every_step_of_cleaning() {
    let _turn = shared();
    let Some(bench) = Bench::new() else { return };
    let mut deaths = 0;
    for step in 1..MANY_STEPS {
        let commands = [["state", "clean"].as_slice(), &["panic-off"]];
        let (first, then) =
            if step % 2 == 0 { (commands[0], commands[1]) } else { (commands[1], commands[0]) };
        bench.die();
        let status = bench.clean(first, Some(step));
        if !is_killed(status) {
            assert!(status.success(), "{first:?}: {status}");
            bench.assert_as_before(&format!("{first:?}"));
            break;
        }
        deaths = step;
        let status = bench.clean(then, None);
        assert!(status.success(), "{then:?}: {status}");
        bench.assert_as_before(&format!("step {step} of {first:?}, then {then:?}"));
    }
    assert!((20..MANY_STEPS - 1).contains(&deaths), "{deaths} steps: they are not all there, or have no end");
    println!("died at each of {deaths} steps");
}

/// Names with learned addresses, whoever keeps /etc/resolv.conf, and a path that turns out to be narrow.
#[test]
fn death_at_steps_with_everything_on() {
    let _turn = shared();
    let mut random = random();
    for keeper in Keeper::ALL {
        let Some(bench) = Bench::with_names(keeper) else { continue };
        let (mut step, mut deaths) = (0, 0);
        loop {
            step += if is_long() { 1 } else { 1 + (40.0 * random.unit()) as u64 };
            if !bench.live(Some(step)) {
                break;
            }
            deaths += 1;
            bench.put_right(&format!("step {step}, {keeper:?}"), deaths % 2 == 0);
        }
        assert!((80..MANY_STEPS).contains(&step), "{step} steps: they are not all there, or have no end");
        println!("{keeper:?}: died at {deaths} of {step} steps");
    }
}

#[test]
fn death_at_random_times_with_everything_on() {
    let _turn = shared();
    let mut random = random();
    for (keeper, points) in Keeper::ALL.into_iter().zip(if is_long() { [67, 66, 67] } else { [5, 5, 5] }) {
        let Some(bench) = Bench::with_names(keeper) else { continue };
        let started = Instant::now();
        assert!(!bench.live(None));
        let whole = started.elapsed();
        for point in 0..points {
            let at = random.duration(whole);
            bench.live_until(at);
            bench.put_right(&format!("{at:?} of {whole:?}, {keeper:?}"), point % 2 == 0);
        }
    }
}

#[test]
fn a_living_daemons_journal_is_shown_and_let_be() {
    let _turn = shared();
    let Some(bench) = Bench::new() else { return };
    let list = |scene: &Scene| {
        let output = scene.breakout(&["state", "list", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json)
    };
    let scene = &bench.scene;
    let (code, none) = list(scene);
    assert_eq!((code, &none["running"], none["undo"].as_array().unwrap().len()), (0, &false.into(), 0));

    let mut daemon = bench.up();
    let (code, json) = list(scene);
    assert_eq!((code, &json["running"], &json["pid"]), (0, &true.into(), &daemon.pid().into()));
    let kinds: Vec<&str> =
        json["undo"].as_array().unwrap().iter().map(|undo| undo["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["tun", "routing", "rp-filter", "rp-filter", "table", "table"]);
    let refused = scene.breakout(&["state", "clean"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("running already"));
    assert_eq!(list(scene).1, json, "nothing was cleaned from under it");

    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(PATIENCE).unwrap().unwrap();
    let (code, left) = list(scene);
    assert_eq!((code, &left["running"], &left["undo"]), (1, &false.into(), &json["undo"]));
    let cleaned = said(&scene.breakout(&["state", "clean"]));
    assert!(cleaned.contains("removed 1 kill switch"), "{cleaned}");
    assert_eq!(said(&scene.breakout(&["state", "clean"])), "nothing was left behind\n");
    bench.assert_as_before("state clean");
}

#[test]
fn panic_off_ends_a_daemon_that_hangs_and_needs_no_configuration() {
    let _turn = shared();
    let Some(bench) = Bench::new() else { return };
    let mut daemon = bench.up();
    std::fs::remove_file(&bench.configs[0]).unwrap();
    daemon.signal(Signal::SIGSTOP).unwrap();
    let told = said(&bench.scene.breakout(&["panic-off"]));
    assert!(told.contains(&format!("removed the daemon (pid {}), by SIGKILL", daemon.pid())), "{told}");
    assert!(told.contains("removed 1 kill switch") && told.contains("routing rules"), "{told}");
    daemon.wait(PATIENCE).unwrap().unwrap();
    bench.assert_as_before("panic-off");
    assert_eq!(said(&bench.scene.breakout(&["panic-off"])), "there was nothing to remove\n");
}

/// An agent on whom the daemon lives and dies.
struct Bench {
    scene: Scene,
    before: Machine,
    /// The second one is reloaded.
    configs: [String; 2],
    has_names: bool,
    /// What has to run meanwhile.
    _programs: Vec<Process>,
}

impl Bench {
    fn new() -> Option<Self> {
        Self::of(Scene::new(Wiring::default())?, Vec::new(), "")
    }

    fn with_names(keeper: Keeper) -> Option<Self> {
        let mut scene = names::open_scene()?;
        let mut programs = keeper.install(&scene, WEB)?;
        programs.push(names::start_gateway(&mut scene, names::STILL));
        for (host, device) in [(&scene.internet.router, "wan0"), (&scene.internet.core, "home0")] {
            ok(host.set_mtu(device, PATH_MTU.into()));
        }
        let bench = Self::of(scene, programs, &format!("dns = [\"{GATEWAY_TUNNEL}\"]\n"))?;
        Some(Self { has_names: true, ..bench })
    }

    fn of(scene: Scene, programs: Vec<Process>, dns: &str) -> Option<Self> {
        program("ip", "iproute2")?;
        for device in ["default", "eth0"] {
            ok(scene.internet.agent.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1"));
        }
        let config = write_config(&scene.keys, &scene.directory, MORE).unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        let mut text = text.replace("\"10.99.0.1/32\"", "\"10.99.0.1/32\", \"fd99::1/128\"");
        if !dns.is_empty() {
            text = text
                .replace("[tunnel]\n", &format!("[tunnel]\n{dns}"))
                .replace(&format!("cidrs = [\"{SIGNALING_NET}\"]"), "domains = [\"*.usw2.pure.cloud\"]");
        }
        ok(scene.directory.write("breakout.toml", &text));
        let other = text
            .replace("203.0.114.0/24", "203.0.115.0/25\", \"198.51.99.0/24")
            .replace("kill_switch = true", "kill_switch = false");
        let before = Machine::look(&scene.internet.agent)?;
        let configs = [config.display().to_string(), other];
        Some(Self { before, configs, scene, has_names: false, _programs: programs })
    }

    fn spawn(&self, arguments: &[&str], crash_at: Option<u64>) -> Process {
        let mut command = Command::new(exe());
        command.args(arguments).env("BREAKOUT_STATE_DIR", self.state());
        if let Some(step) = crash_at {
            command.env(CRASH_AT, step.to_string());
        }
        ok(Process::spawn(
            &self.scene.internet.agent,
            "breakout",
            command,
            &self.scene.directory.file("daemon.log"),
        ))
    }

    fn spawn_getent(&self) -> Process {
        let mut getent = Command::new("getent");
        getent.args(["ahostsv4", "api.usw2.pure.cloud"]);
        let log = self.scene.directory.file("getent.log");
        ok(Process::spawn(&self.scene.internet.agent, "getent", getent, &log))
    }

    fn state(&self) -> PathBuf {
        self.scene.directory.file("state")
    }

    fn up(&self) -> Process {
        let mut daemon = self.spawn(&["up", "--config", &self.configs[0]], None);
        ok(daemon.wait_for_line("breakout is up", PATIENCE));
        daemon
    }

    /// Up, and then nothing.
    fn die(&self) {
        let mut daemon = self.up();
        daemon.signal(Signal::SIGKILL).unwrap();
        daemon.wait(PATIENCE).unwrap().unwrap();
    }

    /// One life: up, something to put back, a reload there and one back, the end. Whether it was cut short.
    fn live(&self, crash_at: Option<u64>) -> bool {
        let original = std::fs::read_to_string(&self.configs[0]).unwrap();
        let mut daemon = self.spawn(&["up", "--config", &self.configs[0]], crash_at);
        if daemon.wait_for_line("breakout is up", PATIENCE).is_ok() {
            if self.has_names {
                self.use_names(&mut daemon);
            }
            self.take_away(&mut daemon);
            for config in [&self.configs[1], &original] {
                ok(self.scene.directory.write("breakout.toml", config));
                self.scene.breakout(&["reload"]);
            }
            // It may be dead by now.
            let _ = daemon.signal(Signal::SIGTERM);
        }
        let status = daemon.wait(PATIENCE).unwrap().expect("it neither died nor ended");
        assert!(is_killed(status) || status.success(), "{status}\n{}", daemon.output());
        is_killed(status)
    }

    /// Until what somebody else takes away is put back, or the daemon is dead.
    fn take_away(&self, daemon: &mut Process) {
        let run = |arguments: &[&str]| {
            let mut command = Command::new(arguments[0]);
            command.args(&arguments[1..]);
            ok(self.scene.internet.agent.output(command))
        };
        let priority = routes::PRIORITY_CAPTURED.to_string();
        let table = routes::TABLE_CAPTURED.to_string();
        let looks: [&[&str]; 3] = [
            &["ip", "rule", "show", "priority", &priority],
            &["ip", "route", "show", "table", &table],
            &["nft", "list", "table", "inet", routes::KILL_SWITCH],
        ];
        let before = looks.map(&run);
        // There may be nothing to take any more.
        run(&["ip", "rule", "del", "priority", &priority]);
        run(&["ip", "route", "flush", "table", &table]);
        run(&["nft", "delete", "table", "inet", routes::KILL_SWITCH]);
        eventually(PATIENCE, || match daemon.wait(Duration::ZERO).unwrap() {
            None if looks.map(&run) != before => Err("it is not put back".to_owned()),
            _ => Ok(()),
        });
    }

    /// Until addresses are learned and the path is known to be narrow, or the daemon is dead.
    fn use_names(&self, daemon: &mut Process) {
        let name = "api.usw2.pure.cloud";
        let is_done = || {
            let status = self.scene.breakout(&["status", "--json"]);
            let status = serde_json::from_slice::<control::Status>(&status.stdout);
            !getent(&self.scene, name).is_empty()
                && status.is_ok_and(|s| s.tunnel.used().is_some_and(|it| it.path_mtu == PATH_MTU))
        };
        eventually(PATIENCE, || match daemon.wait(Duration::ZERO).unwrap() {
            None if !is_done() => Err(format!("{name} has no address, or the path is not known")),
            _ => Ok(()),
        });
    }

    /// The same, cut short after some time.
    fn live_until(&self, at: Duration) {
        let original = std::fs::read_to_string(&self.configs[0]).unwrap();
        let started = Instant::now();
        let mut daemon = self.spawn(&["up", "--config", &self.configs[0]], None);
        let over = || started.elapsed() >= at;
        while !over() && !daemon.output().contains("breakout is up") {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !over() {
            let asking = self.has_names.then(|| self.spawn_getent());
            ok(self.scene.directory.write("breakout.toml", &self.configs[1]));
            std::thread::sleep(at.saturating_sub(started.elapsed()) / 2);
            daemon.signal(Signal::SIGHUP).unwrap();
            std::thread::sleep(at.saturating_sub(started.elapsed()) / 2);
            let _ = daemon.signal(Signal::SIGTERM);
            std::thread::sleep(at.saturating_sub(started.elapsed()));
            drop(asking);
            ok(self.scene.directory.write("breakout.toml", &original));
        }
        let _ = daemon.signal(Signal::SIGKILL);
        daemon.wait(PATIENCE).unwrap().unwrap();
    }

    fn clean(&self, command: &[&str], crash_at: Option<u64>) -> ExitStatus {
        let mut process = self.spawn(command, crash_at);
        process.wait(PATIENCE).unwrap().expect("it neither died nor ended")
    }

    fn put_right(&self, after: &str, by_cleaning: bool) {
        if by_cleaning {
            let status = self.clean(&["state", "clean"], None);
            assert!(status.success(), "after {after}: {status}");
        } else {
            let mut daemon = self.up();
            said(&self.scene.breakout(&["down"]));
            assert!(daemon.wait(PATIENCE).unwrap().unwrap().success(), "after {after}");
        }
        self.assert_as_before(after);
    }

    #[track_caller]
    fn assert_as_before(&self, after: &str) {
        // A TUN goes some time after its process.
        eventually(PATIENCE, || {
            let now = Machine::look(&self.scene.internet.agent).unwrap();
            let differences = self.before.differences(&now);
            if differences.is_empty() { Ok(()) } else { Err(format!("after {after}: {differences:#?}")) }
        });
        let left: Vec<_> =
            std::fs::read_dir(self.state()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"], "after {after} something is still noted");
    }
}

/// BREAKOUT_SEED repeats a test's choices.
fn random() -> Random {
    let given = std::env::var("BREAKOUT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap();
        u64::from_ne_bytes(seed)
    });
    eprintln!("BREAKOUT_SEED={seed}");
    Random::new(seed)
}

fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGKILL as i32)
}

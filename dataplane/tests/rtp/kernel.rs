//! The kernel's arithmetic (`bpf/rtp.h`), compiled for this machine, against the pump's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dataplane::rtp::{HEAD, RtpStream};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::stream::{Arrival, anything, clock_rate, see, travel};

const STREAMS: usize = 2_000;
const STATE: usize = size_of::<RtpStream>();

#[test]
fn kernel_and_pump_count_alike_to_the_bit() {
    let program = compile();
    let streams = (clock_rate(), any::<u16>(), prop::collection::vec(anything(), 1..500))
        .prop_map(|(rate, first, fates)| travel(rate, first, &fates));
    let mut runner = TestRunner::default();
    let streams: Vec<Vec<Arrival>> =
        (0..STREAMS).map(|_| streams.new_tree(&mut runner).unwrap().current()).collect();

    let input = streams.iter().flat_map(|stream| stream.iter().enumerate().map(record)).flatten().collect();
    let output = run(&program, input);
    let mut states = output.chunks(STATE).map(|bytes| state(bytes.first_chunk().unwrap()));
    let (mut measured, mut restarts) = (0, 0);
    for arrivals in &streams {
        let mut stream = RtpStream::default();
        let mut before = None;
        for (place, arrival) in arrivals.iter().enumerate() {
            if is_handed_over(place, arrival) {
                stream = stream.handed_over();
            }
            see(&mut stream, arrival);
            let kernel = states.next().expect("a state for each arrival");
            assert_eq!(kernel, stream, "after {place} of {arrivals:#?}");
            let report = stream.report();
            restarts += u32::from(report.map(|report| report.packets) < before);
            before = report.map(|report| report.packets);
        }
        measured += u32::from(stream.report().is_some_and(|report| report.jitter.is_some()));
    }
    assert_eq!(states.next(), None);
    assert!(measured > 500 && restarts > 500, "{measured} of known clock, {restarts} restarts");
}

fn compile() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("seen-{}", std::process::id()));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover", "-I"]);
    cc.args([directory.join("bpf"), "-o".into(), program.clone(), directory.join("tests/rtp/seen.c")]);
    assert!(cc.status().expect("the C compiler that Rust links with").success());
    program
}

/// What `seen.c` reads.
fn record((place, arrival): (usize, &Arrival)) -> Vec<u8> {
    let Arrival { payload, at, tos } = arrival;
    let mut record = at.to_ne_bytes().to_vec();
    record.extend((payload.len() as u32).to_ne_bytes());
    record.extend([*tos, u8::from(place == 0), u8::from(is_handed_over(place, arrival)), 0]);
    record.extend(payload.iter().chain(&[0; HEAD]).take(HEAD));
    record
}

/// Now and then.
fn is_handed_over(place: usize, arrival: &Arrival) -> bool {
    place > 0 && arrival.tos % 64 == 7
}

fn run(program: &Path, input: Vec<u8>) -> Vec<u8> {
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    std::fs::remove_file(program).unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    output.stdout
}

fn state(bytes: &[u8; STATE]) -> RtpStream {
    // SAFETY: a structure of integers, of which any bytes are a valid value; the read needs no alignment.
    unsafe { bytes.as_ptr().cast::<RtpStream>().read_unaligned() }
}

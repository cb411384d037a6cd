//! Calls over the loopback, with something late in them.

use std::net::{SocketAddr, UdpSocket};
use std::thread::{self, sleep};
use std::time::Duration;

use lab::StopSource;

use super::receive::{prepare, receive};
use super::{Calls, EF_TOS, Heard, Quality, Stamps, echo, open};
use crate::clock;
use crate::scheduling::without_realtime;

const LATE: Duration = Duration::from_millis(150);

/// Twenty packets of two calls to a far end that comes late to what was sent after the calls were opened; `begin` is when the first
/// packet is due, from now on (or before).
fn talk(begin_ms: i64, far_end_is_late: bool) -> Heard {
    let socket = open(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let call = Calls { to: socket.local_addr().unwrap(), calls: 2, packets: 10, tos: EF_TOS };
    let answer = |stop: &StopSource| {
        let (socket, token) = (&socket, stop.token());
        move || echo(socket, &token, false, Stamps::Machine)
    };
    thread::scope(|scope| {
        let mut stop = StopSource::new().unwrap();
        let first = scope.spawn(answer(&stop));
        let calls = call.open().unwrap();
        stop.stop();
        first.join().unwrap();

        let begin = clock::now_ns().saturating_add_signed(begin_ms * 1_000_000);
        let talk = scope.spawn(move || calls.talk(begin).unwrap());
        if far_end_is_late {
            sleep(LATE);
        }
        let mut stop = StopSource::new().unwrap();
        let second = scope.spawn(answer(&stop));
        let heard = talk.join().unwrap();
        stop.stop();
        second.join().unwrap();
        heard
    })
}

/// The longest round trip, way there and way back.
fn longest(heard: &Heard) -> [Duration; 3] {
    let most = |of: fn(&super::Sample) -> u64| heard.samples.iter().map(of).max().unwrap_or(0);
    [most(|s| s.back - s.due), most(|s| s.far - s.due), most(|s| s.back - s.far)].map(Duration::from_nanos)
}

#[test]
fn a_late_far_end_is_delay_on_the_way_there() {
    if !crate::scheduling::realtime_is_permitted() {
        return lab::skip("real-time scheduling is not permitted");
    }
    let heard = talk(0, true);
    let [round_trip, there, _] = longest(&heard);
    assert_eq!((heard.sent, heard.samples.len(), heard.realtime), (20, 20, true));
    assert!(round_trip >= LATE * 2 / 3 && there >= LATE * 2 / 3, "{round_trip:?} {there:?}");
    let quality = Quality::new(&heard, 0);
    assert!(Duration::from_nanos(quality.delays.round_trip.max()) >= LATE * 2 / 3);
}

#[test]
fn by_the_kernels_stamps_a_late_far_end_is_delay_on_the_way_back() {
    let heard = without_realtime(|| talk(0, true));
    let [round_trip, there, back] = longest(&heard);
    assert_eq!((heard.samples.len(), heard.realtime), (20, false));
    assert!(round_trip >= LATE * 2 / 3 && back >= LATE * 2 / 3, "{round_trip:?} {back:?}");
    assert!(there < back, "what came was stamped when it came: {there:?} there, {back:?} back");
}

#[test]
fn a_late_sender_is_delay_and_is_told() {
    let heard = talk(-100, false);
    let [round_trip, ..] = longest(&heard);
    let late = Duration::from_nanos(heard.late.iter().copied().max().unwrap());
    assert!(late >= Duration::from_millis(100) && round_trip >= late, "{late:?} {round_trip:?}");
    let quality = Quality::new(&heard, 0);
    assert!(Duration::from_nanos(quality.delays.late.max()) >= Duration::from_millis(100));
}

#[test]
fn a_late_receiver_is_none_by_the_kernels_stamps() {
    let age = |stamps: bool| {
        let [here, there] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        prepare(&here, stamps).unwrap();
        // The kernel begins to stamp a moment after the first socket has asked for it.
        sleep(LATE / 3);
        there.send_to(&[1], here.local_addr().unwrap()).unwrap();
        sleep(LATE);
        let received = receive(&here, &mut [0; 8]).unwrap();
        Duration::from_nanos(clock::now_ns() - received.at)
    };
    let (stamped, read) = (age(true), age(false));
    assert!(stamped >= LATE * 2 / 3 && stamped > read, "{stamped:?} {read:?}");
}

//! Genesys media: STUN answered and everything else echoed, with one mark.

use std::net::SocketAddr;

use super::{answer_udp, stun};
use crate::{Host, LabError};

/// Answers STUN binding requests and echoes every other datagram, marked with `tos`.
pub fn serve(host: &Host, address: SocketAddr, tos: u8) -> Result<(), LabError> {
    answer_udp(host, address, tos, |datagram, from| {
        stun::answer(datagram, from).or_else(|| Some(datagram.to_vec()))
    })
}

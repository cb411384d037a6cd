use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv,
        sendto, setsockopt, socket, sockopt,
    },
};

use super::{
    Error,
    encode::{self, Batch},
};
use crate::crash_point;

/// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
/// The size of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// What the kernel takes at once without asking for more room, in bytes; its default is about twice this.
const ROOM: usize = 96 * 1024;
/// The room that one answer takes in the receiving queue, in bytes.
const ANSWER: usize = 1024;

/// A nfnetlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    /// The next message's sequence number: no answer is taken for another request's.
    next: AtomicU32,
}

impl Socket {
    pub(crate) fn open() -> Result<Self, Error> {
        let protocol = SockProtocol::NetlinkNetFilter;
        match socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol) {
            Ok(fd) => {
                bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| Error::Socket(errno.into()))?;
                Ok(Self { fd, next: AtomicU32::new(1) })
            }
            Err(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => Err(Error::Unsupported),
            Err(errno) => Err(Error::Socket(errno.into())),
        }
    }

    /// The number by which the kernel's notices name this socket.
    pub(super) fn port(&self) -> Result<u32, Error> {
        let name = getsockname::<NetlinkAddr>(self.fd.as_raw_fd());
        Ok(name.map_err(|errno| Error::Socket(errno.into()))?.pid())
    }

    /// Whether there is a table of this name.
    pub(crate) fn has(&self, table: &str) -> Result<bool, Error> {
        let question = encode::get(table);
        match self.exchange(&question)?.first().map(|answer| answer.errno) {
            Some(0) => Ok(true),
            Some(libc::ENOENT) => Ok(false),
            // The latter is nfnetlink's word for a subsystem that it has not (nfnetlink_rcv_msg).
            Some(libc::EOPNOTSUPP | libc::EINVAL) => Err(Error::Unsupported),
            Some(errno) => Err(refused(&question, 0, errno)),
            None => Err(Error::Unanswered { action: question.action(0) }),
        }
    }

    /// Hands over a batch.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), Error> {
        crash_point::reached();
        let answers = self.exchange(batch)?;
        match answers.iter().find(|answer| answer.errno != 0) {
            Some(Answer { at: 0, errno: libc::EOPNOTSUPP }) => return Err(Error::Unsupported),
            Some(Answer { at, errno }) => return Err(refused(batch, *at, *errno)),
            None => {}
        }
        let is_unanswered = |at: &usize| answers.iter().all(|answer| answer.at != *at);
        match batch.answered().find(is_unanswered) {
            Some(at) => Err(Error::Unanswered { action: batch.action(at) }),
            None => Ok(()),
        }
    }

    /// Answers with all that the kernel says to a batch. It works on it within `sendto`: every answer is there when that returns.
    fn exchange(&self, batch: &Batch) -> Result<Vec<Answer>, Error> {
        let failed = |errno: Errno| Error::Exchange(errno.into());
        let fd = self.fd.as_raw_fd();
        let first = self.next.fetch_add(batch.len() as u32, Ordering::Relaxed);
        let bytes = batch.bytes(first);
        if bytes.len() > ROOM {
            setsockopt(&self.fd, sockopt::SndBufForce, &(bytes.len() + ROOM)).map_err(failed)?;
            setsockopt(&self.fd, sockopt::RcvBufForce, &(batch.len() * ANSWER + ROOM)).map_err(failed)?;
        }
        sendto(fd, &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(failed)?;

        let mut heard = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => heard.extend(answers(buffer.get(..length).unwrap_or_default(), first)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        heard.retain(|answer| answer.at < batch.len());
        Ok(heard)
    }
}

fn refused(batch: &Batch, at: usize, errno: i32) -> Error {
    Error::Refused { action: batch.action(at), source: io::Error::from_raw_os_error(errno) }
}

struct Answer {
    /// The place in its batch of the message that is answered.
    at: usize,
    /// 0: done, or what was asked for.
    errno: i32,
}

/// `struct nlmsghdr`, with `struct nlmsgerr` behind it where nothing was asked for (linux/netlink.h). The first message's sequence number
/// was `first`.
fn answers(mut bytes: &[u8], first: u32) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(HEADER) {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header else { break };
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = length.checked_sub(HEADER).and_then(|length| rest.get(..length));
        let Some(body) = body else { break };
        let at = u32::from_ne_bytes([s0, s1, s2, s3]).wrapping_sub(first) as usize;
        if u16::from_ne_bytes([k0, k1]) != NLMSG_ERROR {
            found.push(Answer { at, errno: 0 });
        } else if let Some(code) = body.first_chunk() {
            found.push(Answer { at, errno: i32::from_ne_bytes(*code).saturating_neg() });
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lying_lengths_end_the_answers() {
        for length in [0u32, 15, 17, 200, u32::MAX] {
            let mut bytes = vec![0; 20];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            assert!(answers(&bytes, 0).is_empty(), "length {length}");
        }
        for length in 0..HEADER {
            assert!(answers(&vec![0; length], 0).is_empty());
        }
    }
}

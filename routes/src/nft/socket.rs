use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
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
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> Result<Self, Error> {
        let protocol = SockProtocol::NetlinkNetFilter;
        match socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol) {
            Ok(fd) => {
                bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| Error::Socket(errno.into()))?;
                Ok(Self(fd))
            }
            Err(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => Err(Error::Unsupported),
            Err(errno) => Err(Error::Socket(errno.into())),
        }
    }

    /// The number by which the kernel's notices name this socket.
    pub(super) fn port(&self) -> Result<u32, Error> {
        let name = getsockname::<NetlinkAddr>(self.0.as_raw_fd());
        Ok(name.map_err(|errno| Error::Socket(errno.into()))?.pid())
    }

    /// Whether there is a table of this name.
    pub(crate) fn has(&self, table: &str) -> Result<bool, Error> {
        let exchange = |errno: Errno| Error::Exchange(errno.into());
        let fd = self.0.as_raw_fd();
        sendto(fd, &encode::get(table), &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(exchange)?;
        let mut buffer = vec![0; 64 * 1024];
        let length = recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).map_err(exchange)?;
        match answers(buffer.get(..length).unwrap_or_default()).first().map(|answer| answer.errno) {
            None | Some(0) => Ok(true),
            Some(libc::ENOENT) => Ok(false),
            // The latter is nfnetlink's word for a subsystem that it has not (nfnetlink_rcv_msg).
            Some(libc::EOPNOTSUPP | libc::EINVAL) => Err(Error::Unsupported),
            Some(errno) => Err(Error::Refused {
                action: format!("look for the table inet {table}"),
                source: io::Error::from_raw_os_error(errno),
            }),
        }
    }

    /// Hands over a batch. The kernel works on it within `sendto`: every answer is there when that returns.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), Error> {
        let exchange = |errno: Errno| Error::Exchange(errno.into());
        let fd = self.0.as_raw_fd();
        if batch.bytes.len() > ROOM {
            setsockopt(&self.0, sockopt::SndBufForce, &(batch.bytes.len() + ROOM)).map_err(exchange)?;
            setsockopt(&self.0, sockopt::RcvBufForce, &(batch.actions.len() * ANSWER + ROOM))
                .map_err(exchange)?;
        }
        crash_point::reached();
        sendto(fd, &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(exchange)?;

        // The batch's bounds are not answered.
        let mut unanswered: Vec<bool> = vec![true; batch.actions.len()];
        if let [first, .., last] = unanswered.as_mut_slice() {
            (*first, *last) = (false, false);
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(exchange(errno)),
            };
            for answer in answers(buffer.get(..length).unwrap_or_default()) {
                let action = batch.actions.get(answer.sequence);
                match answer.errno {
                    0 => {}
                    libc::EOPNOTSUPP if answer.sequence == 0 => return Err(Error::Unsupported),
                    errno => {
                        let action = action.cloned().unwrap_or_else(|| "take a batch".to_owned());
                        return Err(Error::Refused { action, source: io::Error::from_raw_os_error(errno) });
                    }
                }
                if let Some(waiting) = unanswered.get_mut(answer.sequence) {
                    *waiting = false;
                }
            }
        }
        match unanswered.iter().zip(&batch.actions).find(|(waiting, _)| **waiting) {
            Some((_, action)) => Err(Error::Unanswered { action: action.clone() }),
            None => Ok(()),
        }
    }
}

struct Answer {
    sequence: usize,
    /// 0: done.
    errno: i32,
}

/// `struct nlmsghdr` with `struct nlmsgerr` behind it (linux/netlink.h); other messages are passed over.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(HEADER) {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header else { break };
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = length.checked_sub(HEADER).and_then(|length| rest.get(..length));
        let Some(body) = body else { break };
        if u16::from_ne_bytes([k0, k1]) == NLMSG_ERROR
            && let Some(code) = body.first_chunk()
        {
            let sequence = u32::from_ne_bytes([s0, s1, s2, s3]) as usize;
            found.push(Answer { sequence, errno: i32::from_ne_bytes(*code).saturating_neg() });
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
            assert!(answers(&bytes).is_empty(), "length {length}");
        }
        for length in 0..HEADER {
            assert!(answers(&vec![0; length]).is_empty());
        }
    }
}

//! The kernel's notices of changes to a table (`NFNLGRP_NFTABLES`).

use std::io;

use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

use super::{
    Error, Socket,
    encode::{NFNL_SUBSYS_NFTABLES, NFPROTO_INET},
    socket::HEADER,
};
use crate::process::{Process, printable};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h) as a bit of `nl_groups`.
const GROUP: u32 = 1 << (7 - 1);
const NFT_MSG_NEWGEN: u16 = 15;
/// The table's name, in the messages about tables, chains, rules, sets, elements and objects alike.
const NFTA_TABLE: u16 = 1;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` (linux/netlink.h).
const NLA_TYPE_MASK: u16 = 0x3fff;
/// The size of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// Room for the notices of one message, in bytes.
const BUFFER: usize = 64 * 1024;

/// Changes that others make to one table of the `inet` family.
pub struct Watch {
    notices: TokioSocket,
    buffer: Vec<u8>,
    reader: Reader,
}

impl Watch {
    /// Watches the table `name` in the calling thread's network namespace; what `own` does is not told.
    /// Must be called within a tokio runtime with I/O enabled.
    pub(crate) fn new(name: &str, own: &Socket) -> Result<Self, Error> {
        let mut notices = TokioSocket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        notices.socket_mut().bind(&SocketAddr::new(0, GROUP)).map_err(Error::Socket)?;
        let reader = Reader { table: name.to_owned(), own: own.port()?, is_touched: false };
        Ok(Self { notices, buffer: Vec::with_capacity(BUFFER), reader })
    }

    /// Waits until somebody else has changed the table; who, if the kernel says so. Notices that the socket's buffer had no
    /// room for count as one.
    pub async fn touched(&mut self) -> Result<Option<Process>, Error> {
        loop {
            self.buffer.clear();
            match self.notices.recv(&mut self.buffer).await {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Exchange(error)),
            }
            if let Some(by) = self.reader.read(&self.buffer) {
                return Ok(by);
            }
        }
    }
}

#[derive(Debug)]
struct Reader {
    table: String,
    /// The port of the socket whose changes are ours.
    own: u32,
    is_touched: bool,
}

impl Reader {
    /// The changes of one transaction come first, then the new generation and whose it is. Who has touched the table, once
    /// that is known.
    fn read(&mut self, mut bytes: &[u8]) -> Option<Option<Process>> {
        let mut touched = None;
        while let Some((header, rest)) = bytes.split_at_checked(HEADER) {
            let [l0, l1, l2, l3, k0, k1, _, _, _, _, _, _, p0, p1, p2, p3] = *header else { break };
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let Some(body) = length.checked_sub(HEADER).and_then(|length| rest.get(..length)) else { break };
            let (kind, port) = (u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([p0, p1, p2, p3]));
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            let Some((family, attributes)) = body.split_at_checked(FAMILY_HEADER) else { continue };
            if kind >> 8 != NFNL_SUBSYS_NFTABLES {
                continue;
            }
            if kind & 0xff == NFT_MSG_NEWGEN {
                if std::mem::take(&mut self.is_touched) {
                    touched = Some(process(attributes));
                }
            } else if port != self.own
                && family.first() == Some(&NFPROTO_INET)
                && attribute(attributes, NFTA_TABLE).is_some_and(|name| text(name) == self.table)
            {
                self.is_touched = true;
            }
        }
        touched
    }
}

fn process(attributes: &[u8]) -> Option<Process> {
    let pid = u32::from_be_bytes(*attribute(attributes, NFTA_GEN_PROC_PID)?.first_chunk()?);
    let name = text(attribute(attributes, NFTA_GEN_PROC_NAME)?);
    Some(Process { pid, name })
}

/// The value of the first attribute of this kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Without the closing zero.
fn text(value: &[u8]) -> String {
    printable(value.split(|byte| *byte == 0).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lying_lengths_end_the_notices() {
        let mut reader = Reader { table: "t".to_owned(), own: 1, is_touched: true };
        for length in [0u32, 15, 17, 23, 200, u32::MAX] {
            let mut bytes = vec![0xff; 24];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(reader.read(&bytes), None, "length {length}");
        }
        for length in 0..24 {
            assert_eq!(attribute(&vec![0xff; length], 1), None);
            assert_eq!(attribute(&vec![0; length], 1), None, "an attribute of no length has no end");
        }
    }
}

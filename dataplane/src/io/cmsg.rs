use std::mem;

/// Room for the control messages of one datagram: TOS and TTL out; TOS and TTL in, or an error with its sender's address.
const CAPACITY: usize = 128;

/// The control messages of one datagram (cmsg(3)).
#[repr(C, align(8))]
#[derive(Clone)]
pub(super) struct Control {
    bytes: [u8; CAPACITY],
}

impl Control {
    pub(super) const CAPACITY: usize = CAPACITY;

    pub(super) const fn new() -> Self {
        Self { bytes: [0; CAPACITY] }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.bytes.as_mut_ptr().cast()
    }

    /// Appends one message behind the first `len` bytes; returns the new length, or the old one if there is no room.
    pub(super) fn push<const N: usize>(
        &mut self,
        len: usize,
        level: i32,
        kind: i32,
        value: [u8; N],
    ) -> usize {
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute sizes.
        let (data_at, cmsg_len, space) = unsafe {
            (
                libc::CMSG_LEN(0) as usize,
                libc::CMSG_LEN(N as u32) as usize,
                libc::CMSG_SPACE(N as u32) as usize,
            )
        };
        let Some(room) = self.bytes.get_mut(len..len + space) else { return len };
        let header = libc::cmsghdr { cmsg_len: cmsg_len as _, cmsg_level: level, cmsg_type: kind };
        // SAFETY: `room` is CMSG_SPACE(N) bytes, which begin with a header; the write needs no alignment.
        unsafe { room.as_mut_ptr().cast::<libc::cmsghdr>().write_unaligned(header) };
        if let Some(data) = room.get_mut(data_at..cmsg_len) {
            data.copy_from_slice(&value);
        }
        len + space
    }

    /// The messages in the first `len` bytes: level, type, data.
    pub(super) fn messages(&self, len: usize) -> Messages<'_> {
        Messages { rest: self.bytes.get(..len).unwrap_or(&self.bytes) }
    }
}

pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.len() < mem::size_of::<libc::cmsghdr>() {
            return None;
        }
        // SAFETY: `rest` is long enough for a header, and the read needs no alignment.
        let header = unsafe { self.rest.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        // SAFETY: CMSG_LEN only computes a size.
        let data_at = unsafe { libc::CMSG_LEN(0) } as usize;
        let len = header.cmsg_len;
        let data = self.rest.get(data_at..len)?;
        let space = len.next_multiple_of(mem::align_of::<usize>());
        self.rest = self.rest.get(space..).unwrap_or(&[]);
        Some((header.cmsg_level, header.cmsg_type, data))
    }
}

/// The number in a control message: the kernel gives TOS as one byte, everything else as an `int`.
pub(super) fn number(data: &[u8]) -> Option<i32> {
    match *data {
        [byte] => Some(i32::from(byte)),
        [a, b, c, d, ..] => Some(i32::from_ne_bytes([a, b, c, d])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_read_back() {
        let mut control = Control::new();
        let len = control.push(0, libc::SOL_IP, libc::IP_TOS, 184_i32.to_ne_bytes());
        let len = control.push(len, libc::SOL_IP, libc::IP_TTL, 64_i32.to_ne_bytes());
        let read: Vec<_> =
            control.messages(len).map(|(level, kind, data)| (level, kind, number(data))).collect();
        assert_eq!(read, [(libc::SOL_IP, libc::IP_TOS, Some(184)), (libc::SOL_IP, libc::IP_TTL, Some(64))]);
    }

    #[test]
    fn a_full_buffer_takes_no_more() {
        let mut control = Control::new();
        let mut len = 0;
        for _ in 0..100 {
            len = control.push(len, libc::SOL_IP, libc::IP_TTL, 1_i32.to_ne_bytes());
        }
        assert!(len <= CAPACITY && control.messages(len).count() == len / 24);
    }

    #[test]
    fn a_lying_length_ends_the_walk() {
        let mut control = Control::new();
        control.bytes[0] = 200;
        assert_eq!(control.messages(CAPACITY).count(), 0);
        control.bytes[0] = 3;
        assert_eq!(control.messages(CAPACITY).count(), 0);
    }
}

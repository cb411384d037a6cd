//! What can be read from a message without parsing all of it.

/// RFC 1035 §4.1.1
pub const HEADER: usize = 12;
/// RFC 1035 §2.3.4
const MAX_NAME: usize = 255;
const MAX_LABEL: u8 = 63;

pub const SERVFAIL: u16 = 2;
pub const NXDOMAIN: u16 = 3;
pub const NOTIMP: u16 = 4;
pub const REFUSED: u16 = 5;
pub const FORMERR: u16 = 1;

const ANSWER: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;
const CODE: u16 = 0x000f;

/// The parts of a header that are judged by. RFC 1035 §4.1.1
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub id: u16,
    flags: u16,
    pub questions: u16,
}

impl Header {
    /// `None` for less than 12 bytes.
    pub fn read(message: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, ..] = *message.first_chunk::<HEADER>()?;
        Some(Self {
            id: u16::from_be_bytes([a, b]),
            flags: u16::from_be_bytes([c, d]),
            questions: u16::from_be_bytes([e, f]),
        })
    }

    pub fn is_answer(self) -> bool {
        self.flags & ANSWER != 0
    }

    pub fn is_query(self) -> bool {
        self.flags & OPCODE == 0
    }

    pub fn is_truncated(self) -> bool {
        self.flags & TRUNCATED != 0
    }

    pub fn recursion_desired(self) -> bool {
        self.flags & RECURSION_DESIRED != 0
    }

    pub fn checking_disabled(self) -> bool {
        self.flags & CHECKING_DISABLED != 0
    }

    /// The low four bits of the response code.
    pub fn code(self) -> u16 {
        self.flags & CODE
    }
}

/// The bytes of the first question: name, type, class. `None` where it is cut short, or its name compressed: there is
/// nothing before it that it could point to.
pub fn question(message: &[u8]) -> Option<&[u8]> {
    let questions = message.get(HEADER..)?;
    let mut at = 0;
    loop {
        let length = *questions.get(at)?;
        if length > MAX_LABEL {
            return None;
        }
        at += 1 + usize::from(length);
        if at > MAX_NAME {
            return None;
        }
        if length == 0 {
            return questions.get(..at + 4);
        }
    }
}

/// Whether two questions are the same but for the case of the name's letters.
pub fn is_same_question(one: &[u8], other: &[u8]) -> bool {
    // A type's or class's byte may look like a letter; a label's length never does.
    match (one.split_last_chunk::<4>(), other.split_last_chunk::<4>()) {
        (Some((name, kind)), Some((other_name, other_kind))) => {
            kind == other_kind && name.eq_ignore_ascii_case(other_name)
        }
        _ => false,
    }
}

/// An answer to `header` without records. `question` may be empty where it could not be read.
pub fn bare(header: Header, question: &[u8], code: u16) -> Vec<u8> {
    let flags = ANSWER
        | RECURSION_AVAILABLE
        | header.flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED)
        | code & CODE;
    let mut message = Vec::with_capacity(HEADER + question.len());
    message.extend(header.id.to_be_bytes());
    message.extend(flags.to_be_bytes());
    message.extend(u16::from(!question.is_empty()).to_be_bytes());
    message.extend([0; 6]);
    message.extend(question);
    message
}

/// Puts another id into a message of at least two bytes.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &[u8], kind: [u8; 4]) -> Vec<u8> {
        [&[0; HEADER], name, &kind].concat()
    }

    #[test]
    fn a_question_ends_after_its_class() {
        let message = [asked(b"\x03api\x03com\0", [0, 1, 0, 1]), vec![9; 3]].concat();
        assert_eq!(question(&message), Some(&b"\x03api\x03com\0\0\x01\0\x01"[..]));
        assert_eq!(question(&asked(b"\0", [0, 2, 0, 1])), Some(&b"\0\0\x02\0\x01"[..]));
    }

    #[test]
    fn a_question_that_is_cut_compressed_or_too_long_is_none() {
        assert_eq!(question(&[0; HEADER]), None);
        assert_eq!(question(&asked(b"\x03ap", [0; 4])[..HEADER + 3]), None);
        assert_eq!(question(&asked(b"\xc0\x0c", [0, 1, 0, 1])), None);
        assert_eq!(question(&asked(&b"\x3f".repeat(400), [0, 1, 0, 1])), None);
        let whole = asked(b"\x03api\x03com\0", [0, 1, 0, 1]);
        assert_eq!(question(&whole[..whole.len() - 1]), None);
    }

    #[test]
    fn only_letters_of_the_name_may_differ_in_case() {
        let one = asked(b"\x03aPi\0", [0, b'A', 0, 1]);
        let same = asked(b"\x03ApI\0", [0, b'A', 0, 1]);
        // Types 65 (HTTPS) and 97 differ as `A` and `a` do.
        let other = asked(b"\x03aPi\0", [0, b'a', 0, 1]);
        assert!(is_same_question(&one, &same));
        assert!(!is_same_question(&one, &other));
        assert!(!is_same_question(&[], &[]));
    }
}

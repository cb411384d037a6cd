use std::fmt::Write;

use hickory_proto::rr::Name;

/// Lowercase, without the trailing dot. A byte that no host name has is written `\DDD`, so that each dot stands between labels.
pub fn text(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label.iter().map(u8::to_ascii_lowercase) {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' => text.push(char::from(byte)),
                // Writing to a String cannot fail.
                _ => _ = write!(text, "\\{byte:03}"),
            }
        }
    }
    text
}

/// The name with the case of its nth byte drawn from the nth of `bits`: "0x20" (draft-vixie-dnsext-dns0x20-00).
pub fn with_case(name: &Name, bits: &[u8; 32]) -> Option<Name> {
    let mut place = 0;
    let mut labels = Vec::new();
    for label in name.iter() {
        let mut cased = Vec::with_capacity(label.len());
        for byte in label {
            let is_upper = bits.get(place / 8).is_some_and(|bits| bits >> (place % 8) & 1 == 1);
            cased.push(if is_upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() });
            place += 1;
        }
        labels.push(cased);
    }
    Name::from_labels(labels).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[&[u8]]) -> Name {
        Name::from_labels(labels.iter().copied()).unwrap()
    }

    #[test]
    fn a_dot_within_a_label_is_no_dot() {
        assert_eq!(text(&labels(&[b"API", b"Example", b"com"])), "api.example.com");
        assert_eq!(text(&labels(&[b"evil.example", b"com"])), "evil\\046example.com");
        assert_eq!(text(&labels(&[b"\xff ", b"com"])), "\\255\\032.com");
        assert_eq!(text(&Name::root()), "");
    }

    #[test]
    fn case_is_drawn_from_the_bits() {
        let name = labels(&[b"Api", b"example", b"com"]);
        assert!(with_case(&name, &[0; 32]).unwrap().eq_case(&labels(&[b"api", b"example", b"com"])));
        assert!(with_case(&name, &[255; 32]).unwrap().eq_case(&labels(&[b"API", b"EXAMPLE", b"COM"])));
        let mixed = with_case(&name, &[0b0101; 32]).unwrap();
        assert!(mixed.eq_case(&labels(&[b"ApI", b"exampLe", b"Com"])), "{mixed}");
    }
}

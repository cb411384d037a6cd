//! STUN binding (RFC 8489), the little of it that ICE checks consist of.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

const MAGIC_COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const XOR_MAPPED_ADDRESS: [u8; 2] = [0x00, 0x20];

/// A transaction ID that holds a number. Real ones are random; nobody guesses in the lab.
pub fn transaction(number: u64) -> [u8; 12] {
    let mut id = *b"labX\0\0\0\0\0\0\0\0";
    if let Some(end) = id.last_chunk_mut() {
        *end = number.to_be_bytes();
    }
    id
}

/// A binding request without attributes.
pub fn request(transaction: [u8; 12]) -> Vec<u8> {
    [&BINDING_REQUEST[..], &[0, 0], &MAGIC_COOKIE, &transaction].concat()
}

/// The success response to a binding request from `from`; `None` for anything else.
pub fn answer(request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let (header, _) = request.split_first_chunk::<20>()?;
    let (kind, rest) = header.split_first_chunk::<2>()?;
    let (_, rest) = rest.split_first_chunk::<2>()?;
    let (cookie, transaction) = rest.split_first_chunk::<4>()?;
    if *kind != BINDING_REQUEST || *cookie != MAGIC_COOKIE {
        return None;
    }
    // RFC 8489 §14.2: XOR'd with the cookie, and for IPv6 with the transaction ID behind it.
    let pad = [&MAGIC_COOKIE[..], transaction].concat();
    let xor = |bytes: &[u8]| bytes.iter().zip(&pad).map(|(byte, pad)| byte ^ pad).collect::<Vec<u8>>();
    let (family, address) = match from.ip() {
        IpAddr::V4(ip) => (1, xor(&ip.octets())),
        IpAddr::V6(ip) => (2, xor(&ip.octets())),
    };
    let value = [&[0, family][..], &xor(&from.port().to_be_bytes()), &address].concat();
    let value_len = (value.len() as u16).to_be_bytes();
    let len = (value.len() as u16 + 4).to_be_bytes();
    Some(
        [&BINDING_SUCCESS[..], &len, &MAGIC_COOKIE, transaction, &XOR_MAPPED_ADDRESS, &value_len, &value]
            .concat(),
    )
}

/// Whether `response` is the success response to the request of this transaction.
pub fn is_answer(response: &[u8], transaction: [u8; 12]) -> bool {
    response.starts_with(&BINDING_SUCCESS) && response.get(8..20) == Some(&transaction[..])
}

/// Answers the binding requests of a connection (RFC 8489 §6.2.2: framed by their own length).
pub fn serve<S: Read + Write>(mut stream: S, from: SocketAddr) -> io::Result<()> {
    while let Some(request) = read_message(&mut stream)? {
        let response = answer(&request, from).ok_or_else(|| io::Error::other("not a binding request"))?;
        stream.write_all(&response)?;
        stream.flush()?;
    }
    Ok(())
}

/// Reads one message of a connection; `None` at its end.
pub fn read_message(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 20];
    match stream.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let [_, _, high, low, ..] = header;
    let mut message = header.to_vec();
    message.resize(header.len() + usize::from(u16::from_be_bytes([high, low])), 0);
    if let Some(attributes) = message.get_mut(header.len()..) {
        stream.read_exact(attributes)?;
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 §2.2, its mapped address 192.0.2.1:32853.
    #[test]
    fn the_mapped_address_of_rfc_5769() {
        let transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        let response = answer(&request(transaction), "192.0.2.1:32853".parse().unwrap()).unwrap();
        assert!(is_answer(&response, transaction));
        assert_eq!(response[20..], [0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
    }

    #[test]
    fn what_is_no_binding_request_gets_no_answer() {
        let from = "192.0.2.1:1".parse().unwrap();
        assert_eq!(answer(&[0; 20], from), None);
        assert_eq!(answer(&request([0; 12])[..19], from), None);
    }
}

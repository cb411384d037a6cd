//! SIP OPTIONS (RFC 3261 §11), as trunks and phones keep each other alive with.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use super::{field, read_head};

/// Answers each request of a connection; a request with a body is not expected and ends it.
pub fn serve<S: Read + Write>(mut stream: S) -> io::Result<()> {
    let mut pending = Vec::new();
    while let Some(request) = read_head(&mut stream, &mut pending)? {
        let response = answer(&request).ok_or_else(|| io::Error::other("not a SIP OPTIONS request"))?;
        stream.write_all(response.as_bytes())?;
        stream.flush()?;
    }
    Ok(())
}

/// The 200 response to an OPTIONS request; `None` for anything else.
pub fn answer(request: &str) -> Option<String> {
    if !(request.starts_with("OPTIONS ") && request.lines().next()?.ends_with("SIP/2.0")) {
        return None;
    }
    let via: String = request
        .lines()
        .filter(|line| line.to_ascii_lowercase().starts_with("via:"))
        .map(|line| format!("{line}\r\n"))
        .collect();
    let to = field(request, "To")?;
    // RFC 3261 §8.2.6.2: the response adds a tag where the request had none.
    let tag = if to.contains(";tag=") { "" } else { ";tag=lab" };
    Some(format!(
        "SIP/2.0 200 OK\r\n{via}From: {}\r\nTo: {to}{tag}\r\nCall-ID: {}\r\nCSeq: {}\r\nAllow: OPTIONS\r\nContent-Length: 0\r\n\r\n",
        field(request, "From")?,
        field(request, "Call-ID")?,
        field(request, "CSeq")?,
    ))
}

/// An OPTIONS request from `local` to `remote`; `transport` is UDP, TCP or TLS.
pub fn request(transport: &str, local: SocketAddr, remote: SocketAddr, sequence: u64) -> String {
    format!(
        "OPTIONS sip:{remote} SIP/2.0\r\nVia: SIP/2.0/{transport} {local};branch=z9hG4bK{sequence};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:agent@{local}>;tag=a{sequence}\r\nTo: <sip:{remote}>\r\nCall-ID: {sequence}@{local}\r\nCSeq: {sequence} OPTIONS\r\n\
         Contact: <sip:agent@{local}>\r\nContent-Length: 0\r\n\r\n"
    )
}

/// Whether `response` is the 200 that answers the request with this sequence number.
pub fn is_answer(response: &str, sequence: u64) -> bool {
    response.starts_with("SIP/2.0 200 ") && field(response, "CSeq") == Some(&format!("{sequence} OPTIONS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_its_own_answer() {
        let request = request("UDP", "10.0.0.1:5060".parse().unwrap(), "10.0.0.2:5060".parse().unwrap(), 7);
        let response = answer(&request).unwrap();
        assert!(is_answer(&response, 7));
        assert!(!is_answer(&response, 8));
        assert!(response.contains("Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK7;rport\r\n"));
        assert!(response.contains("To: <sip:10.0.0.2:5060>;tag=lab\r\n"));
    }

    #[test]
    fn what_is_no_options_request_gets_none() {
        for text in [
            "",
            "OPTIONS / HTTP/1.1\r\n\r\n",
            "INVITE sip:a SIP/2.0\r\n\r\n",
            "OPTIONS sip:a SIP/2.0\r\n\r\n",
        ] {
            assert_eq!(answer(text), None, "{text}");
        }
    }
}

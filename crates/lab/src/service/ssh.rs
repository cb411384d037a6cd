//! An SSH port: it greets and listens.

use std::io::{self, Read, Write};

/// Sends the identification line (RFC 4253 §4.2) and reads until the client leaves.
pub fn serve<S: Read + Write>(mut stream: S) -> io::Result<()> {
    stream.write_all(b"SSH-2.0-lab\r\n")?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

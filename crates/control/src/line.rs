use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// What a peer sent, up to a newline.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its newline.
    Whole(Vec<u8>),
    /// Longer than allowed.
    TooLong,
    /// The peer has closed, in the middle of a line or between two.
    End,
}

/// Reads one line of at most `max` bytes, its newline included.
pub(crate) async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), max: usize) -> std::io::Result<Line> {
    let mut line = Vec::new();
    reader.take(max as u64).read_until(b'\n', &mut line).await?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Line::Whole(line));
    }
    Ok(if line.len() >= max { Line::TooLong } else { Line::End })
}

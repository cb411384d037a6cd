//! Numbers and tables for people.

/// Left-aligned columns, two spaces between them.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|at| width(at).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// `340 ms`, `12 s`, `3 min 20 s`, `5 h 2 min`, `2 d 3 h`.
pub fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// `512 B`, `1.4 KiB`, `3.0 MiB`, …
pub fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = "KiB";
    for next in units.into_iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// `3 (0.24 %)`; of those that were sent, which are the lost and the received ones.
pub fn loss(lost: u64, received: u64) -> String {
    if lost == 0 {
        return "0".to_owned();
    }
    format!("{lost} ({:.2} %)", lost as f64 * 100.0 / (lost + received) as f64)
}

/// `1.9 ms`, or `unknown`.
pub fn jitter(microseconds: Option<u64>) -> String {
    microseconds.map_or_else(|| "unknown".to_owned(), |value| format!("{:.1} ms", value as f64 / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        for (seconds, shown) in [
            (0.0, "0 ms"),
            (0.34, "340 ms"),
            (59.9, "59 s"),
            (200.0, "3 min 20 s"),
            (18_120.0, "5 h 2 min"),
            (183_600.0, "2 d 3 h"),
        ] {
            assert_eq!(duration(seconds), shown);
        }
    }

    #[test]
    fn bytes_have_their_unit() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1434, "1.4 KiB"),
            (3 << 20, "3.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn loss_is_told_as_a_share_and_unknown_jitter_as_such() {
        assert_eq!((loss(0, 0), loss(1, 399)), ("0".to_owned(), "1 (0.25 %)".to_owned()));
        assert_eq!((jitter(None), jitter(Some(1_940))), ("unknown".to_owned(), "1.9 ms".to_owned()));
    }

    #[test]
    fn columns_line_up_and_have_no_trailing_space() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(columns(&rows), "a     b\nlong  c\n");
    }
}

//! A table, for the terminal and for HTML alike.

/// Text in rows and columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sheet {
    pub title: String,
    /// What the figures are, in a sentence.
    pub caption: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Sheet {
    pub fn new(title: &str, caption: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            caption: caption.to_owned(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            rows: Vec::new(),
        }
    }
}

/// Three significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 99.95 => format!("{value:.0}"),
        large if large >= 9.995 => format!("{value:.1}"),
        large if large >= 0.9995 => format!("{value:.2}"),
        small if small >= 0.0005 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_digits() {
        let shown = [0.0, 1234.5, 99.96, 12.34, 9.999, 1.234, 0.99, 0.1234, 0.00001].map(number);
        assert_eq!(shown, ["0", "1234", "100", "12.3", "10.0", "1.23", "0.990", "0.123", "1.0e-5"]);
    }
}

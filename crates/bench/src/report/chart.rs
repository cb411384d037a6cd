//! Two kinds of picture, as SVG.

use std::fmt::Write;

use super::Distribution;
use super::html::escape;
use super::sheet::number;

/// One for each line or bar, told apart without red and green side by side.
const COLOURS: [&str; 9] =
    ["#0b6e99", "#d9730d", "#6940a5", "#64748b", "#ad1a72", "#3f8f5f", "#8a6d3b", "#00a3a3", "#3b3b98"];

const WIDTH: f64 = 760.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 28.0;

/// Which part of the packets (up) came within which time (across, in µs, each line ten times the one before).
/// Up, the axis shows the tail: 90 %, 99 % and 99.9 % lie equally far apart.
pub fn delays(lines: &[(String, &Distribution)]) -> String {
    const TOP: f64 = 10.0;
    const HEIGHT: f64 = 240.0;
    /// 99.99 % is the top.
    const NINES: f64 = 4.0;
    let values = lines.iter().flat_map(|(_, line)| &line.ns).map(|(ns, _)| (*ns).max(1) as f64 / 1e3);
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), us| (low.min(us), high.max(us)));
    if high <= 0.0 {
        return String::new();
    }
    let (first, last) = (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0));
    let across = |us: f64| LEFT + (us.log10() - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let nines = |part: f64| (-(1.0 - part).max(1e-9).log10()).min(NINES);
    let up = |part: f64| TOP + HEIGHT - nines(part) / NINES * HEIGHT;

    let legend = 22.0 * lines.len() as f64;
    let mut svg = begin(TOP + HEIGHT + 50.0 + legend);
    for (part, label) in
        [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]
    {
        let y = up(part);
        line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y));
        text(&mut svg, (LEFT - 6.0, y + 4.0), "end", label);
    }
    for decade in first as i32..=last as i32 {
        let us = 10_f64.powi(decade);
        line(&mut svg, (across(us), TOP), (across(us), TOP + HEIGHT));
        text(&mut svg, (across(us), TOP + HEIGHT + 18.0), "middle", &duration(us));
    }
    for (index, (name, distribution)) in lines.iter().enumerate() {
        let all = distribution.count() as f64;
        let mut seen = 0;
        let mut points = String::new();
        let mut drawn = f64::NEG_INFINITY;
        for (ns, count) in distribution.pooled() {
            let x = across(ns.max(1) as f64 / 1e3);
            let before = up(seen as f64 / all);
            seen += count;
            // A step that is narrower than what can be seen joins the next one; the last is always drawn.
            if x - drawn < 0.5 && seen as f64 != all {
                continue;
            }
            let _ = write!(points, "{x:.1},{before:.1} {x:.1},{:.1} ", up(seen as f64 / all));
            drawn = x;
        }
        let colour = colour(index);
        let dash = if name.contains("again") { " stroke-dasharray=\"4 3\"" } else { "" };
        let _ = write!(
            svg,
            r#"<polyline fill="none" stroke="{colour}" stroke-width="1.8"{dash} points="{points}"/>"#
        );
        let y = TOP + HEIGHT + 44.0 + 22.0 * index as f64;
        let _ = write!(svg, r#"<rect x="{LEFT}" y="{:.1}" width="18" height="4" fill="{colour}"/>"#, y - 6.0);
        let quantile = |part: f64| duration(distribution.quantile(part) as f64 / 1e3);
        let said = format!("{name}: p50 {}, p99 {}, max {}", quantile(0.5), quantile(0.99), quantile(1.0));
        text(&mut svg, (LEFT + 26.0, y), "start", &said);
    }
    svg + "</svg>"
}

/// A bar.
pub struct Bar {
    pub name: String,
    /// Which colour it gets: the same for the same client.
    pub series: usize,
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Groups of bars across, with the range of rounds as a thin line.
pub fn bars(groups: &[(String, Vec<Bar>)], unit: &str) -> String {
    const BAR: f64 = 20.0;
    const LABELS: f64 = 190.0;
    const GAP: f64 = 16.0;
    let most = groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.high).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let count: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let height = count as f64 * BAR + groups.len() as f64 * (GAP + 18.0);
    let across = |value: f64| LABELS + value / most * (WIDTH - LABELS - 110.0);
    let mut svg = begin(height);
    let mut y = 0.0;
    for (title, bars) in groups {
        y += 18.0;
        let _ = write!(svg, r#"<text x="0" y="{:.1}" font-weight="600">{}</text>"#, y - 4.0, escape(title));
        for bar in bars {
            let (end, middle) = (across(bar.value), y + BAR / 2.0);
            text(&mut svg, (LABELS - 8.0, middle + 4.0), "end", &bar.name);
            let _ = write!(
                svg,
                r#"<rect x="{LABELS}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{}"/>"#,
                y + 2.0,
                end - LABELS,
                BAR - 4.0,
                colour(bar.series)
            );
            let _ = write!(
                svg,
                r#"<line x1="{:.1}" y1="{middle:.1}" x2="{:.1}" y2="{middle:.1}" stroke="currentColor"/>"#,
                across(bar.low),
                across(bar.high)
            );
            let said = format!("{} {unit}", number(bar.value));
            text(&mut svg, (across(bar.high).max(end) + 6.0, middle + 4.0), "start", &said);
            y += BAR;
        }
        y += GAP;
    }
    svg + "</svg>"
}

fn begin(height: f64) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {height:.0}" width="{WIDTH:.0}" role="img" font-size="12" fill="currentColor">"#
    )
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = write!(
        svg,
        r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="currentColor" stroke-opacity="0.15"/>"#
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, said: &str) {
    let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escape(said));
}

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or("black")
}

fn duration(us: f64) -> String {
    match us {
        long if long >= 1e6 => format!("{} s", number(long / 1e6)),
        middle if middle >= 1e3 => format!("{} ms", number(middle / 1e3)),
        short => format!("{} µs", number(short)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_makes_no_picture() {
        assert_eq!(delays(&[]), "");
        assert_eq!(delays(&[("x".into(), &Distribution::default())]), "");
        assert_eq!(bars(&[], "Gbit/s"), "");
    }

    #[test]
    fn every_line_and_bar_is_drawn_and_named() {
        let line = Distribution { ns: vec![(10_000, vec![99]), (1_000_000, vec![1])] };
        let svg = delays(&[("direct".into(), &line), ("a<b".into(), &line)]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b: p50 10.0 µs, p99 10.0 µs, max 1.00 ms"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let bar = |value| Bar { name: "n".into(), series: 0, value, low: value, high: value };
        let svg = bars(&[("up".into(), vec![bar(1.0), bar(2.0)])], "Gbit/s");
        assert_eq!(svg.matches("<rect").count(), 2);
    }
}

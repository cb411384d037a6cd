//! The report as one page that needs nothing else.

use std::fmt::Write;

use super::chart::{self, Bar};
use super::sentences::sentences;
use super::sheet::Sheet;
use super::sheets::{figures, findings, headline, scenarios};
use super::{Cell, Load, Mode, Path, Report};
use crate::metric;
use crate::plan::Section;

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; font-size: 1.25rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #8884; white-space: nowrap; }
.wide { overflow-x: auto; } .lead li { font-size: 1.05rem; margin: .4rem 0; }
p.note, figcaption { color: #777; font-size: 13px; } svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
";

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Breakout bench</title><style>{STYLE}</style></head><body>\n<h1>Breakout bench</h1>\n"
    );
    list(&mut out, &sentences(report), "lead");
    machine(&mut out, report);
    for sheet in &findings(report) {
        table(&mut out, sheet);
    }
    throughput(&mut out, report);
    voice(&mut out, report);
    out += "<h2>All figures</h2>\n";
    for sheet in &figures(report) {
        table(&mut out, sheet);
    }
    if !report.notes.is_empty() {
        out += "<h2>How to read them</h2>\n";
        list(&mut out, &report.notes, "notes");
    }
    out + "</body></html>\n"
}

/// Makes text safe inside an element or a quoted attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn list(out: &mut String, items: &[String], class: &str) {
    let _ = write!(out, "<ul class=\"{class}\">");
    for item in items {
        let _ = write!(out, "<li>{}</li>", escape(item));
    }
    *out += "</ul>\n";
}

fn machine(out: &mut String, report: &Report) {
    let machine = &report.machine;
    let kind = if machine.is_virtual { "a virtual machine" } else { "a machine" };
    let place = match report.mode {
        Mode::Lab => "Both ends ran on it, in network namespaces connected by a virtual wire",
        Mode::Live => "The far end was another machine",
    };
    let clients: Vec<String> = report
        .contenders
        .iter()
        .map(|contender| format!("{} (against the gateway {})", contender.version, contender.gateway))
        .collect();
    let said = format!(
        "Measured on {kind} with {} cores ({}), {:.0} GiB of memory, Linux {}, {}, load average {} before. {place}. \
         Clients: {}. {} rounds in turn, {:.0} s in all. Command: {}",
        machine.cores,
        machine.processor,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        machine.kernel,
        machine.system,
        machine.load_average,
        clients.join(", "),
        report.plan.rounds,
        report.seconds,
        report.command.join(" ")
    );
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&said));
}

fn throughput(out: &mut String, report: &Report) {
    let group = |scenario: &str| {
        let bar = |(series, client): (usize, &str)| {
            let cell = report.of_client(Section::Throughput, scenario, client)?;
            let metric = cell.metrics.get(headline(scenario))?;
            let (value, low, high) = (metric.median(), metric.min(), metric.max());
            Some(Bar { name: client.to_owned(), series, value, low, high })
        };
        (title(scenario), report.clients().enumerate().filter_map(bar).collect())
    };
    for (title, unit, name) in [
        ("Throughput through the tunnel", "Gbit/s", metric::RATE),
        ("Small packets through the tunnel", "thousand packets/s", metric::PACKETS),
    ] {
        let wanted =
            scenarios(report, Section::Throughput).into_iter().filter(|scenario| headline(scenario) == name);
        let svg = chart::bars(&wanted.map(group).collect::<Vec<_>>(), unit);
        if !svg.is_empty() {
            let _ = writeln!(
                out,
                "<h2>{title}</h2>\n<figure>{svg}<figcaption>Longer is better. Medians; the thin line is the range of the rounds.</figcaption></figure>"
            );
        }
    }
}

/// A throughput scenario in words, such as `TCP upload, 4 streams` for `tcp-up-4`.
fn title(scenario: &str) -> String {
    let words = scenario.split('-').map(|word| match word {
        "tcp" => "TCP".to_owned(),
        "udp" => "UDP".to_owned(),
        "up" => " upload".to_owned(),
        "down" => " download".to_owned(),
        "both" => " both ways at once".to_owned(),
        "small" => " of 200 B,".to_owned(),
        "1" => ", 1 stream".to_owned(),
        streams => format!(", {streams} streams"),
    });
    words.collect()
}

fn voice(out: &mut String, report: &Report) {
    let mut begun = false;
    for scenario in scenarios(report, Section::Voice) {
        for load in Load::ALL.map(Some).into_iter().chain([None]) {
            let cells = report
                .section(Section::Voice)
                .filter(|cell| cell.key.scenario == scenario && cell.key.load == load);
            let lines: Vec<_> = cells
                .filter_map(|cell| Some((line_name(cell), cell.distributions.get(metric::ROUND_TRIP)?)))
                .collect();
            let svg = chart::delays(&lines);
            if svg.is_empty() {
                continue;
            }
            if !begun {
                *out += "<h2>Voice: how long packets take there and back</h2>\n<p class=\"note\">A line further left is better. \
                         The axis stretches the slowest packets, which are the ones that are heard.</p>\n";
                begun = true;
            }
            let beside = match load {
                Some(Load::Idle) => ", the tunnel idle",
                Some(Load::Upload) => ", while an upload fills the tunnel",
                Some(Load::Download) => ", while a download fills the tunnel",
                Some(Load::UdpUpload) => ", while datagrams go up the tunnel",
                None => "",
            };
            let calls = scenario.trim_start_matches("calls-");
            let plural = if calls == "1" { "call" } else { "calls" };
            let _ = writeln!(out, "<h3>{} {plural}{beside}</h3>\n<figure>{svg}</figure>", escape(calls));
        }
    }
}

fn line_name(cell: &Cell) -> String {
    match cell.key.path {
        Some(Path::Tunnel) => format!("inside {}'s tunnel", cell.key.client),
        Some(path @ (Path::BypassPump | Path::BypassFastPath)) => format!("Breakout's {path}"),
        Some(_) => cell.key.way(),
        None => cell.key.client.clone(),
    }
}

fn table(out: &mut String, sheet: &Sheet) {
    let row = |cells: &[String], tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let _ = write!(out, "<h3>{}</h3><p class=\"note\">{}</p>", escape(&sheet.title), escape(&sheet.caption));
    let _ = write!(out, "<div class=\"wide\"><table><thead>{}</thead><tbody>", row(&sheet.columns, "th"));
    for cells in &sheet.rows {
        *out += &row(cells, "td");
    }
    *out += "</tbody></table></div>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_have_titles() {
        let titles = ["tcp-up-1", "tcp-both-4", "udp-small-down"].map(title);
        assert_eq!(
            titles,
            ["TCP upload, 1 stream", "TCP both ways at once, 4 streams", "UDP of 200 B, download"]
        );
        assert_eq!(escape("<a href=\"&\">"), "&lt;a href=&quot;&amp;&quot;&gt;");
    }
}

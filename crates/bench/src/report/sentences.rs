use super::sheet::number;
use super::{Key, Load, Metric, Path, Report};
use crate::metric;
use crate::plan::Section;

/// What the figures say, in sentences for people who do not read tables.
pub fn sentences(report: &Report) -> Vec<String> {
    let sentences =
        [upload(report), cost(report), voice(report), in_tunnel(report), idle(report), bars(report)];
    sentences.into_iter().flatten().collect()
}

const OURS: &str = "breakout";

fn upload(report: &Report) -> Option<String> {
    let rate = |client: &str| tunnel(report, Section::Throughput, "tcp-up-1", client, metric::RATE);
    let ours = rate(OURS)?;
    let mut sentence = format!("One upload through Breakout's tunnel moves {} Gbit/s", number(ours.median()));
    let key = Key::new(Section::Ceiling, "chacha20-poly1305");
    // It is that of two ends of ours.
    let is_ours = report.contenders.first().is_some_and(|contender| contender.gateway == OURS);
    if let Some(ceiling) =
        report.cell(&key).filter(|_| is_ours).and_then(|cell| cell.metrics.get(metric::RATE))
    {
        let part = ours.ratio(ceiling).map_or(0.0, |ratio| ratio.median());
        sentence += &format!(", {} × what this machine's cipher allows", number(part));
    }
    Some(finish(sentence, &against(report, ours, rate, "as much as")))
}

fn cost(report: &Report) -> Option<String> {
    let cpu = |client: &str| tunnel(report, Section::FixedLoad, "fixed-up", client, metric::CPU);
    let ours = cpu(OURS)?;
    let sentence =
        format!("At 300 Mbit/s of upload it takes {} CPU seconds for each gigabyte", number(ours.median()));
    Some(finish(sentence, &against(report, ours, cpu, "what it is with")))
}

fn voice(report: &Report) -> Option<String> {
    let scenario = busiest(report)?;
    let p99 = |key: Key| Some(report.cell(&key)?.quantile_us(metric::ROUND_TRIP, 0.99)? / 1e3);
    let of = |path: Path| {
        let (load, client) = (Some(Load::Upload), OURS.to_owned());
        Key { load, path: Some(path), client, ..Key::new(Section::Voice, scenario.clone()) }
    };
    let tiers = [Path::BypassFastPath, Path::BypassPump].into_iter();
    let (tier, bypass) = tiers.filter_map(|tier| Some((tier, p99(of(tier))?))).next()?;
    let direct = p99(Key { beside: Some(tier), client: String::new(), ..of(Path::Direct) })?;
    let inside = p99(of(Path::Tunnel))?;
    Some(format!(
        "While an upload fills the tunnel, 99 of 100 voice packets that break out are back within {} ms; without any VPN it is {} ms, inside the tunnel {} ms.",
        number(bypass),
        number(direct),
        number(inside)
    ))
}

fn in_tunnel(report: &Report) -> Option<String> {
    let scenario = busiest(report)?;
    let p99 = |client: &str| {
        let (load, path, client) = (Some(Load::Upload), Some(Path::Tunnel), client.to_owned());
        let key = Key { load, path, client, ..Key::new(Section::Voice, scenario.clone()) };
        report.cell(&key)?.quantile_us(metric::ROUND_TRIP, 0.99).filter(|us| *us > 0.0)
    };
    let ours = p99(OURS)?;
    let ratio = |client: &str| Some(format!("{} × what it is with {client}", number(ours / p99(client)?)));
    let others: Vec<String> = report.clients().filter(|client| *client != OURS).filter_map(ratio).collect();
    (!others.is_empty()).then(|| {
        finish("Voice that has to stay inside the tunnel beside that upload has a p99".to_owned(), &others)
    })
}

fn idle(report: &Report) -> Option<String> {
    let cell = report.of_client(Section::Idle, "idle", OURS)?;
    Some(format!(
        "With nothing to do it wakes up {} times a second and holds {} MiB.",
        number(cell.metrics.get(metric::WAKEUPS_PER_SECOND)?.mean()),
        number(cell.metrics.get(metric::MEMORY)?.max())
    ))
}

fn bars(report: &Report) -> Option<String> {
    let judged = report.bars.iter().filter(|bar| bar.met.is_some()).count();
    let met = report.bars.iter().filter(|bar| bar.met == Some(true)).count();
    (judged > 0).then(|| {
        format!("{met} of {judged} bars are met; {} more are only reported.", report.bars.len() - judged)
    })
}

fn tunnel<'a>(
    report: &'a Report,
    section: Section,
    scenario: &str,
    client: &str,
    name: &str,
) -> Option<&'a Metric> {
    report.of_client(section, scenario, client)?.metrics.get(name)
}

/// The scenario that is barred under load: the one with the most calls.
fn busiest(report: &Report) -> Option<String> {
    let all = super::sheets::scenarios(report, Section::Voice);
    all.iter().rfind(|name| name.starts_with("calls-")).map(|name| (*name).to_owned())
}

fn against<'a>(
    report: &'a Report,
    ours: &Metric,
    of: impl Fn(&str) -> Option<&'a Metric>,
    words: &str,
) -> Vec<String> {
    let others = report.clients().filter(|client| *client != OURS);
    let ratio =
        |client: &str| Some(format!("{} × {words} {client}", number(ours.ratio(of(client)?)?.median())));
    others.filter_map(ratio).collect()
}

fn finish(sentence: String, others: &[String]) -> String {
    if others.is_empty() { format!("{sentence}.") } else { format!("{sentence}: {}.", others.join(", ")) }
}

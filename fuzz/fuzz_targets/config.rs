//! Any text: an error that can be shown, or a snapshot that judges.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use packet::Dscp;
use policy::{Config, Content, Facts, Snapshot};

fuzz_target!(|text: &str| {
    let (config, warnings) = match Config::parse(text, "fuzzed") {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.findings().is_empty());
            assert!(!format!("{error} {error:#}").is_empty());
            return show(&error);
        }
    };
    warnings.iter().for_each(|warning| show(warning));

    let snapshot = Snapshot::compile(&config);
    for captured in snapshot.captured() {
        let to = SocketAddr::new(captured.prefix.addr(), 443);
        let facts = Facts::udp(to, Dscp::EF, Content::Rtp);
        assert!(snapshot.set_of(to.ip()).is_some());
        assert_eq!(snapshot.classify(&facts).path, snapshot.explain(&facts).path);
    }
});

fn show(diagnostic: &dyn Diagnostic) {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut String::new(), diagnostic).expect("every finding points into the text");
}

//! Any text: an error that can be shown, or a snapshot that judges.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use packet::Dscp;
use policy::{Config, Content, Facts, Learned, Snapshot};

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

    let gateways = &config.tunnel.gateways;
    assert!((1..=8).contains(&gateways.len()));
    for (at, gateway) in gateways.iter().enumerate() {
        for other in gateways.iter().skip(at + 1) {
            assert_ne!(gateway.name, other.name);
            assert_ne!(gateway.public_key, other.public_key);
            assert_ne!(gateway.endpoint.to_string(), other.endpoint.to_string());
        }
    }

    let snapshot = Snapshot::compile(&config);
    for captured in snapshot.captured() {
        let to = SocketAddr::new(captured.prefix.addr(), 443);
        let facts = Facts::udp(to, Dscp::EF, Content::Rtp);
        assert!(snapshot.set_of(to.ip()).is_some());
        assert_eq!(snapshot.classify(&facts).path, snapshot.explain(&facts).path);
    }

    let address = "198.51.100.7".parse().expect("an address");
    for (domain, set) in snapshot.domains() {
        for name in [domain.to_owned(), format!("{}.", domain.to_uppercase())] {
            assert_eq!(snapshot.set_for_name(&name), Some((domain, set)));
        }
        let below = snapshot.set_for_name(&format!("x.{domain}"));
        assert!(below.is_some_and(|(longest, _)| longest.ends_with(domain)));

        let learned = snapshot.with_learned(&[Learned { address, set: set.to_owned() }]);
        let is_new = snapshot.set_of(address).is_none();
        assert_eq!((learned.is_learned(address), learned.learned().len()), (is_new, usize::from(is_new)));
        if is_new {
            assert_eq!(learned.set_of(address), Some((set, address.into())));
        }
    }
});

fn show(diagnostic: &dyn Diagnostic) {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut String::new(), diagnostic).expect("every finding points into the text");
}

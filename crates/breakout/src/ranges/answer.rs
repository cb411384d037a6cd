use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use policy::{SIGNALING, SetView, Snapshot, never_captured};
use serde::Deserialize;

use crate::failure::Failure;

/// What `GET /api/v2/ipranges` answers. It grows: what is not known is passed over.
#[derive(Deserialize)]
struct Answer {
    entities: Vec<Entity>,
}

#[derive(Deserialize)]
struct Entity {
    cidr: Option<String>,
    service: Option<String>,
    direction: Option<String>,
}

/// What of an answer may be in the signaling set.
#[derive(Debug)]
pub struct Selected {
    /// Without host bits, aggregated.
    pub prefixes: Vec<IpNet>,
    /// What was left out, and why, a sentence each.
    pub notes: Vec<String>,
}

/// Takes the ranges of the API that others connect to, except what a set of `policy` other than signaling holds. `name` is
/// the answer's in messages.
pub fn select(answer: &str, name: &str, policy: &Snapshot) -> Result<Selected, Failure> {
    let answer: Answer = serde_json::from_str(answer).map_err(|error| {
        Failure::usage(format!("{name} is no list of Genesys's address ranges"))
            .because(error)
            .remedy("give what `GET https://api.DOMAIN/api/v2/ipranges` answered: {\"entities\": […]}")
    })?;
    let (signaling, others): (Vec<&Entity>, Vec<&Entity>) =
        answer.entities.iter().partition(|entity| entity.is_signaling());

    let mut notes = Vec::new();
    if !others.is_empty() {
        notes.push(format!(
            "{} left out: of other services, or only for connections that Genesys opens",
            ranges(others.len())
        ));
    }
    let other_sets: Vec<SetView<'_>> = policy.sets().filter(|set| set.name != SIGNALING).collect();
    let mut prefixes = Vec::with_capacity(signaling.len());
    for entity in signaling {
        match entity.prefix().and_then(|prefix| not_in(&other_sets, prefix)) {
            Ok(prefix) => prefixes.push(prefix),
            Err(why) => notes.push(format!("{why}; it was left out")),
        }
    }
    if prefixes.is_empty() {
        let services: BTreeSet<&str> =
            answer.entities.iter().filter_map(|entity| entity.service.as_deref()).collect();
        let services: Vec<&str> = services.into_iter().collect();
        let found = if services.is_empty() { "no service at all".to_owned() } else { services.join(", ") };
        notes.insert(0, format!("wanted are those of the service `api`, inbound or both; it has {found}"));
        return Err(Failure::usage(format!("{name} has no range for signaling"))
            .because(notes.join("; "))
            .remedy("ask the API of your own region, and save all of its answer")
            .into());
    }
    Ok(Selected { prefixes: IpNet::aggregate(&prefixes), notes })
}

impl Entity {
    /// `direction` is Genesys's own point of view.
    fn is_signaling(&self) -> bool {
        self.service.as_deref() == Some("api")
            && matches!(self.direction.as_deref(), Some("inbound" | "both"))
    }

    fn prefix(&self) -> Result<IpNet, String> {
        let written = self.cidr.as_deref().ok_or("a range has no `cidr`")?;
        let prefix = written
            .parse::<IpNet>()
            .or_else(|_| written.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| format!("`{}` is no prefix", written.escape_debug()))?
            .trunc();
        match never_captured(&prefix) {
            Some(why) => Err(format!("{prefix} cannot be captured: it {why}")),
            None => Ok(prefix),
        }
    }
}

/// Of two prefixes the longer one has its way: inside another set's, this one would take addresses away from it.
fn not_in(sets: &[SetView<'_>], prefix: IpNet) -> Result<IpNet, String> {
    let holds = |set: &&SetView<'_>| set.prefixes.iter().any(|other| other.contains(&prefix));
    match sets.iter().find(holds) {
        Some(set) => Err(format!("{prefix} belongs to {}", set.name)),
        None => Ok(prefix),
    }
}

fn ranges(count: usize) -> String {
    if count == 1 { "1 range was".to_owned() } else { format!("{count} ranges were") }
}

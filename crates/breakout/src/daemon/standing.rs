//! Why a gateway is used or not, for people.

use policy::Prefer;

/// How one of the gateways stands.
pub struct Standing {
    pub name: String,
    pub is_used: bool,
    /// Why it cannot be used, in a phrase.
    pub hindrance: Option<&'static str>,
    pub has_flows: bool,
    /// Whether its round trip is known.
    pub is_measured: bool,
}

/// In a phrase, of the gateway at this place.
pub fn why(prefer: Prefer, all: &[Standing], at: usize) -> String {
    let Some(gateway) = all.get(at) else { return String::new() };
    let phrase = match (gateway, prefer) {
        (Standing { is_used: false, hindrance: Some(hindrance), .. }, _) => *hindrance,
        (Standing { is_used: false, has_flows: true, .. }, _) => "it keeps the flows that it had",
        (Standing { is_used: false, .. }, _) => "it is in reserve",
        _ if all.len() == 1 => "it is the only one",
        (_, Prefer::Order) if at == 0 => "it is the first in order",
        (_, Prefer::Order) => return those_before(all.get(..at).unwrap_or_default()),
        (Standing { is_measured: false, .. }, Prefer::RoundTrip) => "no round trip was measured yet",
        (_, Prefer::RoundTrip) if all.iter().all(|other| other.is_used || other.hindrance.is_some()) => {
            "no other can be used"
        }
        (_, Prefer::RoundTrip) => "its round trip was the shortest when it was chosen",
    };
    phrase.to_owned()
}

fn those_before(before: &[Standing]) -> String {
    let told = |other: &Standing| {
        format!("{}: {}", other.name, other.hindrance.unwrap_or("it has yet to answer twice"))
    };
    format!("before it are {}", before.iter().map(told).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(name: &str, is_used: bool, hindrance: Option<&'static str>, is_measured: bool) -> Standing {
        Standing { name: name.to_owned(), is_used, hindrance, has_flows: false, is_measured }
    }

    #[test]
    fn the_reason_is_the_one_that_holds() {
        let by = |prefer, all: &[Standing], at| why(prefer, all, at);
        let alone = [standing("near", true, Some("it does not answer"), true)];
        assert_eq!(by(Prefer::Order, &alone, 0), "it is the only one");

        let third = [
            standing("near", false, Some("there is no route to it"), true),
            standing("far", false, None, true),
            standing("last", true, None, true),
        ];
        assert_eq!(
            by(Prefer::Order, &third, 2),
            "before it are near: there is no route to it; far: it has yet to answer twice"
        );
        assert_eq!(by(Prefer::Order, &third, 0), "there is no route to it");
        assert_eq!(by(Prefer::Order, &third, 1), "it is in reserve");
        assert_eq!(by(Prefer::RoundTrip, &third, 2), "its round trip was the shortest when it was chosen");

        let fresh = [standing("near", true, None, false), standing("far", false, None, false)];
        assert_eq!(by(Prefer::RoundTrip, &fresh, 0), "no round trip was measured yet");
        assert_eq!(by(Prefer::Order, &fresh, 0), "it is the first in order");
        let left =
            [standing("near", false, Some("it does not answer"), true), standing("far", true, None, true)];
        assert_eq!(by(Prefer::RoundTrip, &left, 1), "no other can be used");
    }
}

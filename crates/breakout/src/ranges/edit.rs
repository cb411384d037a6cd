use std::str::FromStr;

use ipnet::IpNet;
use policy::SIGNALING;
use toml_edit::{Array, DocumentMut, Item, RawString, Table, Value};

use crate::failure::{Failure, Problem};

/// The signaling set with these prefixes alone, as a section of a configuration.
pub fn section(prefixes: &[IpNet]) -> String {
    let lines: String = prefixes.iter().map(|prefix| format!("    \"{prefix}\",\n")).collect();
    format!("[sets.{SIGNALING}]\ncidrs = [\n{lines}]\n")
}

/// Adds to the signaling set of a configuration's text those of the prefixes that it does not hold, and leaves all else as
/// it is written. Answers with the new text and with what was added. `name` is the file's in messages.
pub fn add(text: &str, name: &str, prefixes: &[IpNet]) -> Result<(String, Vec<IpNet>), Failure> {
    let mut document = DocumentMut::from_str(text)
        .map_err(|error| Failure::usage(format!("{name} is not valid TOML")).because(error))?;
    let Some(cidrs) = cidrs(&mut document) else { return Err(unforeseen(name).into()) };
    let held: Vec<IpNet> = cidrs.iter().filter_map(|value| value.as_str()?.parse().ok()).collect();
    let new: Vec<IpNet> =
        prefixes.iter().filter(|new| !held.iter().any(|held| held.contains(*new))).copied().collect();
    if !new.is_empty() {
        append(cidrs, &new);
    }
    Ok((document.to_string(), new))
}

/// The list of the signaling set's prefixes, made if it is not there. `None` if something on the way is written in a form
/// that cannot be added to.
fn cidrs(document: &mut DocumentMut) -> Option<&mut Array> {
    let mut headless = Table::new();
    headless.set_implicit(true);
    let sets = document.entry("sets").or_insert(Item::Table(headless)).as_table_mut()?;
    let set = sets.entry(SIGNALING).or_insert(Item::Table(Table::new())).as_table_mut()?;
    let cidrs = set.entry("cidrs").or_insert(Item::Value(Value::Array(Array::new()))).as_value_mut()?;
    if let Value::String(one) = cidrs {
        let mut list = Array::from_iter([one.value().as_str()]);
        *list.decor_mut() = one.decor().clone();
        *cidrs = Value::Array(list);
    }
    cidrs.as_array_mut()
}

/// Puts each on a line of its own. What stands before the closing bracket, a comment perhaps, stays before them.
fn append(cidrs: &mut Array, prefixes: &[IpNet]) {
    if let Some(last) = cidrs.iter_mut().last() {
        let decor = last.decor_mut();
        if decor.suffix().and_then(RawString::as_str).is_some_and(|suffix| suffix.trim().is_empty()) {
            decor.set_suffix("");
        }
    }
    let before = cidrs.trailing().as_str().unwrap_or_default().trim_end_matches([' ', '\t']).to_owned();
    let first = if before.ends_with('\n') { before } else { "\n".to_owned() };
    let leads = std::iter::once(first.as_str()).chain(std::iter::repeat("\n"));
    for (prefix, lead) in prefixes.iter().zip(leads) {
        cidrs.push_formatted(Value::from(prefix.to_string()).decorated(format!("{lead}    "), ""));
    }
    cidrs.set_trailing_comma(true);
    cidrs.set_trailing("\n");
}

fn unforeseen(name: &str) -> Problem {
    Failure::usage(format!("{name} does not write its sets as [sets.{SIGNALING}] with a list of `cidrs`"))
        .remedy("leave --into out, and put what is printed into the file by hand")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(text: &str, prefixes: &[&str]) -> (String, usize) {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let (text, new) = add(text, "agent.toml", &prefixes).unwrap();
        (text, new.len())
    }

    #[test]
    fn the_rest_of_the_file_stays_as_it_is_written() {
        let cases = [
            (
                "# mine\n[tunnel]\ndns = ['10.99.0.53'] # ours\n",
                "# mine\n[tunnel]\ndns = ['10.99.0.53'] # ours\n\n[sets.genesys-signaling]\ncidrs = [\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n]\n",
            ),
            (
                "[sets.genesys-signaling]\ncidrs = [\"203.0.113.0/24\"] # by hand\n\n[[rules]]\nname = \"x\"\n",
                "[sets.genesys-signaling]\ncidrs = [\"203.0.113.0/24\",\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n] # by hand\n\n[[rules]]\nname = \"x\"\n",
            ),
            (
                "[sets.genesys-signaling]\ncidrs = [\n  \"203.0.113.0/24\", # office\n  # old\n]\n",
                "[sets.genesys-signaling]\ncidrs = [\n  \"203.0.113.0/24\", # office\n  # old\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n]\n",
            ),
            (
                "[sets.genesys-signaling]\ncidrs = \"203.0.113.0/24\" # one\n",
                "[sets.genesys-signaling]\ncidrs = [\"203.0.113.0/24\",\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n] # one\n",
            ),
            (
                "[sets.genesys-signaling]\ncidrs = [\n    \"203.0.113.0/24\"\n]\n",
                "[sets.genesys-signaling]\ncidrs = [\n    \"203.0.113.0/24\",\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n]\n",
            ),
            (
                "[sets.genesys-signaling]\ndomains = [\"mypurecloud.de\"]\n",
                "[sets.genesys-signaling]\ndomains = [\"mypurecloud.de\"]\ncidrs = [\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n]\n",
            ),
            (
                "[sets.other]\ncidrs = []\n\n[[rules]]\nname = \"x\"\n",
                "[sets.other]\ncidrs = []\n\n[sets.genesys-signaling]\ncidrs = [\n    \"192.0.2.0/24\",\n    \"2001:db8::/32\",\n]\n\n[[rules]]\nname = \"x\"\n",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(added(text, &["192.0.2.0/24", "2001:db8::/32"]), (expected.to_owned(), 2));
        }
    }

    #[test]
    fn what_is_there_already_is_not_added() {
        let text = "[sets.genesys-signaling]\ncidrs = [ \"203.0.113.0/24\" ]\n";
        assert_eq!(added(text, &["203.0.113.0/25", "203.0.113.0/24"]), (text.to_owned(), 0));
        let (text, new) = added(text, &["203.0.113.0/25", "203.0.112.0/23"]);
        assert!(new == 1 && text.contains("203.0.112.0/23") && !text.contains("203.0.113.0/25"), "{text}");
    }

    #[test]
    fn what_is_written_otherwise_is_left_alone() {
        for text in [
            "sets = { genesys-signaling = { cidrs = [] } }",
            "[sets]\ngenesys-signaling = { cidrs = [] }",
            "[sets.genesys-signaling]\ncidrs = 7",
            "sets = 7",
            "[[sets]]",
        ] {
            let failure = add(text, "agent.toml", &[]).unwrap_err();
            assert!(failure.plain().contains("leave --into out"), "{text}: {}", failure.plain());
        }
    }
}

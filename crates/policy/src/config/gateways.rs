//! The tunnel's far ends: `[[gateways]]`, or one whose keys stand under `[tunnel]`.

use std::path::PathBuf;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Endpoint, Gateway, PublicKey, endpoint,
    finding::{Findings, Span},
    section::{Section, check_name, wrong_type},
};

/// Of the one gateway under `[tunnel]`.
pub(super) const KEYS: [&str; 3] = ["peer_public_key", "preshared_key_file", "endpoint"];
/// Each has a socket, and all are asked at once when one falls silent.
const MAX_GATEWAYS: usize = 8;

/// A gateway as read.
pub(super) struct ReadGateway {
    pub(super) gateway: Gateway,
    /// The place of its endpoint.
    pub(super) place: Span,
    name_place: Span,
    key_place: Span,
}

/// The gateways in their order, distinct; those with a mistake are missing.
pub(super) fn read(root: &Section<'_>, tunnel: &Section<'_>, findings: &mut Findings) -> Vec<ReadGateway> {
    if !root.has("gateways") {
        return read_one(tunnel, "peer_public_key", None, findings).into_iter().collect();
    }
    for key in KEYS.into_iter().filter(|key| tunnel.has(key)) {
        let message = format!("`{key}` is in [tunnel], and there are [[gateways]]");
        let help = "move it into a [[gateways]] table, or take the [[gateways]] out";
        findings
            .error(tunnel.key_span(key), message, help)
            .also(Some(root.key_span("gateways")), "the gateways");
    }
    let Some(array) = root.array("gateways", findings) else { return Vec::new() };
    let (span, items) = (array.span(), array.into_inner());
    if items.is_empty() {
        let help = "write a [[gateways]] table with `public_key` and `endpoint`";
        findings.error(span.clone(), "`gateways` is empty", help);
    }
    if items.len() > MAX_GATEWAYS {
        let message = format!("there are {} gateways", items.len());
        findings.error(span, message, format!("give at most {MAX_GATEWAYS}"));
        return Vec::new();
    }
    let mut gateways: Vec<ReadGateway> = Vec::with_capacity(items.len());
    for item in items {
        let DeValue::Table(table) = item.get_ref() else {
            let expected = "a list of tables, each headed [[gateways]]";
            wrong_type("gateways", expected, item.get_ref(), item.span(), findings);
            continue;
        };
        let Some(read) = read_table(table, item.span(), findings) else { continue };
        check_distinct(&read, &gateways, findings);
        gateways.push(read);
    }
    gateways
}

pub(super) fn file_name(key: &str, file: &Spanned<&str>, findings: &mut Findings) -> Option<PathBuf> {
    if file.get_ref().is_empty() || file.get_ref().contains('\0') {
        let help = "name a file, relative to this one or absolute; `breakout keygen FILE` makes a key";
        findings.error(file.span(), format!("`{key}` names no file"), help);
        return None;
    }
    Some(PathBuf::from(file.get_ref()))
}

fn read_table(table: &DeTable<'_>, span: Span, findings: &mut Findings) -> Option<ReadGateway> {
    let title = match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) => format!("gateway `{}`", name.escape_debug()),
        _ => "[[gateways]]".to_owned(),
    };
    let known = ["name", "public_key", "preshared_key_file", "endpoint"];
    let section = Section::new(title, span, table, &known, findings);
    let name = section.string("name", findings);
    if let Some(name) = &name {
        check_name("a gateway", name.get_ref(), name.span(), findings);
    }
    read_one(&section, "public_key", name, findings)
}

fn read_one(
    section: &Section<'_>,
    key: &str,
    name: Option<Spanned<&str>>,
    findings: &mut Findings,
) -> Option<ReadGateway> {
    let public_key = section.required_string(key, &format!("{key} = \"…the gateway's…\""), findings);
    let endpoint = section.required_string("endpoint", "endpoint = \"198.18.0.2:51820\"", findings);
    let preshared_key_file = section.string("preshared_key_file", findings);

    let preshared_key_file =
        preshared_key_file.and_then(|file| file_name("preshared_key_file", &file, findings));
    let public_key = public_key.and_then(|text| Some((read_key(&text, findings)?, text.span())));
    let endpoint = endpoint.and_then(|text| Some((endpoint::read(&text, findings)?, text)));

    let ((public_key, key_place), (endpoint, text)) = (public_key?, endpoint?);
    let name = name.unwrap_or_else(|| text.clone());
    let (place, name_place) = (text.span(), name.span());
    let gateway = Gateway { name: name.into_inner().to_owned(), public_key, preshared_key_file, endpoint };
    Some(ReadGateway { gateway, place, name_place, key_place })
}

fn check_distinct(read: &ReadGateway, before: &[ReadGateway], findings: &mut Findings) {
    let ReadGateway { gateway, place, name_place, key_place } = read;
    for ReadGateway { gateway: other, place: other_place, name_place: other_name, key_place: other_key } in
        before
    {
        // Where the endpoint is the name, it is told as such.
        if gateway.name == other.name && name_place != place {
            let message = format!("two gateways are called `{}`", gateway.name.escape_debug());
            let help = "give each its own name: messages and `status` go by it";
            findings.error(name_place.clone(), message, help).also(Some(other_name.clone()), "the other");
        }
        if gateway.public_key == other.public_key {
            let message = "two gateways have the same public key";
            let help = "each has a key pair of its own: give this one's public key, or take one gateway out";
            findings.error(key_place.clone(), message, help).also(Some(other_key.clone()), "the other");
        }
        if is_same_place(&gateway.endpoint, &other.endpoint) {
            let message = format!("two gateways are at {}", gateway.endpoint);
            let help = "give another address or port, or take one of them out";
            findings.error(place.clone(), message, help).also(Some(other_place.clone()), "the other");
        }
    }
}

fn is_same_place(a: &Endpoint, b: &Endpoint) -> bool {
    match (a, b) {
        (Endpoint::Name { port, .. }, Endpoint::Name { port: other, .. }) => {
            port == other && a.host() == b.host()
        }
        _ => a == b,
    }
}

fn read_key(text: &Spanned<&str>, findings: &mut Findings) -> Option<PublicKey> {
    let problem = match BASE64_STANDARD.decode(text.get_ref()) {
        Err(error) => format!("the key is not base64: {error}"),
        Ok(bytes) => match <[u8; 32]>::try_from(bytes.as_slice()) {
            Ok([0, rest @ ..]) if rest == [0; 31] => "the key is all zeros".to_owned(),
            Ok(key) => return Some(PublicKey(key)),
            Err(_) => format!("the key has {} bytes", bytes.len()),
        },
    };
    let help = "a public key is 32 bytes, written as 44 characters of base64; ask the gateway's administrator, or run `wg show` there";
    findings.error(text.span(), problem, help);
    None
}

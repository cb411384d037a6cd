//! `[dataplane]`: which features of kernel and device may be used, and how the tunnel's packets are marked.

use packet::OuterDscp;

use super::{Dataplane, FastPathUse, finding::Findings, section::Section};

const KEYS: [&str; 4] = ["tun_offload", "udp_offload", "fast_path", "outer_dscp"];

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Dataplane {
    let Some(section) = root.section("dataplane", &KEYS, findings) else {
        return Dataplane::default();
    };
    let mut auto = |key| {
        let Some(value) = section.string(key, findings) else { return true };
        if !matches!(*value.get_ref(), "auto" | "off") {
            let message = format!("`{}` is no setting of `{key}`", value.get_ref().escape_debug());
            findings.error(value.span(), message, "give \"auto\" (used where the kernel has it) or \"off\"");
        }
        *value.get_ref() != "off"
    };
    let (tun_offload, udp_offload) = (auto("tun_offload"), auto("udp_offload"));
    let fast_path = read_fast_path(&section, findings);
    Dataplane { tun_offload, udp_offload, fast_path, outer_dscp: read_outer_dscp(&section, findings) }
}

fn read_fast_path(section: &Section<'_>, findings: &mut Findings) -> FastPathUse {
    let Some(value) = section.string("fast_path", findings) else { return FastPathUse::Auto };
    match *value.get_ref() {
        "auto" => FastPathUse::Auto,
        "off" => FastPathUse::Off,
        "require" => FastPathUse::Require,
        other => {
            let message = format!("`{}` is no setting of `fast_path`", other.escape_debug());
            let help =
                "give \"auto\" (used where the kernel has it), \"off\" or \"require\" (no start without it)";
            findings.error(value.span(), message, help);
            FastPathUse::Auto
        }
    }
}

fn read_outer_dscp(section: &Section<'_>, findings: &mut Findings) -> OuterDscp {
    let Some(text) = section.string("outer_dscp", findings) else { return OuterDscp::default() };
    text.get_ref().parse().unwrap_or_else(|_| {
        let message = format!("`{}` is no setting of `outer_dscp`", text.get_ref().escape_debug());
        findings.error(
            text.span(),
            message,
            "give \"zero\", \"copy\" (that of the packet inside), a name (ef, af11 to af43, cs0 to cs7, va, le) or a number from 0 to 63, in quotes",
        );
        OuterDscp::default()
    })
}

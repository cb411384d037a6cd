//! `[dataplane]`: which features of kernel and device may be used.

use super::{Dataplane, finding::Findings, section::Section};

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Dataplane {
    let Some(section) = root.section("dataplane", &["tun_offload", "udp_offload"], findings) else {
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
    Dataplane { tun_offload: auto("tun_offload"), udp_offload: auto("udp_offload") }
}

//! Where Genesys Cloud runs, and the domains below which a region's signaling hosts are named.

/// A region by its AWS name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub name: &'static str,
    /// Lowercase; the region's own first. `api.`, `apps.`, `login.` and `streaming.` lie below each.
    pub domains: &'static [&'static str],
}

const fn region(name: &'static str, domains: &'static [&'static str]) -> Region {
    Region { name, domains }
}

/// All regions, by name.
///
/// The second domains are aliases that Genesys does not publish. They are here because a name that is none costs one
/// question through the tunnel, and a name that is one and were missing would be resolved, and reached, in the clear.
pub const REGIONS: [Region; 18] = [
    region("ap-northeast-1", &["mypurecloud.jp", "apne1.pure.cloud"]),
    region("ap-northeast-2", &["apne2.pure.cloud"]),
    region("ap-northeast-3", &["apne3.pure.cloud"]),
    region("ap-south-1", &["aps1.pure.cloud"]),
    region("ap-southeast-1", &["apse1.pure.cloud"]),
    region("ap-southeast-2", &["mypurecloud.com.au", "apse2.pure.cloud"]),
    region("ca-central-1", &["cac1.pure.cloud"]),
    region("eu-central-1", &["mypurecloud.de", "euc1.pure.cloud"]),
    region("eu-central-2", &["euc2.pure.cloud"]),
    region("eu-west-1", &["mypurecloud.ie", "euw1.pure.cloud"]),
    region("eu-west-2", &["euw2.pure.cloud"]),
    // The European sovereign cloud; its domain is not confirmed by Genesys either.
    region("eusc-de-east-1", &["edee1.eusc-pure.cloud"]),
    region("me-central-1", &["mec1.pure.cloud"]),
    region("mx-central-1", &["mxc1.pure.cloud"]),
    region("sa-east-1", &["sae1.pure.cloud"]),
    region("us-east-1", &["mypurecloud.com"]),
    // FedRAMP.
    region("us-east-2", &["use2.us-gov-pure.cloud"]),
    region("us-west-2", &["usw2.pure.cloud"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{normal, upward};

    #[test]
    fn regions_are_in_order_and_no_domain_covers_another() {
        assert!(REGIONS.is_sorted_by(|one, next| one.name < next.name));
        let all: Vec<&str> = REGIONS.iter().flat_map(|region| region.domains).copied().collect();
        for domain in &all {
            assert_eq!(normal(domain), *domain);
            let covering = all.iter().filter(|other| upward(domain).any(|above| above == **other));
            assert_eq!(covering.collect::<Vec<_>>(), [domain]);
        }
    }
}

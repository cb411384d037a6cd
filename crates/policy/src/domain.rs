//! Names and the domains above them.

use std::iter;

/// A name as domains are stored: lowercase, without the root's dot.
pub(crate) fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// A name and all domains above it, the longest first.
pub(crate) fn upward(name: &str) -> impl Iterator<Item = &str> {
    iter::successors(Some(name), |name| Some(name.split_once('.')?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lies_below_all_of_its_domains() {
        let domains: Vec<_> = upward("api.usw2.pure.cloud").collect();
        assert_eq!(domains, ["api.usw2.pure.cloud", "usw2.pure.cloud", "pure.cloud", "cloud"]);
        assert_eq!(normal("API.MyPureCloud.COM."), "api.mypurecloud.com");
    }
}

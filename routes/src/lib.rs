//! Getting packets to the TUN: addresses, routes, rules, sysctls, firewall; and putting all of it back.
//! Also the small netlink and nftables pieces that the lab builds its internet with.

pub mod netlink;
pub mod nft;

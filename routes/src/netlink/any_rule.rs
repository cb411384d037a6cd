use std::fmt;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::{Error, Family, Netlink, Rule, rule::NO_LIMIT};

/// The table of this machine's own addresses (`RT_TABLE_LOCAL`, linux/rtnetlink.h).
const TABLE_LOCAL: u32 = 255;

/// A rule of whatever kind. Its text is as ip-rule(8) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyRule {
    pub family: Family,
    /// As [`Rule::priority`].
    pub priority: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// `None`: it says more than [`Rule`] can.
    pub rule: Option<Rule>,
    action: RuleAction,
    /// The table that is looked in; 0: none.
    table: u32,
    text: String,
}

impl Netlink {
    /// All IPv4 and IPv6 rules, each family's in the order in which they are asked.
    pub async fn all_rules(&self) -> Result<Vec<AnyRule>, Error> {
        let messages = self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()), "list rules").await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => AnyRule::from_message(&rule),
                _ => None,
            })
            .collect())
    }
}

impl AnyRule {
    /// Whether all packets are looked up among this machine's own addresses by it.
    pub fn is_local(&self) -> bool {
        self.rule.as_ref().is_some_and(|rule| {
            *rule == Rule { protocol: rule.protocol, ..Rule::new(rule.family, rule.priority, TABLE_LOCAL) }
        })
    }

    /// Whether packets to other machines may go no further than it.
    pub fn decides(&self) -> bool {
        self.action != RuleAction::Nop && self.table != TABLE_LOCAL
    }

    fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let family = match header.family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        let mut any = Self {
            family,
            priority: 0,
            protocol: 0,
            rule: Rule::from_message(message),
            action: header.action,
            table: header.table.into(),
            text: String::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => any.priority = *priority,
                RuleAttribute::Table(table) => any.table = *table,
                RuleAttribute::Protocol(protocol) => any.protocol = (*protocol).into(),
                _ => {}
            }
        }
        any.text = any.describe(message);
        Some(any)
    }

    fn describe(&self, message: &RuleMessage) -> String {
        let header = &message.header;
        let not = if header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
        let source = message.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Source(source) => Some(format!("{source}/{}", header.src_len)),
            _ => None,
        });
        let mut text = format!("{}: {not}from {}", self.priority, source.as_deref().unwrap_or("all"));
        if header.tos != 0 {
            text += &format!(" tos {:#x}", header.tos);
        }
        text.extend(message.attributes.iter().filter_map(|attribute| condition(attribute, header.dst_len)));
        text += &match self.action {
            RuleAction::ToTable if self.table != 0 => format!(" lookup {}", self.table),
            // The VRF's, or where it goes: an attribute has said so.
            RuleAction::ToTable | RuleAction::Goto => String::new(),
            action => format!(" {action:?}").to_lowercase(),
        };
        if self.protocol != 0 {
            text += &format!(" proto {}", RouteProtocol::from(self.protocol));
        }
        text
    }
}

fn condition(attribute: &RuleAttribute, to_length: u8) -> Option<String> {
    Some(match attribute {
        RuleAttribute::Destination(to) => format!(" to {to}/{to_length}"),
        RuleAttribute::FwMark(mark) => format!(" fwmark {mark:#x}"),
        RuleAttribute::FwMask(mask) if *mask != u32::MAX => format!("/{mask:#x}"),
        RuleAttribute::Iifname(name) => format!(" iif {}", name.escape_default()),
        RuleAttribute::Oifname(name) => format!(" oif {}", name.escape_default()),
        RuleAttribute::UidRange(uids) => format!(" uidrange {}-{}", uids.start, uids.end),
        RuleAttribute::IpProtocol(number) => format!(" ipproto {}", u8::from(*number)),
        RuleAttribute::SourcePortRange(ports) => format!(" sport {}-{}", ports.start, ports.end),
        RuleAttribute::DestinationPortRange(ports) => format!(" dport {}-{}", ports.start, ports.end),
        RuleAttribute::L3MDev(true) => " lookup [l3mdev-table]".to_owned(),
        RuleAttribute::Goto(priority) => format!(" goto {priority}"),
        RuleAttribute::SuppressPrefixLen(limit) if *limit != NO_LIMIT => {
            format!(" suppress_prefixlength {limit}")
        }
        _ => return None,
    })
}

impl fmt::Display for AnyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

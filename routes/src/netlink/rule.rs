use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::{Error, Netlink, PROTOCOL_STATIC};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// A rule that leads packets to a routing table (linux/fib_rules.h).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub family: Family,
    /// Rules are asked in ascending order; 0 is the local table's, 32766 main's.
    pub priority: u32,
    pub table: u32,
    pub from: Option<IpNet>,
    /// The whole firewall mark, no mask.
    pub mark: Option<u32>,
    /// `not`: applies where the conditions *together* do not hold (`FIB_RULE_INVERT`), so that
    /// `not from A mark M` is not "from A without mark M".
    pub invert: bool,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

impl Rule {
    /// A rule for all packets of a family; the rest by struct update.
    pub fn new(family: Family, priority: u32, table: u32) -> Self {
        Self { family, priority, table, from: None, mark: None, invert: false, protocol: PROTOCOL_STATIC }
    }
}

impl Netlink {
    /// Fails with EEXIST if there is the same rule.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRule(rule.to_message());
        self.create(message, &format!("add the rule {rule}")).await
    }

    pub async fn delete_rule(&self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelRule(rule.to_message());
        self.change(message, &format!("delete the rule {rule}")).await
    }

    /// The IPv4 and IPv6 rules that lead to a table by what [`Rule`] can say. Others are left out.
    pub async fn rules(&self) -> Result<Vec<Rule>, Error> {
        let messages = self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()), "list rules").await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => Rule::from_message(&rule),
                _ => None,
            })
            .collect())
    }
}

impl Rule {
    fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        if self.invert {
            message.header.flags = RuleFlags::Invert;
        }
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        if let Some(from) = self.from {
            message.header.src_len = from.prefix_len();
            message.attributes.push(RuleAttribute::Source(from.addr()));
        }
        if let Some(mark) = self.mark {
            message.attributes.push(RuleAttribute::FwMark(mark));
            message.attributes.push(RuleAttribute::FwMask(u32::MAX));
        }
        message
    }

    fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let family = match header.family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        if header.action != RuleAction::ToTable || header.dst_len != 0 || header.tos != 0 {
            return None;
        }
        let mut rule = Self {
            invert: header.flags.contains(RuleFlags::Invert),
            protocol: 0,
            ..Self::new(family, 0, header.table.into())
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Source(source) => rule.from = Some(IpNet::new(*source, header.src_len).ok()?),
                RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
                RuleAttribute::FwMask(mask) if *mask != u32::MAX => return None,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_)
                | RuleAttribute::L3MDev(true) => return None,
                _ => {}
            }
        }
        Some(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.priority)?;
        if self.invert {
            f.write_str("not ")?;
        }
        match (self.from, self.family) {
            (Some(from), _) => write!(f, "from {from}")?,
            (None, Family::V4) => f.write_str("from all")?,
            (None, Family::V6) => f.write_str("from ::/0")?,
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

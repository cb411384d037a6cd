use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange},
};

use super::{Error, Netlink, PROTOCOL_STATIC};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// What the kernel says of a `suppress_…` that a rule has not.
pub(super) const NO_LIMIT: u32 = u32::MAX;

/// A rule that leads packets to a routing table, or past other rules (linux/fib_rules.h).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub family: Family,
    /// Rules are asked in ascending order; 0 is the local table's, 32766 main's.
    pub priority: u32,
    pub table: u32,
    /// The rules before this priority are passed by, and no table is asked: `table` is 0. Without a rule of that priority it has no effect.
    pub goto: Option<u32>,
    pub from: Option<IpNet>,
    /// The whole firewall mark, no mask.
    pub mark: Option<u32>,
    /// `ipproto`: an IANA protocol number.
    pub ip_protocol: Option<u8>,
    /// `dport`: the first and the last destination port, 1–65534; the kernel takes neither 0 nor 65535
    /// (`fib_rule_port_range_valid`, net/fib_rules.h).
    pub ports: Option<(u16, u16)>,
    /// `not`: applies where the conditions *together* do not hold (`FIB_RULE_INVERT`), so that
    /// `not from A mark M` is not "from A without mark M".
    pub invert: bool,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

impl Rule {
    /// A rule for all packets of a family; the rest by struct update.
    pub fn new(family: Family, priority: u32, table: u32) -> Self {
        Self {
            family,
            priority,
            table,
            goto: None,
            from: None,
            mark: None,
            ip_protocol: None,
            ports: None,
            invert: false,
            protocol: PROTOCOL_STATIC,
        }
    }
}

impl Netlink {
    /// Fails with EEXIST if there is the same rule.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRule(rule.to_message());
        self.create(message, &format!("add the rule {rule}")).await
    }

    /// Of the rules with this priority the kernel takes the first that has all that is said; what is left open matches anything
    /// (`rule_find`, net/core/fib_rules.c).
    pub async fn delete_rule(&self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelRule(rule.to_message());
        self.change(message, &format!("delete the rule {rule}")).await
    }

    /// The IPv4 and IPv6 rules that lead somewhere by what [`Rule`] can say. Others are left out.
    pub async fn rules(&self) -> Result<Vec<Rule>, Error> {
        Ok(self.all_rules().await?.into_iter().filter_map(|any| any.rule).collect())
    }
}

impl Rule {
    fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = if self.goto.is_some() { RuleAction::Goto } else { RuleAction::ToTable };
        if self.invert {
            message.header.flags = RuleFlags::Invert;
        }
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        if let Some(priority) = self.goto {
            message.attributes.push(RuleAttribute::Goto(priority));
        }
        if let Some(from) = self.from {
            message.header.src_len = from.prefix_len();
            message.attributes.push(RuleAttribute::Source(from.addr()));
        }
        if let Some(mark) = self.mark {
            message.attributes.push(RuleAttribute::FwMark(mark));
            message.attributes.push(RuleAttribute::FwMask(u32::MAX));
        }
        if let Some(number) = self.ip_protocol {
            message.attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(number)));
        }
        if let Some((start, end)) = self.ports {
            message.attributes.push(RuleAttribute::DestinationPortRange(RulePortRange { start, end }));
        }
        message
    }

    pub(super) fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let family = match header.family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        if !matches!(header.action, RuleAction::ToTable | RuleAction::Goto)
            || header.dst_len != 0
            || header.tos != 0
        {
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
                RuleAttribute::Goto(priority) => rule.goto = Some(*priority),
                RuleAttribute::Source(source) => rule.from = Some(IpNet::new(*source, header.src_len).ok()?),
                RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
                RuleAttribute::FwMask(mask) if *mask != u32::MAX => return None,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                RuleAttribute::IpProtocol(number) => rule.ip_protocol = Some((*number).into()),
                RuleAttribute::DestinationPortRange(ports) => rule.ports = Some((ports.start, ports.end)),
                RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::TunId(_)
                | RuleAttribute::L3MDev(true) => return None,
                RuleAttribute::SuppressPrefixLen(limit) | RuleAttribute::SuppressIfGroup(limit)
                    if *limit != NO_LIMIT =>
                {
                    return None;
                }
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
        if let Some(number) = self.ip_protocol {
            write!(f, " ipproto {number}")?;
        }
        if let Some((start, end)) = self.ports {
            write!(f, " dport {start}-{end}")?;
        }
        match self.goto {
            Some(priority) => write!(f, " goto {priority}"),
            None => write!(f, " lookup {}", self.table),
        }
    }
}

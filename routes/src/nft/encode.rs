//! The bytes of a batch. Names and numbers are those of linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h;
//! numbers in attributes are big-endian, netlink's own headers and most register contents are in host order.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Chain, ChainKind, Elements, Expr, Set, Table, socket::HEADER};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

// linux/netfilter/nfnetlink.h
const NFNETLINK_V0: u8 = 0;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;

// linux/netfilter.h
const NFPROTO_UNSPEC: u8 = 0;
pub(super) const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

// linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_TABLE_F_OWNER: u32 = 0x2;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_USERDATA: u16 = 13;
const NFT_SET_INTERVAL: u32 = 0x4;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFT_SET_ELEM_INTERVAL_END: u32 = 0x1;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_META_MARK: u32 = 3;
const NFT_META_OIF: u32 = 5;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 0x1;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_REJECT_ICMP_CODE: u16 = 2;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
const NFT_REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFT_REG_VERDICT: u32 = 0;
/// The one 16-byte register that our expressions use.
const NFT_REG_1: u32 = 1;

/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED) | NF_CT_STATE_BIT(IP_CT_RELATED)`, linux/netfilter/nf_conntrack_common.h.
const ESTABLISHED_OR_RELATED: u32 = 0b110;
/// linux/rtnetlink.h
const RTN_LOCAL: u32 = 2;
/// RFC 9293 section 3.1: where the flags are in the header, and which one it is.
const TCP_FLAGS: u32 = 13;
const TCP_RST: u8 = 0x04;
/// What nft itself keeps in `USERDATA` (libnftnl/udata.h): type, length, value.
const UDATA_TABLE_COMMENT: u8 = 0;
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const BYTE_ORDER_BIG: u32 = 2;
/// An attribute's length has 16 bits: this many ranges, of up to 64 bytes each, go into one message.
const RANGES: usize = 500;

/// linux/if.h: the size of an interface name with its end.
const IFNAMSIZ: usize = 16;

/// Messages that take effect together or not at all, the batch's two bounds around them; or one that only asks.
pub(super) struct Batch(Vec<Message>);

struct Message {
    kind: u16,
    flags: u16,
    /// What it asks for.
    action: String,
    /// `struct nfgenmsg` (linux/netfilter/nfnetlink.h), then attributes.
    body: Vec<u8>,
}

/// The whole table. One that is not owned replaces its predecessor: created if missing, deleted, created anew.
pub(super) fn install(table: &Table, owned: bool) -> Batch {
    let mut batch = Batch::begin();
    let name = &table.name;
    let comment = table.comment.as_deref();
    if owned {
        batch.table(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, name, NFT_TABLE_F_OWNER, comment);
    } else {
        batch.table(NFT_MSG_NEWTABLE, NLM_F_CREATE, name, 0, None);
        batch.table(NFT_MSG_DELTABLE, 0, name, 0, None);
        batch.table(NFT_MSG_NEWTABLE, NLM_F_CREATE, name, 0, comment);
    }
    for (id, set) in (1..).zip(&table.sets) {
        batch.set(name, set, id);
    }
    for chain in &table.chains {
        batch.chain(name, chain);
        for rule in &chain.rules {
            batch.rule(name, chain, rule);
        }
    }
    batch.end()
}

/// What comes into a set and what goes, of single addresses.
pub(super) struct SetChange<'a> {
    set: &'a str,
    added: Elements,
    gone: Elements,
}

impl<'a> SetChange<'a> {
    pub(super) fn between(old: &Set, new: &'a Set) -> Self {
        Self {
            set: &new.name,
            added: new.elements.without(&old.elements),
            gone: old.elements.without(&new.elements),
        }
    }
}

pub(super) fn change_sets(table: &str, changes: &[SetChange<'_>]) -> Batch {
    let mut batch = Batch::begin();
    for change in changes {
        batch.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, change.set, &change.added);
        batch.elements(NFT_MSG_DELSETELEM, 0, table, change.set, &change.gone);
    }
    batch.end()
}

pub(super) fn remove(name: &str) -> Batch {
    let mut batch = Batch::begin();
    batch.table(NFT_MSG_DELTABLE, 0, name, 0, None);
    batch.end()
}

/// Asks for a table, alone.
pub(super) fn get(name: &str) -> Batch {
    let mut batch = Batch(Vec::new());
    let kind = (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETTABLE;
    let action = format!("look for the table inet {name}");
    batch.message(kind, 0, NFPROTO_INET, action, |w| w.string(NFTA_TABLE_NAME, name));
    batch
}

impl Batch {
    /// As sent, with sequence numbers from `first` on.
    pub fn bytes(&self, first: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, message) in (0..).zip(&self.0) {
            // `struct nlmsghdr` (linux/netlink.h).
            bytes.extend_from_slice(&(HEADER as u32 + message.body.len() as u32).to_ne_bytes());
            bytes.extend_from_slice(&message.kind.to_ne_bytes());
            bytes.extend_from_slice(&(NLM_F_REQUEST | message.flags).to_ne_bytes());
            bytes.extend_from_slice(&first.wrapping_add(at).to_ne_bytes());
            bytes.extend_from_slice(&0u32.to_ne_bytes());
            bytes.extend_from_slice(&message.body);
        }
        bytes
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What the message at this place asks for.
    pub fn action(&self, at: usize) -> String {
        self.0.get(at).map_or_else(|| "take a batch".to_owned(), |message| message.action.clone())
    }

    /// The places of the messages that are answered whatever becomes of them.
    pub fn answered(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter(|(_, message)| message.flags & NLM_F_ACK != 0).map(|(at, _)| at)
    }

    fn begin() -> Self {
        let mut batch = Self(Vec::new());
        batch.message(NFNL_MSG_BATCH_BEGIN, 0, NFPROTO_UNSPEC, "begin a batch".to_owned(), |_| {});
        batch
    }

    fn end(mut self) -> Self {
        self.message(NFNL_MSG_BATCH_END, 0, NFPROTO_UNSPEC, "end a batch".to_owned(), |_| {});
        self
    }

    fn table(&mut self, message: u16, flags: u16, name: &str, table_flags: u32, comment: Option<&str>) {
        let verb = if message == NFT_MSG_DELTABLE { "delete" } else { "add" };
        self.change(message, flags, format!("{verb} the table inet {name}"), |w| {
            w.string(NFTA_TABLE_NAME, name);
            w.number(NFTA_TABLE_FLAGS, table_flags);
            if let Some(comment) = comment {
                w.userdata(NFTA_TABLE_USERDATA, UDATA_TABLE_COMMENT, &[comment.as_bytes(), &[0]].concat());
            }
        });
    }

    /// `id` tells the sets of a batch apart.
    fn set(&mut self, table: &str, set: &Set, id: u32) {
        let action = format!("add the set {} of the table inet {table}", set.name);
        self.change(NFT_MSG_NEWSET, NLM_F_CREATE, action, |w| {
            w.string(NFTA_SET_TABLE, table);
            w.string(NFTA_SET_NAME, &set.name);
            w.number(NFTA_SET_FLAGS, if set.elements.are_ranges() { NFT_SET_INTERVAL } else { 0 });
            w.number(NFTA_SET_KEY_TYPE, set.elements.data_type());
            w.number(NFTA_SET_KEY_LEN, set.elements.key_length());
            w.number(NFTA_SET_ID, id);
            w.userdata(NFTA_SET_USERDATA, UDATA_SET_KEY_BYTE_ORDER, &BYTE_ORDER_BIG.to_ne_bytes());
        });
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, &set.name, &set.elements);
    }

    fn elements(&mut self, message: u16, flags: u16, table: &str, set: &str, elements: &Elements) {
        let verb = if message == NFT_MSG_DELSETELEM { "thin out" } else { "fill" };
        for ranges in elements.ranges().chunks(RANGES) {
            self.change(message, flags, format!("{verb} the set {set} of the table inet {table}"), |w| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, table);
                w.string(NFTA_SET_ELEM_LIST_SET, set);
                w.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    for (start, behind) in ranges {
                        w.set_element(start, 0);
                        if let Some(behind) = behind {
                            w.set_element(behind, NFT_SET_ELEM_INTERVAL_END);
                        }
                    }
                });
            });
        }
    }

    fn chain(&mut self, table: &str, chain: &Chain) {
        let action = format!("add the chain {} of the table inet {table}", chain.name);
        self.change(NFT_MSG_NEWCHAIN, NLM_F_CREATE, action, |w| {
            w.string(NFTA_CHAIN_TABLE, table);
            w.string(NFTA_CHAIN_NAME, &chain.name);
            w.nested(NFTA_CHAIN_HOOK, |w| {
                w.number(NFTA_HOOK_HOOKNUM, chain.hook as u32);
                w.attribute(NFTA_HOOK_PRIORITY, &chain.priority.to_be_bytes());
            });
            w.number(NFTA_CHAIN_POLICY, chain.policy as u32);
            w.string(NFTA_CHAIN_TYPE, if chain.kind == ChainKind::Nat { "nat" } else { "filter" });
        });
    }

    fn rule(&mut self, table: &str, chain: &Chain, rule: &[Expr]) {
        let action = format!("add the rule {rule:?} to the chain {} of the table inet {table}", chain.name);
        self.change(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, action, |w| {
            w.string(NFTA_RULE_TABLE, table);
            w.string(NFTA_RULE_CHAIN, &chain.name);
            w.nested(NFTA_RULE_EXPRESSIONS, |w| rule.iter().for_each(|expr| w.expr(expr)));
        });
    }

    fn change(&mut self, message: u16, flags: u16, action: String, body: impl FnOnce(&mut Writer)) {
        self.message((NFNL_SUBSYS_NFTABLES << 8) | message, NLM_F_ACK | flags, NFPROTO_INET, action, body);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, action: String, body: impl FnOnce(&mut Writer)) {
        // A batch's bounds name the subsystem where other messages have 0.
        let resource = if family == NFPROTO_UNSPEC { NFNL_SUBSYS_NFTABLES } else { 0 };
        let mut writer = Writer::default();
        writer.0.extend_from_slice(&[family, NFNETLINK_V0]);
        writer.0.extend_from_slice(&resource.to_be_bytes());
        body(&mut writer);
        self.0.push(Message { kind, flags, action, body: writer.0 });
    }
}

/// Writes attributes, each padded to 4 bytes.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn string(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn userdata(&mut self, kind: u16, of: u8, value: &[u8]) {
        self.attribute(kind, &[&[of, value.len() as u8], value].concat());
    }

    fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        body(&mut inner);
        self.attribute(NLA_F_NESTED | kind, &inner.0);
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::InInterface(name) => self.interface(NFT_META_IIFNAME, NFT_CMP_EQ, name),
            Expr::NotInInterface(name) => self.interface(NFT_META_IIFNAME, NFT_CMP_NEQ, name),
            Expr::OutInterface(name) => self.interface(NFT_META_OIFNAME, NFT_CMP_EQ, name),
            Expr::OutIndex(index) => {
                self.meta(NFT_META_OIF);
                self.compare(NFT_CMP_EQ, &index.to_ne_bytes());
            }
            Expr::Protocol(number) => {
                self.meta(NFT_META_L4PROTO);
                self.compare(NFT_CMP_EQ, &[*number]);
            }
            Expr::Mark(mark) => {
                self.meta(NFT_META_MARK);
                self.compare(NFT_CMP_EQ, &mark.to_ne_bytes());
            }
            // Offsets of the addresses: RFC 791 section 3.1, RFC 8200 section 3.
            Expr::Source(net) => self.network(net, if net.addr().is_ipv4() { 12 } else { 8 }),
            Expr::Destination(net) => self.network(net, if net.addr().is_ipv4() { 16 } else { 24 }),
            Expr::DestinationPort(port) => {
                self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                self.compare(NFT_CMP_EQ, &port.to_be_bytes());
            }
            Expr::DestinationInV4(set) => self.address_in(NFPROTO_IPV4, 16, 4, set),
            Expr::DestinationInV6(set) => self.address_in(NFPROTO_IPV6, 24, 16, set),
            Expr::SourceInV4(set) => self.address_in(NFPROTO_IPV4, 12, 4, set),
            Expr::SourceInV6(set) => self.address_in(NFPROTO_IPV6, 8, 16, set),
            Expr::SourceNotLocal => {
                self.element("fib", |w| {
                    w.number(NFTA_FIB_DREG, NFT_REG_1);
                    w.number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
                    w.number(NFTA_FIB_FLAGS, NFTA_FIB_F_SADDR);
                });
                self.compare(NFT_CMP_NEQ, &RTN_LOCAL.to_ne_bytes());
            }
            Expr::IsReset => {
                self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS, 1);
                self.mask(&[TCP_RST]);
                self.compare(NFT_CMP_NEQ, &[0]);
            }
            Expr::DestinationPortIn(set) => {
                self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                self.lookup(set);
            }
            Expr::Established => {
                self.element("ct", |w| {
                    w.number(NFTA_CT_DREG, NFT_REG_1);
                    w.number(NFTA_CT_KEY, NFT_CT_STATE);
                });
                self.mask(&ESTABLISHED_OR_RELATED.to_ne_bytes());
                self.compare(NFT_CMP_NEQ, &0u32.to_ne_bytes());
            }
            Expr::Counter => self.element("counter", |_| {}),
            Expr::Accept => self.verdict(NF_ACCEPT),
            Expr::Drop => self.verdict(NF_DROP),
            Expr::Reset => self.element("reject", |w| {
                w.number(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
            }),
            Expr::Prohibit => self.element("reject", |w| {
                w.number(NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH);
                w.attribute(NFTA_REJECT_ICMP_CODE, &[NFT_REJECT_ICMPX_ADMIN_PROHIBITED]);
            }),
            Expr::Masquerade => self.element("masq", |_| {}),
        }
    }

    fn interface(&mut self, key: u32, op: u32, name: &str) {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(IFNAMSIZ, 0);
        self.meta(key);
        self.compare(op, &padded);
    }

    fn network(&mut self, net: &IpNet, offset: u32) {
        let (protocol, address, mask) = match (net.network(), net.netmask()) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => {
                (NFPROTO_IPV4, address.octets().to_vec(), mask.octets().to_vec())
            }
            (address, mask) => (NFPROTO_IPV6, v6_octets(address), v6_octets(mask)),
        };
        self.meta(NFT_META_NFPROTO);
        self.compare(NFT_CMP_EQ, &[protocol]);
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, address.len() as u32);
        if net.prefix_len() < net.max_prefix_len() {
            self.mask(&mask);
        }
        self.compare(NFT_CMP_EQ, &address);
    }

    fn address_in(&mut self, protocol: u8, offset: u32, length: u32, set: &str) {
        self.meta(NFT_META_NFPROTO);
        self.compare(NFT_CMP_EQ, &[protocol]);
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length);
        self.lookup(set);
    }

    fn lookup(&mut self, set: &str) {
        self.element("lookup", |w| {
            w.string(NFTA_LOOKUP_SET, set);
            w.number(NFTA_LOOKUP_SREG, NFT_REG_1);
        });
    }

    fn set_element(&mut self, key: &[u8], flags: u32) {
        self.nested(NFTA_LIST_ELEM, |w| {
            if flags != 0 {
                w.number(NFTA_SET_ELEM_FLAGS, flags);
            }
            w.nested(NFTA_SET_ELEM_KEY, |w| w.attribute(NFTA_DATA_VALUE, key));
        });
    }

    fn meta(&mut self, key: u32) {
        self.element("meta", |w| {
            w.number(NFTA_META_DREG, NFT_REG_1);
            w.number(NFTA_META_KEY, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.element("payload", |w| {
            w.number(NFTA_PAYLOAD_DREG, NFT_REG_1);
            w.number(NFTA_PAYLOAD_BASE, base);
            w.number(NFTA_PAYLOAD_OFFSET, offset);
            w.number(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.element("bitwise", |w| {
            w.number(NFTA_BITWISE_SREG, NFT_REG_1);
            w.number(NFTA_BITWISE_DREG, NFT_REG_1);
            w.number(NFTA_BITWISE_LEN, mask.len() as u32);
            w.nested(NFTA_BITWISE_MASK, |w| w.attribute(NFTA_DATA_VALUE, mask));
            w.nested(NFTA_BITWISE_XOR, |w| w.attribute(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, op: u32, value: &[u8]) {
        self.element("cmp", |w| {
            w.number(NFTA_CMP_SREG, NFT_REG_1);
            w.number(NFTA_CMP_OP, op);
            w.nested(NFTA_CMP_DATA, |w| w.attribute(NFTA_DATA_VALUE, value));
        });
    }

    fn verdict(&mut self, code: u32) {
        self.element("immediate", |w| {
            w.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nested(NFTA_IMMEDIATE_DATA, |w| {
                w.nested(NFTA_DATA_VERDICT, |w| w.number(NFTA_VERDICT_CODE, code));
            });
        });
    }

    fn element(&mut self, name: &str, body: impl FnOnce(&mut Writer)) {
        self.nested(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, name);
            w.nested(NFTA_EXPR_DATA, body);
        });
    }
}

fn v6_octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

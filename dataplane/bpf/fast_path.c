// SPDX-License-Identifier: Apache-2.0
/*
 * The kernel fast path: packets of flows that the pump has judged go from the TUN to the physical interface, and their answers back,
 * without waking it. The programs judge nothing: they look an exact flow up, and whatever is not as plain as they expect is left to the
 * pump (outbound) or the stack and the mapping's socket (inbound), untouched. That is always right, only slower.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdbool.h>

#include "entry.h"
#include "helpers.h"

/* TCX_NEXT, TCX_DROP (linux/bpf.h since 6.6). Other programs on the interface see what we leave alone. */
#define LEAVE (-1)
#define DROP 2

/* No TUN packet has a link header; what the physical interface has is the program's. */
#define NO_LINK 0
/* Three flag bits, then the offset; DF and the reserved bit make no fragment (RFC 791 §3.1). */
#define FRAGMENT 0x3fff
/* The part of a VLAN tag that names the network; 0 names none, such a tag is a priority and nothing else (IEEE 802.1Q). */
#define VLAN_ID 0x0fff

/* Sizes are the daemon's to set. Both flow tables are filled by it alone and hold slots of `entries`. */
struct map SEC("maps") outbound_flows = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = sizeof(struct tuple),
	.value_size = sizeof(__u32),
	.max_entries = 1,
	.flags = BPF_F_NO_PREALLOC,
};
struct map SEC("maps") inbound_flows = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = sizeof(struct tuple),
	.value_size = sizeof(__u32),
	.max_entries = 1,
	.flags = BPF_F_NO_PREALLOC,
};
struct map SEC("maps") entries = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = sizeof(struct entry),
	.max_entries = 1,
	.flags = BPF_F_MMAPABLE,
};

/* A whole UDP datagram. Where its IP header lies is not in here: the verifier has to know it as a constant. */
struct packet {
	struct tuple tuple;
	__u32 headers; /* Bytes of IP and UDP header. */
	__u32 len;     /* As the IP header states it, itself included. */
	__u8 tos;
	bool plain;    /* No IP options. */
};

enum side { SOURCE, DESTINATION };

static INLINE bool read(struct __sk_buff *skb, __u32 network, struct packet *packet);
static INLINE bool read_v4(struct __sk_buff *skb, __u32 network, struct packet *packet);
static INLINE bool read_v6(struct __sk_buff *skb, __u32 network, struct packet *packet);
static INLINE bool holds(struct __sk_buff *skb, __u32 bytes);
static INLINE struct entry *find(struct map *flows, const struct packet *packet, enum direction direction);
static INLINE bool differ(const struct tuple *a, const struct tuple *b);
static INLINE bool too_big(struct __sk_buff *skb, const struct packet *packet, const struct entry *entry);
static INLINE bool moves(struct entry *entry, enum direction direction, __u64 now);
static INLINE int hand_up(struct counts *counts, __u64 now);
static INLINE void measure(struct __sk_buff *skb, __u32 network, const struct packet *packet,
			   struct rtp_stream *stream, __u64 now);
static INLINE void count(struct __sk_buff *skb, const struct packet *packet, struct counts *counts, __u64 now);
static INLINE bool rewrite(struct __sk_buff *skb, __u32 network, const struct packet *packet, enum side side,
			   const __be32 *address, __be16 port, __u8 tos);
static INLINE bool rewrite_v4(struct __sk_buff *skb, __u32 network, enum side side, __be32 address, __be16 port,
			      __u8 tos);
static INLINE bool rewrite_v6(struct __sk_buff *skb, __u32 network, enum side side, const __be32 *address,
			      __be16 port, __u8 tos);
static INLINE int send(struct __sk_buff *skb, const struct entry *entry);
static INLINE int inbound(struct __sk_buff *skb, __u32 network);

/* On the TUN's egress. */
SEC("classifier/outbound") int outbound(struct __sk_buff *skb)
{
	struct packet packet;

	if (!read(skb, NO_LINK, &packet) || skb->len != packet.len)
		return LEAVE;
	struct entry *entry = find(&outbound_flows, &packet, OUTBOUND);
	if (!entry)
		return LEAVE;

	struct counts *counts = &entry->counts[OUTBOUND];
	__u64 now = bpf_ktime_get_boot_ns();
	measure(skb, NO_LINK, &packet, &entry->rtp[OUTBOUND], now);
	if (!packet.plain || too_big(skb, &packet, entry) || !moves(entry, OUTBOUND, now))
		return hand_up(counts, now);

	__u8 tos = packet.tos;
	if (!(entry->keep >> (tos >> 2) & 1)) {
		tos = entry->dscp << 2 | (tos & 3);
		skb->priority = entry->priority;
	}
	skb->mark = entry->mark;
	count(skb, &packet, counts, now);
	if (!rewrite(skb, NO_LINK, &packet, SOURCE, entry->inbound.destination, entry->inbound.destination_port, tos))
		return DROP;
	return send(skb, entry);
}

/* On the ingress of a physical interface with an Ethernet header (Ethernet, Wi-Fi, VLAN). */
SEC("classifier/inbound_link") int inbound_link(struct __sk_buff *skb)
{
	/* A promiscuous interface shows frames for others too; the redirect would make them ours. */
	if (skb->pkt_type != PACKET_HOST)
		return LEAVE;
	return inbound(skb, ETH_HLEN);
}

/* On the ingress of one without a link header (PPP, TUN). */
SEC("classifier/inbound_plain") int inbound_plain(struct __sk_buff *skb)
{
	return inbound(skb, NO_LINK);
}

static INLINE int inbound(struct __sk_buff *skb, __u32 network)
{
	struct packet packet;

	/* The tag of a VLAN that has an interface of its own is gone by then; one that is there belongs to another network. */
	if ((skb->vlan_present && skb->vlan_tci & VLAN_ID) || !read(skb, network, &packet))
		return LEAVE;
	struct entry *entry = find(&inbound_flows, &packet, INBOUND);
	if (!entry || entry->physical != skb->ifindex)
		return LEAVE;

	struct counts *counts = &entry->counts[INBOUND];
	__u64 now = bpf_ktime_get_boot_ns();
	measure(skb, network, &packet, &entry->rtp[INBOUND], now);
	/* Uncounted, so that an answer with options, which anybody can send, does not keep those behind it from the kernel. */
	if (!packet.plain)
		return LEAVE;
	if (!moves(entry, INBOUND, now))
		return hand_up(counts, now);

	count(skb, &packet, counts, now);
	if (!rewrite(skb, network, &packet, DESTINATION, entry->outbound.source, entry->outbound.source_port,
		     packet.tos))
		return DROP;
	/* Where the flow lives, for firewall and rp_filter; the kernel strips the link header, as the TUN has none. */
	return bpf_redirect(entry->tun, BPF_F_INGRESS);
}

/* `false`: not a whole datagram in one of the forms that the pump would find the same flow for. */
static INLINE bool read(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
	__builtin_memset(packet, 0, sizeof(*packet));
	bool whole;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		whole = read_v4(skb, network, packet);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		whole = read_v6(skb, network, packet);
	else
		return false;
	return whole && skb->len >= network + packet->len;
}

static INLINE bool read_v4(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
	if (!holds(skb, network + sizeof(struct iphdr) + sizeof(struct udphdr)))
		return false;
	struct iphdr *ip = (void *)(long)skb->data + network;
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return false;
	__u32 header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip) || ip->protocol != IPPROTO_UDP ||
	    ip->frag_off & bpf_htons(FRAGMENT))
		return false;

	packet->tuple.family = AF_INET;
	packet->tuple.source[0] = ip->saddr;
	packet->tuple.destination[0] = ip->daddr;
	packet->headers = header + sizeof(*udp);
	packet->len = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	packet->plain = header == sizeof(*ip);

	struct udphdr behind_options = *udp;
	if (!packet->plain && bpf_skb_load_bytes(skb, network + header, &behind_options, sizeof(behind_options)))
		return false;
	packet->tuple.source_port = behind_options.source;
	packet->tuple.destination_port = behind_options.dest;
	return packet->len >= packet->headers && bpf_ntohs(behind_options.len) == packet->len - header;
}

static INLINE bool read_v6(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
	if (!holds(skb, network + sizeof(struct ipv6hdr) + sizeof(struct udphdr)))
		return false;
	struct ipv6hdr *ip = (void *)(long)skb->data + network;
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return false;
	if (ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
		return false;

	packet->tuple.family = AF_INET6;
	__builtin_memcpy(packet->tuple.source, &ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(packet->tuple.destination, &ip->daddr, sizeof(ip->daddr));
	packet->tuple.source_port = udp->source;
	packet->tuple.destination_port = udp->dest;
	packet->headers = sizeof(*ip) + sizeof(*udp);
	packet->len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->plain = true;
	return packet->len >= packet->headers && udp->len == ip->payload_len;
}

/* Whether the first bytes can be read directly. A driver may leave all but the link header in fragments of the buffer. */
static INLINE bool holds(struct __sk_buff *skb, __u32 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return true;
	return !bpf_skb_pull_data(skb, bytes);
}

static INLINE struct entry *find(struct map *flows, const struct packet *packet, enum direction direction)
{
	__u32 *slot = bpf_map_lookup_elem(flows, &packet->tuple);
	if (!slot)
		return NULL;
	struct entry *entry = bpf_map_lookup_elem(&entries, slot);
	if (!entry)
		return NULL;
	/* A hash element that is deleted under us may already name another flow's slot. */
	const struct tuple *tuple = direction == OUTBOUND ? &entry->outbound : &entry->inbound;
	return differ(tuple, &packet->tuple) ? NULL : entry;
}

static INLINE bool differ(const struct tuple *a, const struct tuple *b)
{
	const __u64 *x = (const void *)a, *y = (const void *)b;
	return (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4]);
}

static INLINE bool too_big(struct __sk_buff *skb, const struct packet *packet, const struct entry *entry)
{
	__u32 largest = skb->gso_size ? skb->gso_size + packet->headers : packet->len;
	return largest > entry->mtu;
}

/* Whether this packet may go past the pump: all before it are through, and the flow has not expired. */
static INLINE bool moves(struct entry *entry, enum direction direction, __u64 now)
{
	const volatile struct counts *sent = &entry->counts[OUTBOUND], *counts = &entry->counts[direction];
	const volatile __u64 *finished = &entry->finished[direction];
	/* Another CPU's packet may be younger than ours. */
	__s64 since_moved = now - sent->last_seen, since_handed_up = now - sent->last_handed_up;
	__s64 life = entry->life;
	return *finished == counts->handed_up && (since_moved < life || since_handed_up < life);
}

static INLINE int hand_up(struct counts *counts, __u64 now)
{
	((volatile struct counts *)counts)->last_handed_up = now;
	/* Only an atomic addition whose result is used also orders the store before it. */
	__u64 before = __sync_fetch_and_add(&counts->handed_up, 1);
	asm volatile("" : : "r"(before));
	return LEAVE;
}

static INLINE void measure(struct __sk_buff *skb, __u32 network, const struct packet *packet,
			   struct rtp_stream *stream, __u64 now)
{
	__u8 head[RTP_HEAD] = {};
	__u32 len = packet->len - packet->headers, size = skb->gso_size;
	if (size && size < len)
		len = size;
	long failed;
	if (len >= RTP_HEAD)
		failed = bpf_skb_load_bytes(skb, network + packet->headers, head, RTP_HEAD);
	else if (len >= RTP_HEADER)
		failed = bpf_skb_load_bytes(skb, network + packet->headers, head, RTP_HEADER);
	else
		return;
	if (failed)
		return;
	rtp_seen(stream, head, len, now, packet->tos);
	/* Of a super-packet only the first segment is looked at: the others are not received, but not lost either. */
	if (size)
		stream->resumed = 1;
}

static INLINE void count(struct __sk_buff *skb, const struct packet *packet, struct counts *counts, __u64 now)
{
	/* `gso_segs` is 0 where a virtual machine or a raw socket made the super-packet. */
	__u32 size = skb->gso_size;
	__u32 segments = size ? (packet->len - packet->headers + size - 1) / size : 1;
	__u32 more = segments > 1 ? segments - 1 : 0;
	__sync_fetch_and_add(&counts->packets, 1 + more);
	__sync_fetch_and_add(&counts->bytes, packet->len + more * packet->headers);
	((volatile struct counts *)counts)->last_seen = now;
}

/* `false`: the packet may be half rewritten. */
static INLINE bool rewrite(struct __sk_buff *skb, __u32 network, const struct packet *packet, enum side side,
			   const __be32 *address, __be16 port, __u8 tos)
{
	if (packet->tuple.family == AF_INET)
		return rewrite_v4(skb, network, side, address[0], port, tos);
	return rewrite_v6(skb, network, side, address, port, tos);
}

static INLINE bool rewrite_v4(struct __sk_buff *skb, __u32 network, enum side side, __be32 address, __be16 port,
			      __u8 tos)
{
	struct iphdr *ip = (void *)(long)skb->data + network;
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return false;
	__be32 *address_at = side == SOURCE ? &ip->saddr : &ip->daddr;
	__be16 *port_at = side == SOURCE ? &udp->source : &udp->dest;
	__be16 old_port = *port_at, checksum = udp->check;
	__u16 *first_word = (__u16 *)ip;

	/* RFC 1624 §3: ~m + m'. */
	__u64 change = add(~*address_at & 0xffffffff, address);
	__u64 marked = (__u16)~*first_word;
	ip->tos = tos;
	marked += *first_word;
	ip->check = ~fold((__u16)~ip->check + change + marked);
	*address_at = address;
	*port_at = port;

	__u32 checksum_at = network + sizeof(*ip) + __builtin_offsetof(struct udphdr, check);
	return !update_checksum(skb, checksum_at, checksum, change, old_port, port);
}

static INLINE bool rewrite_v6(struct __sk_buff *skb, __u32 network, enum side side, const __be32 *address,
			      __be16 port, __u8 tos)
{
	struct ipv6hdr *ip = (void *)(long)skb->data + network;
	struct udphdr *udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return false;
	const __be32 *old = side == SOURCE ? ip->saddr.in6_u.u6_addr32 : ip->daddr.in6_u.u6_addr32;
	__be16 *port_at = side == SOURCE ? &udp->source : &udp->dest;
	__be16 old_port = *port_at, checksum = udp->check;
	__u64 change = 0;
	for (int word = 0; word < 4; word++)
		change = add(change, add(~old[word] & 0xffffffff, address[word]));
	ip->priority = tos >> 4;
	ip->flow_lbl[0] = (ip->flow_lbl[0] & 0x0f) | tos << 4;
	*port_at = port;

	/*
	 * Where the interface summed the whole packet up, the kernel's own sum must follow the address: IPv6 has no header checksum that
	 * would make up for it.
	 */
	__u32 address_at = side == SOURCE ? __builtin_offsetof(struct ipv6hdr, saddr) :
					    __builtin_offsetof(struct ipv6hdr, daddr);
	if (bpf_skb_store_bytes(skb, network + address_at, address, 16, BPF_F_RECOMPUTE_CSUM))
		return false;
	__u32 checksum_at = network + sizeof(*ip) + __builtin_offsetof(struct udphdr, check);
	return !update_checksum(skb, checksum_at, checksum, change, old_port, port);
}

static INLINE int send(struct __sk_buff *skb, const struct entry *entry)
{
	if (!entry->next_hop_family)
		return bpf_redirect(entry->physical, 0);
	/* The redirect takes an Ethernet header off the packet before it puts the right one on, and drops without a word what has none. */
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		return DROP;
	/*
	 * The packet carries the TUN's route. Had it to wait for the neighbour's address, the kernel would ask that route how to go on, and
	 * send it without a link header. A tunnel key, which nobody on the way looks at, takes the route's place.
	 */
	__u8 key[__builtin_offsetof(struct bpf_tunnel_key, remote_ipv6[1])] = {};
	if (bpf_skb_set_tunnel_key(skb, key, sizeof(key), 0))
		return DROP;
	struct bpf_redir_neigh hop = { .nh_family = entry->next_hop_family };
	__builtin_memcpy(hop.ipv6_nh, entry->next_hop, sizeof(hop.ipv6_nh));
	return bpf_redirect_neigh(entry->physical, &hop, sizeof(hop), 0);
}

/* The license that the kernel is told of; no helper used here asks for another. */
char SEC("license") told_license[] = "Apache-2.0";

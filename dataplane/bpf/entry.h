/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs and the daemon share. `src/fast_path/layout.rs` mirrors it; sizes and offsets are asserted on both sides.
 * Addresses and ports are as on the wire; an IPv4 address lies in the first word, zeros behind it.
 */
#pragma once

#include <linux/types.h>

#include "rtp.h"

/* A packet's addresses and ports. The whole is compared and hashed: it has no padding. */
struct tuple {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 family; /* AF_INET or AF_INET6. */
} __attribute__((aligned(8)));

enum direction { OUTBOUND, INBOUND };

/* What the programs count of one direction of one flow. Times are CLOCK_BOOTTIME in nanoseconds. */
struct counts {
	__u64 handed_up;      /* Packets that were left to the pump. */
	__u64 last_handed_up; /* Written before `handed_up`; at first the time of the entry's installation. */
	__u64 packets;        /* That the program moved; each segment counts. */
	__u64 bytes;          /* IP header included. */
	__u64 last_seen;      /* Of a packet that the program moved; at first the time of the entry's installation. */
	__u64 reserved[3];
};

/* One flow. The daemon writes all of it before it inserts its tuples; from then on it writes `finished` only. */
struct entry {
	/*
	 * By direction: how many of the packets that were handed up the pump is done with. The program moves packets only while this equals
	 * `handed_up`, so none overtakes one that took the pump.
	 */
	__u64 finished[2];
	__u64 keep;              /* Bit n: a packet of DSCP n keeps it. */
	__u64 life;              /* Nanoseconds without an outbound packet after which the flow has expired. */
	struct tuple outbound;   /* As the application writes it. */
	struct tuple inbound;    /* As the answers arrive. */
	__be32 next_hop[4];
	__u32 next_hop_family;   /* AF_INET or AF_INET6; 0: the physical interface has no link header, so nobody to address. */
	__u32 physical;          /* Interface indices. */
	__u32 tun;
	__u32 mark;              /* Put on outbound packets. */
	__u32 mtu;               /* Largest packet, IP header included. */
	__u32 dscp;              /* Given to a packet that does not keep its own… */
	__u32 priority;          /* …together with this queueing priority (linux/pkt_sched.h). */
	__u32 reserved[9];
	struct counts counts[2]; /* By direction. */
	struct rtp_stream rtp[2]; /* Of all packets that the program sees. By direction; arrivals as times in `counts`. */
};

#define LAYOUT(what) _Static_assert(what, #what)
LAYOUT(sizeof(struct tuple) == 40);
LAYOUT(sizeof(struct counts) == 64);
LAYOUT(sizeof(struct entry) == 448);
LAYOUT(__builtin_offsetof(struct entry, outbound) == 32);
LAYOUT(__builtin_offsetof(struct entry, inbound) == 72);
LAYOUT(__builtin_offsetof(struct entry, next_hop) == 112);
LAYOUT(__builtin_offsetof(struct entry, next_hop_family) == 128);
LAYOUT(__builtin_offsetof(struct entry, priority) == 152);
LAYOUT(__builtin_offsetof(struct entry, counts) == 192);
LAYOUT(__builtin_offsetof(struct entry, rtp) == 320);

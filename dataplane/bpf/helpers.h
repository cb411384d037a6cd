/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's helper functions that the programs call (linux/bpf.h), and arithmetic on checksums. */
#pragma once

#define SEC(name) __attribute__((section(name), used))
#define INLINE __attribute__((always_inline)) inline
#define NULL ((void *)0)
/* sys/socket.h belongs to the C library, which has no place here. */
#define AF_INET 2
#define AF_INET6 10

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htons(word) __builtin_bswap16(word)
#else
#define bpf_htons(word) (word)
#endif
#define bpf_ntohs(word) bpf_htons(word)

/* How the loader is told of a map. */
struct map {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 flags;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;
static long (*bpf_skb_pull_data)(struct __sk_buff *, __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*bpf_skb_load_bytes)(const void *, __u32 at, void *to, __u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*bpf_skb_store_bytes)(struct __sk_buff *, __u32 at, const void *from, __u32 len,
				   __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*bpf_l4_csum_replace)(struct __sk_buff *, __u32 at, __u64 from, __u64 to,
				   __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*bpf_csum_update)(struct __sk_buff *, __u32 sum) = (void *)BPF_FUNC_csum_update;
static long (*bpf_skb_change_head)(struct __sk_buff *, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static long (*bpf_skb_set_tunnel_key)(struct __sk_buff *, const void *key, __u32 len,
				      __u64 flags) = (void *)BPF_FUNC_skb_set_tunnel_key;
static long (*bpf_redirect)(__u32 interface, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*bpf_redirect_neigh)(__u32 interface, struct bpf_redir_neigh *hop, int len,
				  __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* A 32-bit one's-complement sum (RFC 1071 §2(C)); both below 2³². */
static INLINE __u64 add(__u64 a, __u64 b)
{
	a += b;
	return (a & 0xffffffff) + (a >> 32);
}

static INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/*
 * Brings a UDP checksum up to date after `change` to the addresses and a new port. The kernel knows whether the field covers the packet or
 * only its pseudo header, in which ports have no part; a program does not.
 */
static INLINE long update_checksum(struct __sk_buff *skb, __u32 at, __be16 field, __u64 change, __be16 old_port,
				   __be16 port)
{
	if (!field) {
		/*
		 * The sender computed none (RFC 768), and none it stays. So nothing makes up for the port in what the interface may have summed
		 * up; an error says that it has not.
		 */
		bpf_csum_update(skb, (__u32)(__u16)~old_port + port);
		return 0;
	}
	long failed = bpf_l4_csum_replace(skb, at, 0, change, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
	if (!failed && old_port != port)
		failed = bpf_l4_csum_replace(skb, at, old_port, port, BPF_F_MARK_MANGLED_0 | sizeof(port));
	return failed;
}

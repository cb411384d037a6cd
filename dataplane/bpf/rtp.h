/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an RTP stream's packets tell about the way they took. `src/rtp.rs` is the same in Rust, with the reasons; a test holds both together
 * bit by bit. Two CPUs that see packets of one direction at once may lose each other's counts: the stream is not locked.
 */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

/* As much of a payload as is looked at. */
#define RTP_HEAD 16
#define RTP_HEADER 12
#define CHANNEL_HEADER 4

#define MAX_DROPOUT 3000
#define MAX_MISORDER 100
#define SILENCE 200000000
#define PATIENCE 16
#define WINDOW (1 << 30)
#define LONGEST 36
#define DOUBTS 3
#define BREAK 4

/* One direction of a flow. All-zero is one without RTP. */
struct rtp_stream {
	__u64 last_arrival;
	__u64 window_arrival;
	__u32 last_timestamp;
	__u32 window_timestamp;
	__u32 ssrc;
	__u32 highest;
	__u32 base;
	__u32 received;
	__u32 strays;
	__u32 jitter; /* In timestamp units, times 16. */
	__u32 candidate_ssrc;
	__u32 candidate_next;
	__u8 clock;
	__u8 doubts;
	__u8 tos;
	__u8 passed_over;
	__u8 resumed;
	__u8 reserved[3];
};

_Static_assert(sizeof(struct rtp_stream) == 64, "size of rtp_stream");
_Static_assert(__builtin_offsetof(struct rtp_stream, last_timestamp) == 16, "offset of last_timestamp");
_Static_assert(__builtin_offsetof(struct rtp_stream, jitter) == 44, "offset of jitter");
_Static_assert(__builtin_offsetof(struct rtp_stream, clock) == 56, "offset of clock");

struct rtp_header {
	__u16 sequence;
	__u32 timestamp;
	__u32 ssrc;
};

#define RTP_INLINE static __attribute__((always_inline)) inline

RTP_INLINE bool rtp_read(const __u8 *head, __u32 payload_len, struct rtp_header *header);
RTP_INLINE bool rtp_expects(const struct rtp_stream *stream, const struct rtp_header *header);
RTP_INLINE bool rtp_is_silent(const struct rtp_stream *stream, __u64 arrival);
RTP_INLINE void rtp_set_aside(struct rtp_stream *stream, const struct rtp_header *header);
RTP_INLINE void rtp_begin(struct rtp_stream *stream, const struct rtp_header *header, __u64 arrival);
RTP_INLINE void rtp_measure(struct rtp_stream *stream, const struct rtp_header *header, __u64 arrival);
RTP_INLINE void rtp_hold_clock(struct rtp_stream *stream, __u32 timestamp, __u64 arrival);

/*
 * Takes note of a UDP payload of `payload_len` bytes, of which `head` is the first RTP_HEAD, zeros behind a shorter one. `arrival` is in
 * nanoseconds since any one moment.
 */
RTP_INLINE void rtp_seen(struct rtp_stream *stream, const __u8 *head, __u32 payload_len, __u64 arrival, __u8 tos)
{
	struct rtp_header header;
	if (!rtp_read(head, payload_len, &header))
		return;
	bool known = stream->received && header.ssrc == stream->ssrc;
	__u16 ahead = header.sequence - stream->highest;
	if (known && ahead < MAX_DROPOUT) {
		if (stream->resumed && ahead) {
			stream->base += ahead - 1;
			stream->resumed = 0;
		}
		stream->highest += ahead;
		rtp_measure(stream, &header, arrival);
	} else if (known && ahead > 65536 - MAX_MISORDER) {
		rtp_measure(stream, &header, arrival);
	} else if (rtp_expects(stream, &header) && (known || rtp_is_silent(stream, arrival))) {
		rtp_begin(stream, &header, arrival);
	} else {
		rtp_set_aside(stream, &header);
		return;
	}
	stream->tos = tos;
}

RTP_INLINE __u32 rtp_word(const __u8 *at)
{
	return (__u32)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
}

RTP_INLINE bool rtp_read(const __u8 *head, __u32 payload_len, struct rtp_header *header)
{
	const __u8 *at = head;
	__u32 len = payload_len;
	if (!payload_len)
		return false;
	/* RFC 8656 §12.4: ChannelData. */
	if (head[0] >> 4 == 4) {
		at += CHANNEL_HEADER;
		len = head[2] << 8 | head[3];
		if (len + CHANNEL_HEADER > payload_len)
			return false;
	}
	/* RFC 7983 §7, RFC 5761 §4, RFC 3550 §5.1. */
	__u8 payload_type = at[1] & 0x7f;
	if (at[0] >> 6 != 2 || (payload_type >= 64 && payload_type <= 95) || len < RTP_HEADER + 4u * (at[0] & 0x0f))
		return false;
	header->sequence = at[2] << 8 | at[3];
	header->timestamp = rtp_word(at + 4);
	header->ssrc = rtp_word(at + 8);
	return true;
}

RTP_INLINE bool rtp_expects(const struct rtp_stream *stream, const struct rtp_header *header)
{
	return stream->candidate_ssrc == header->ssrc && stream->candidate_next == (1 << 16 | (__u32)header->sequence);
}

RTP_INLINE bool rtp_is_silent(const struct rtp_stream *stream, __u64 arrival)
{
	return !stream->received || (__s64)(arrival - stream->last_arrival) >= SILENCE;
}

RTP_INLINE void rtp_set_aside(struct rtp_stream *stream, const struct rtp_header *header)
{
	stream->strays++;
	if (header->ssrc != stream->candidate_ssrc && stream->candidate_next && stream->passed_over < PATIENCE) {
		stream->passed_over++;
		return;
	}
	stream->candidate_ssrc = header->ssrc;
	stream->candidate_next = 1 << 16 | (__u16)(header->sequence + 1);
	stream->passed_over = 0;
}

RTP_INLINE void rtp_begin(struct rtp_stream *stream, const struct rtp_header *header, __u64 arrival)
{
	__u32 base = (__u16)(header->sequence - 1), strays = stream->strays - 1;
	*stream = (struct rtp_stream){
		.last_arrival = arrival,
		.window_arrival = arrival,
		.last_timestamp = header->timestamp,
		.window_timestamp = header->timestamp,
		.ssrc = header->ssrc,
		.highest = base + 1,
		.base = base,
		.received = 2,
		.strays = strays,
	};
}

/* To the nearest one. Each factor is units per nanosecond times 2⁴⁰; a table would be a map. */
RTP_INLINE __u64 rtp_units(__u8 clock, __u64 nanoseconds)
{
	__u64 factor = clock == 1 ? 8796093 : clock == 2 ? 17592186 : clock == 3 ? 52776558 : 98956046;
	return (nanoseconds * factor + (1ULL << 39)) >> 40;
}

RTP_INLINE __u32 rtp_rate(__u8 clock)
{
	return clock == 1 ? 8000 : clock == 2 ? 16000 : clock == 3 ? 48000 : 90000;
}

RTP_INLINE void rtp_measure(struct rtp_stream *stream, const struct rtp_header *header, __u64 arrival)
{
	__u64 gap = arrival - stream->last_arrival;
	__s32 step = header->timestamp - stream->last_timestamp;
	__u8 clock = stream->clock;
	stream->received++;
	stream->last_arrival = arrival;
	stream->last_timestamp = header->timestamp;
	if (clock && !(gap >> LONGEST)) {
		/* RFC 3550 A.8. */
		__s64 deviation = (__s64)rtp_units(clock, gap) - step;
		if (deviation < 0)
			deviation = -deviation;
		if ((__u64)deviation < (__u64)BREAK * rtp_rate(clock)) {
			__u32 jitter = stream->jitter;
			stream->jitter = jitter + (__u32)deviation - ((jitter + 8) >> 4);
		}
	}
	rtp_hold_clock(stream, header->timestamp, arrival);
}

RTP_INLINE bool rtp_fits(__u64 step, __u64 expected)
{
	__u64 off = expected > step ? expected - step : step - expected;
	return off <= expected / 16;
}

RTP_INLINE void rtp_hold_clock(struct rtp_stream *stream, __u32 timestamp, __u64 arrival)
{
	__u64 elapsed = arrival - stream->window_arrival;
	if ((__s64)elapsed < WINDOW)
		return;
	__u64 step = (__u32)(timestamp - stream->window_timestamp);
	__u8 found = 0;
	stream->window_arrival = arrival;
	stream->window_timestamp = timestamp;
	if (!(elapsed >> LONGEST)) {
		for (__u8 clock = 1; clock <= 4; clock++)
			if (rtp_fits(step, rtp_units(clock, elapsed)))
				found = clock;
	}
	if (found == stream->clock) {
		stream->doubts = 0;
		return;
	}
	stream->doubts++;
	if (!stream->clock || stream->doubts == DOUBTS) {
		stream->clock = found;
		stream->doubts = 0;
		stream->jitter = 0;
	}
}

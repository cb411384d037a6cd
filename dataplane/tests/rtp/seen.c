/* SPDX-License-Identifier: Apache-2.0 */
/* Feeds what comes on standard input to the kernel's arithmetic; the stream's state after each goes to standard output. */
#include <stdio.h>

#include "rtp.h"

struct input {
	__u64 arrival;
	__u32 payload_len;
	__u8 tos;
	__u8 begin;   /* Another stream, from nothing. */
	__u8 resumed; /* Others have counted before. */
	__u8 reserved;
	__u8 head[RTP_HEAD];
};

int main(void)
{
	struct rtp_stream stream = {};
	struct input input;
	while (fread(&input, sizeof(input), 1, stdin) == 1) {
		if (input.begin)
			stream = (struct rtp_stream){};
		if (input.resumed)
			stream.resumed = 1;
		rtp_seen(&stream, input.head, input.payload_len, input.arrival, input.tos);
		if (fwrite(&stream, sizeof(stream), 1, stdout) != 1)
			return 1;
	}
	return 0;
}

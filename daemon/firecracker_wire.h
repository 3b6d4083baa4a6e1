/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * firecracker_wire.h (private): what Firecracker says when it restores a snapshot: a JSON array, and nothing that tells where it ends.
 *
 *	1.1 to 1.6	[{"base_host_virt_addr":N,"size":N,"offset":N}, ...]
 *	1.7 to 1.11	the same with "page_size_kib", whose value is bytes
 *	1.12 on		the same with "page_size", too
 *
 * Nothing here touches a socket or memory of a client: tests/fuzz_firecracker.c calls it with whatever there is.
 */
#ifndef UP_DAEMON_FIRECRACKER_WIRE_H
#define UP_DAEMON_FIRECRACKER_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FC_HANDSHAKE_MAX ((size_t)1 << 20) /* bytes of one array */
#define FC_REGIONS_MAX 1024u		   /* of one array */
#define FC_NESTED_MAX 16u		   /* brackets in brackets */

struct fc_region {
	uint64_t address, size, offset;
	uint32_t page_size; /* 4096 or 2 MiB */
};

/* Where one array ends, told byte by byte.  Zeroed: before the first. */
struct fc_scan {
	unsigned depth;
	bool string, escaped, begun;
};

/* How many of these bytes belong to the array: the last of them is its end if *complete.  -EPROTO: it is no array. */
int64_t fc_scan(struct fc_scan *s, const char *text, size_t len, bool *complete);

/*
 * The regions of one array, checked against each other and the size of the memory file.  Their number, and they are the caller's to
 * free(); otherwise -EPROTO, -EINVAL, -E2BIG, -ENOTSUP or -ENOMEM, and `why` says what is wrong, for a log line.
 */
int fc_parse(const char *text, size_t len, uint64_t file_size, struct fc_region **regions,
	     char *why, size_t whysize);

#endif

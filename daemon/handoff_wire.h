/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handoff_wire.h (private): what Cloud Hypervisor says when it hands its guest's memory over.
 *
 *	u32, little endian: length | JSON
 *	{"type":"handoff","version":0,"vmm_pid":N,"mode":"MISSING"|"WP"|"WP_ASYNC","regions":[REGION, ...]}	and a userfaultfd
 *	{"type":"add_region","region":REGION}
 *	REGION: {"guest_phys_addr":N,"host_virt_addr":N,"size":N,"backing_file_offset":N}
 *
 * Each is answered by one byte.  Nothing here touches a socket or memory of a client: tests/fuzz_handoff.c calls it with whatever there is.
 */
#ifndef UP_DAEMON_HANDOFF_WIRE_H
#define UP_DAEMON_HANDOFF_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define HANDOFF_HEADER 4u
#define HANDOFF_MESSAGE_MAX ((uint32_t)1 << 20) /* bytes of JSON */
#define HANDOFF_REGIONS_MAX 256u
#define HANDOFF_ANSWER 1 /* the byte */

enum handoff_type { HANDOFF_ALL, HANDOFF_ADD };
enum handoff_mode { HANDOFF_MISSING, HANDOFF_WP, HANDOFF_WP_ASYNC };

struct handoff_region {
	uint64_t address, size, offset;
};

struct handoff_message {
	enum handoff_type type;
	enum handoff_mode mode; /* HANDOFF_ALL */
	uint64_t pid;		/* the same: as the client sees itself */
	struct handoff_region *region;
	unsigned n; /* 1 of HANDOFF_ADD */
};

/* Bytes of JSON that follow a header.  -E2BIG; -EPROTO: none. */
int64_t handoff_length(const unsigned char header[HANDOFF_HEADER]);

/*
 * One message, its regions by address.  0: m->region is the caller's to free(); otherwise -EPROTO, -EPROTONOSUPPORT, -EINVAL, -E2BIG, -ENOMEM, m->region is NULL, and `why` says
 * what is wrong, for a log line.
 */
int handoff_parse(const char *text, size_t len, struct handoff_message *m, char *why,
		  size_t whysize);

#endif

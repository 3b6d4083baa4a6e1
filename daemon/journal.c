/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * journal.c: see journal.h.
 *
 * A line is one datagram of fields, as systemd documents it (JOURNAL_NATIVE_PROTOCOL).  Not by sd_journal_sendv(): that waits while journald's queue is full, and
 * who logs here may be serving faults.
 */
#include "journal.h"

#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PARTS_MAX 12u

const char *journal_socket = "/run/systemd/journal/socket";

static struct {
	int fd; /* not connected: journald may be started again */
	struct sockaddr_un at;
} journal = { .fd = -1 };

struct datagram {
	struct iovec part[PARTS_MAX];
	size_t n;
};

bool
journal_open(void)
{
	if (journal.fd >= 0)
		return true;
	if (strlen(journal_socket) >= sizeof(journal.at.sun_path))
		return false;
	journal.at.sun_family = AF_UNIX;
	strcpy(journal.at.sun_path, journal_socket);
	journal.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return journal.fd >= 0;
}

static void
add(struct datagram *d, const void *p, size_t n)
{
	assert(d->n < PARTS_MAX);
	d->part[d->n++] = (struct iovec){ .iov_base = (void *)(uintptr_t)p, .iov_len = n };
}

/* NAME=VALUE, or NAME and how long it is where a line would end it.  *len is the caller's, until it has been sent. */
static void
add_field(struct datagram *d, const char *name, const char *value, size_t n, uint64_t *len)
{
	add(d, name, strlen(name));
	if (memchr(value, '\n', n) == NULL) {
		add(d, "=", 1);
	} else {
		*len = htole64(n);
		add(d, "\n", 1);
		add(d, len, sizeof(*len));
	}
	add(d, value, n);
	add(d, "\n", 1);
}

bool
journal_send(int priority, const char *line, size_t n, const struct log_about *about)
{
	char head[64], who[96];
	uint64_t message_len, name_len;
	struct datagram d = { .n = 0 };
	struct msghdr m = { .msg_name = &journal.at,
			    .msg_namelen = sizeof(journal.at),
			    .msg_iov = d.part };

	if (journal.fd < 0)
		return false;
	snprintf(head, sizeof(head), "PRIORITY=%d\nSYSLOG_IDENTIFIER=uffd-pagerd\n", priority);
	add(&d, head, strlen(head));
	add_field(&d, "MESSAGE", line, n, &message_len);
	if (about != NULL) {
		int used = 0;

		if (about->client != 0)
			used = snprintf(who, sizeof(who), "UFFD_PAGER_CLIENT=%u\n", about->client);
		snprintf(who + used, sizeof(who) - (size_t)used, "UFFD_PAGER_PID=%d\n", about->pid);
		add(&d, who, strlen(who));
		add_field(&d, "UFFD_PAGER_NAME", about->name, strlen(about->name), &name_len);
	}
	m.msg_iovlen = d.n;
	return sendmsg(journal.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

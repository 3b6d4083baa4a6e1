/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * registry.c: a registry for programs that are not the whole daemon.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "session.h"

static struct session *first;
static unsigned last_id;

void
session_come(struct session *s)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/comm", (int)s->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd >= 0 ? read(fd, s->name, sizeof s->name - 1) : 0;
	if (fd >= 0)
		close(fd);
	s->name[n > 0 ? n : 0] = '\0';
	s->name[strcspn(s->name, "\n")] = '\0';
	s->id = ++last_id;
	s->since = now_ns();
	s->next = first;
	first = s;
}

void
session_gone(struct session *s)
{
	struct session **at = &first;
	struct session_counts last;

	s->ops->counts(s, &last);
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
}

struct session *
session_first(void)
{
	return first;
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handoff_door.c: monitors that hand memory over as clients of the whole daemon ([listen NAME] type = handoff).
 */
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "handoff.h"
#include "listen.h"
#include "log.h"
#include "sessions.h"

static struct handoff_config
configured(struct daemon *d, const char *group)
{
	return (struct handoff_config){
		.rt = d->rt,
		.log = { .fn = log_library },
		.group = group,
		.regions_max = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
		.limits = native_limits,
	};
}

int
handoff_returned(struct daemon *d, uint64_t guest, const struct session *who)
{
	const struct handoff_config cfg = configured(d, who->group);

	return handoff_resume(&d->loop, &cfg, guest, who);
}

void
handoff_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	const struct handoff_config cfg = configured(d, l->group);
	struct session *s;
	int r;

	if (!session_admit_or_close(peer, fd))
		return;
	r = native_start(d);
	if (r == 0)
		r = handoff_open(&d->loop, fd, &cfg, &s);
	if (r < 0) {
		log_warning("%s: process %d is refused: %s", l->path, (int)peer->pid, strerror(-r));
		session_refused(REFUSED_FAILED);
		close(fd);
	}
}

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

void
handoff_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	const struct handoff_config cfg = {
		.rt = d->rt,
		.log = { .fn = log_library },
		.group = l->group,
		.regions_max = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
	};
	struct session *s;
	int r;

	if (!session_admit_or_close(peer, fd))
		return;
	r = native_start(d);
	if (r == 0)
		r = handoff_open(&d->loop, fd, &cfg, &s);
	if (r < 0) {
		log_warning("%s: process %d is refused: %s", l->path, (int)peer->pid, strerror(-r));
		close(fd);
	}
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * criu_door.c: processes that CRIU restores as clients of the whole daemon ([listen NAME] type = criu, path = WORK/lazy-pages.socket,
 * source = IMG).
 *
 * Their memory is theirs: what is filled can not be taken back, so it is outside of the budget, and counted as theirs alone.
 */
#include <string.h>
#include <unistd.h>

#include "criu.h"
#include "daemon.h"
#include "heirs.h"
#include "listen.h"
#include "log.h"
#include "sessions.h"

void
criu_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct criu_config cfg = {
		.dir = l->source,
		.log = { .fn = log_library },
	};
	struct session *s;
	int r;

	if (!session_admit_or_close(peer, fd))
		return;
	cfg.keeper = heirs_keeper(&cfg.holder);
	r = criu_open(&d->loop, fd, &cfg, &s);
	if (r < 0) {
		log_warning("%s: process %d is refused: %s", l->path, (int)peer->pid, strerror(-r));
		session_refused(REFUSED_FAILED);
		close(fd);
	}
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * firecracker_door.c: microVMs of Firecracker as clients of the whole daemon ([listen NAME] type = firecracker, source = MEMFILE).
 *
 * Private memory can be filled and not taken back, so it is outside of the budget, and counted as theirs alone.  That of a memfd is the runtime's.
 */
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "firecracker.h"
#include "heirs.h"
#include "listen.h"
#include "log.h"
#include "sessions.h"

int
firecracker_returned(struct daemon *d, uint64_t guest, const struct session *who)
{
	const struct firecracker_config cfg = {
		.log = { .fn = log_library },
		.rt = d->rt,
		.group = who->group,
		.regions_max = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
		.limits = native_limits,
	};

	return firecracker_guest(&d->loop, &cfg, guest, who);
}

void
firecracker_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct firecracker_config cfg = {
		.log = { .fn = log_library },
		.working_set = true,
		.record_seconds = FC_RECORD_SECONDS,
		.group = l->group,
		.regions_max = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
		.limits = native_limits,
	};
	struct session *s;
	int r;

	if (!session_admit_or_close(peer, fd))
		return;
	if (native_start(d) == 0)
		cfg.rt = d->rt;
	cfg.keeper = heirs_keeper(&cfg.holder);
	/* The same one for all that are restored from that file, as long as one of them is there. */
	r = memfile_open(&cfg.source, l->source, &cfg.log);
	if (r == 0) {
		r = firecracker_open(&d->loop, fd, &cfg, &s);
		memfile_unref(cfg.source);
	}
	if (r < 0) {
		log_warning("%s: process %d is refused: %s", l->path, (int)peer->pid, strerror(-r));
		session_refused(REFUSED_FAILED);
		close(fd);
	}
}

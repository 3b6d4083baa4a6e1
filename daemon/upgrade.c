/* SPDX-License-Identifier: BSD-2-Clause */
#include "upgrade.h"

#include <errno.h>

#include "guardian.h"

static struct {
	uv_poll_t guardian;
	bool open;
	upgrade_refused *refused; /* NULL: nobody wants to know */
	void *ctx;
	char outcome[STORE_NAME_MAX];
} upgrade;

static void
on_guardian(uv_poll_t *poll, int status, int events)
{
	upgrade_refused *const refused = upgrade.refused;
	char why[STORE_NAME_MAX];

	(void)events;
	/* It is gone, and so are we in a moment. */
	if (status < 0) {
		uv_poll_stop(poll);
		return;
	}
	if (!kept_refused(why) || refused == NULL)
		return;
	upgrade.refused = NULL;
	refused(upgrade.ctx, why);
}

void
upgrade_open(struct daemon *d)
{
	if (!kept_any())
		return;
	/* Before anybody is served here. */
	(void)kept_refused(upgrade.outcome);
	upgrade.open = uv_poll_init(&d->loop, &upgrade.guardian, kept_socket()) == 0 &&
		       uv_poll_start(&upgrade.guardian, UV_READABLE, on_guardian) == 0;
	if (upgrade.open)
		uv_unref((uv_handle_t *)&upgrade.guardian);
}

void
upgrade_close(void)
{
	if (upgrade.open)
		uv_close((uv_handle_t *)&upgrade.guardian, NULL);
	upgrade.open = false;
}

int
upgrade_ask(upgrade_refused *refused, void *ctx)
{
	if (!upgrade.open)
		return -ENOTSUP;
	if (upgrade.refused != NULL)
		return -EBUSY;
	upgrade.refused = refused;
	upgrade.ctx = ctx;
	kept_upgrade();
	return 0;
}

void
upgrade_forget(const void *ctx)
{
	if (upgrade.ctx == ctx)
		upgrade.refused = NULL;
}

const char *
upgrade_outcome(void)
{
	return upgrade.outcome;
}

/* SPDX-License-Identifier: BSD-2-Clause */
#include "heirs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu.h"
#include "daemon.h"
#include "firecracker.h"
#include "guardian.h"
#include "holder.h"
#include "listen.h"
#include "log.h"

/* This process's; 0: there is none yet. */
static uint64_t own_holder;

const struct store_keeper *
heirs_keeper(uint64_t *holder)
{
	int r;

	*holder = own_holder;
	if (!kept_any())
		return NULL;
	if (own_holder != 0)
		return kept_keeper();
	*holder = monotonic_ns();
	r = holder_start(kept_keeper(), *holder);
	/* Then a child that is forked in the very instant of our end is lost. */
	if (r < 0)
		log_warning("there can be no holder of our descriptors: %s", strerror(-r));
	else
		own_holder = *holder;
	return kept_keeper();
}

/* --- holders of predecessors --- */

static struct old {
	struct old *next;
	uint64_t id;
	int sock;
} * olds;

static int
fetch(void *unused, uint64_t holder, int number)
{
	const struct old *o = olds;

	(void)unused;
	while (o != NULL && o->id != holder)
		o = o->next;
	return o != NULL ? holder_ask(o->sock, number) : -ENOENT;
}

/* They have all that the last daemon had, and what it has let go of is gone once they are. */
static void
end_olds(void)
{
	struct old *o;

	while ((o = olds) != NULL) {
		olds = o->next;
		holder_end(o->sock);
		keeper_drop(kept_keeper(), "holder", o->id, NULL);
		free(o);
	}
}

/* --- connections in no session yet --- */

static struct knock {
	struct knock *next;
	char name[STORE_NAME_MAX];
	int fd;
	ino_t ino;
} * knocks;

static ino_t
inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

uint64_t
heirs_accepted(const char *listener, int fd)
{
	const uint64_t number = monotonic_ns();

	if (!kept_any())
		return 0;
	keeper_keep(kept_keeper(), "accepted", number, listener, fd);
	return number;
}

void
heirs_taken(const char *listener, uint64_t number)
{
	if (number != 0)
		keeper_drop(kept_keeper(), "accepted", number, listener);
}

static void
find_knocks(void)
{
	char name[STORE_NAME_MAX];

	while (kept_some("accepted/", "", name)) {
		struct knock *const k = malloc(sizeof(*k));
		const int fd = kept_take(NULL, name);

		if (k == NULL) {
			close(fd);
			continue;
		}
		*k = (struct knock){ .next = knocks, .fd = fd, .ino = inode_of(fd) };
		memcpy(k->name, name, sizeof(k->name));
		knocks = k;
	}
}

/* A session has this connection already. */
static void
no_knock(int fd)
{
	const ino_t ino = inode_of(fd);

	for (struct knock *k = knocks; k != NULL; k = k->next)
		if (k->ino == ino)
			k->ino = 0;
}

void
heirs_knock(struct daemon *d)
{
	struct knock *k;

	while ((k = knocks) != NULL) {
		const char *const name = strchr(k->name + strlen("accepted/"), '/');
		const struct listener *l = listen_first();
		struct peer peer;

		knocks = k->next;
		/* As much of a long name as there was room for. */
		while (l != NULL && name != NULL &&
		       (strlen(k->name) + 1 < sizeof(k->name)
				? strcmp(l->name, name + 1)
				: strncmp(l->name, name + 1, strlen(name + 1))) != 0)
			l = l->next;
		if (k->ino == 0 || l == NULL || name == NULL || peer_get(k->fd, &peer) < 0) {
			close(k->fd);
		} else {
			l->accept(d, l, k->fd, &peer);
			if (peer.pidfd >= 0)
				close(peer.pidfd);
		}
		kept_keeper()->drop(NULL, k->name);
		free(k);
	}
}

void
heirs_begin(void)
{
	char name[STORE_NAME_MAX];

	while (kept_some("holder/", "", name)) {
		struct old *const o = malloc(sizeof(*o));
		const int sock = kept_take(NULL, name);

		if (o == NULL) {
			holder_end(sock);
			continue;
		}
		holder_alone(sock);
		*o = (struct old){ olds, strtoull(name + strlen("holder/"), NULL, 10), sock };
		olds = o;
	}
	find_knocks();
}

/* --- sessions --- */

/* What all of them have in common. */
struct come {
	uv_loop_t *loop;
	void (*gone)(void *ctx, struct session *s);
	void *ctx;
};

static int
resume_firecracker(const struct come *c, struct fill_heir *h)
{
	struct firecracker_config cfg = {
		.log = { .fn = log_library },
		.gone = c->gone,
		.ctx = c->ctx,
	};
	int r;

	cfg.keeper = heirs_keeper(&cfg.holder);
	r = memfile_inherit(&cfg.source, h->note->about.source, cfg.keeper, h->take, h->ctx);
	if (r < 0)
		return r;
	r = firecracker_resume(c->loop, &cfg, h);
	memfile_unref(cfg.source);
	return r;
}

static int
resume_criu(const struct come *c, struct fill_heir *h)
{
	struct criu_config cfg = {
		.log = { .fn = log_library },
		.gone = c->gone,
		.ctx = c->ctx,
	};

	cfg.keeper = heirs_keeper(&cfg.holder);
	return criu_resume(c->loop, &cfg, h);
}

/* What nobody takes is not kept any more, and without its userfaultfd what it misses reads as zeros. */
static void
let_wait(uint64_t id)
{
	char begin[STORE_NAME_MAX], name[STORE_NAME_MAX];

	snprintf(begin, sizeof(begin), "fill/%llu/", (unsigned long long)id);
	while (kept_some(begin, "", name))
		close(kept_take(NULL, name));
}

static bool
resume(const struct come *c, uint64_t id)
{
	struct fill_heir h;
	int r = fill_heir_open(&h, id, kept_take, fetch, NULL);

	if (r == 0 && h.socket < 0)
		r = -ENOENT;
	if (r == 0)
		no_knock(h.socket);
	if (r == 0 && strcmp(h.note->about.kind, "criu") == 0)
		r = resume_criu(c, &h);
	else if (r == 0 && strcmp(h.note->about.kind, "firecracker") == 0)
		r = resume_firecracker(c, &h);
	if (r < 0) {
		log_error("a client of the last daemon can not be served any more, and waits: %s",
			  strerror(-r));
		let_wait(id);
	}
	fill_heir_close(&h);
	return r == 0;
}

/* They go with their process. */
static void
keep_orphans(void)
{
	char name[STORE_NAME_MAX];

	while (kept_some("fill/", "/" FILL_ORPHAN, name)) {
		const int uffd = kept_take(NULL, name);

		if (!foreign_alive(uffd))
			kept_keeper()->drop(NULL, name);
		close(uffd);
	}
}

unsigned
heirs_come(uv_loop_t *loop, void (*gone)(void *ctx, struct session *s), void *ctx)
{
	const struct come c = { loop, gone, ctx };
	char name[STORE_NAME_MAX];
	unsigned n = 0;

	if (!kept_any())
		return 0;
	while (kept_some("fill/", "/note", name))
		n += resume(&c, strtoull(name + strlen("fill/"), NULL, 10));
	keep_orphans();
	end_olds();
	return n;
}

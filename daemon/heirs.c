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

/* One that a predecessor had accepted, and in whose name nothing is kept. */
static struct knock {
	struct knock *next;
	int fd;
	ino_t ino; /* 0: a session has it after all */
} * knocks;

static ino_t
inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/* True if it was accepted there, and so is none that was made to somebody else: the log may be one, too. */
static bool
came_to(int fd, const char *path)
{
	struct sockaddr_un sun = { .sun_family = AF_UNSPEC };
	socklen_t len = sizeof(sun) - 1;

	return getsockname(fd, (struct sockaddr *)&sun, &len) == 0 &&
	       strcmp(path, sun.sun_path) == 0;
}

/*
 * A listener of a protocol that has no answer, so that who has spoken has no way to find out that he was not heard; NULL: there is none.  fd -1: any; or where this
 * was accepted.
 */
static const struct listener *
silent(int fd)
{
	const struct listener *l = listen_first();

	while (l != NULL && (strcmp(l->type, "criu") != 0 || (fd >= 0 && !came_to(fd, l->path))))
		l = l->next;
	return l;
}

/* Somebody has this connection already. */
static void
no_knock(int fd)
{
	const ino_t ino = inode_of(fd);

	for (struct knock *k = knocks; k != NULL; k = k->next)
		if (k->ino == ino)
			k->ino = 0;
}

static void
find_knocks(int holder)
{
	int from = 0, fd;

	while ((fd = holder_connection(holder, &from)) >= 0) {
		struct knock *const k = malloc(sizeof(*k));

		if (k == NULL) {
			close(fd);
			return;
		}
		*k = (struct knock){ knocks, fd, inode_of(fd) };
		/* Two predecessors, of which one has not come to serve, both have it. */
		no_knock(fd);
		knocks = k;
	}
}

/* The next, the caller's; -1: there is none any more. */
static int
next_knock(void)
{
	while (knocks != NULL) {
		struct knock *const k = knocks;
		const int fd = k->fd;
		const bool is = k->ino != 0;

		knocks = k->next;
		free(k);
		if (is)
			return fd;
		close(fd);
	}
	return -1;
}

int
heirs_connection(const char *path)
{
	int fd;

	while ((fd = next_knock()) >= 0 && !came_to(fd, path))
		close(fd);
	return fd;
}

void
heirs_knock(struct daemon *d)
{
	int fd;

	while ((fd = next_knock()) >= 0) {
		const struct listener *const l = silent(fd);
		struct peer peer;

		if (l == NULL || peer_get(fd, &peer) < 0) {
			close(fd);
			continue;
		}
		l->accept(d, l, fd, &peer);
		if (peer.pidfd >= 0)
			close(peer.pidfd);
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
		find_knocks(sock);
		*o = (struct old){ olds, strtoull(name + strlen("holder/"), NULL, 10), sock };
		olds = o;
	}
}

/* --- sessions --- */

/* What all of them have in common. */
struct come {
	uv_loop_t *loop;
	void (*gone)(void *ctx, struct session *s);
	void *ctx;
};

void
heirs_listening(void)
{
	if (kept_any() && silent(-1) != NULL)
		heirs_keeper(&(uint64_t){ 0 });
}

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

void
heirs_orphan(uint64_t id, int uffd)
{
	char name[STORE_NAME_MAX];

	if (!foreign_alive(uffd)) {
		close(uffd);
		return;
	}
	/* Its number may be a filler's, whose names have one more in that place. */
	store_name(name, "fill", id, "guest/" FILL_ORPHAN);
	kept_keeper()->keep(NULL, name, uffd);
	close(uffd);
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

/* Of notes that are no more: it ended there, or had not begun. */
static void
drop_parts(const char *part)
{
	char name[STORE_NAME_MAX];

	while (kept_some("fill/", part, name)) {
		close(kept_take(NULL, name));
		kept_keeper()->drop(NULL, name);
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
	/* What has been accepted is nobody's but the old holder's. */
	heirs_listening();
	while (kept_some("fill/", "/note", name))
		n += resume(&c, strtoull(name + strlen("fill/"), NULL, 10));
	keep_orphans();
	drop_parts("/socket");
	drop_parts("/pending");
	end_olds();
	return n;
}

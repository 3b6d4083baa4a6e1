/* SPDX-License-Identifier: BSD-2-Clause */
#include "working_set.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MAGIC \
	0x31535755u /* "UWS1"; one that was written with the other byte order reads otherwise */
#define WS_VERSION 1u

struct header {
	uint32_t magic, version;
	uint64_t checksum; /* of what follows it, the runs included */
	struct file_identity id;
	uint64_t nruns;
};

_Static_assert(sizeof(struct header) == 56, "the format of the record");
_Static_assert(sizeof(struct working_set_run) == 16, "the format of the record");

static uint64_t
checksum(const struct header *h, const struct working_set_run *run, size_t n)
{
	const size_t from = offsetof(struct header, id);
	XXH3_state_t state;

	XXH3_INITSTATE(&state);
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, (const char *)h + from, sizeof *h - from);
	XXH3_64bits_update(&state, run, n * sizeof *run);
	return XXH3_64bits_digest(&state);
}

void
working_set_free(struct working_set *ws)
{
	free(ws->run);
	*ws = (struct working_set){ 0 };
}

/* All of it, or not: 0, -EBADMSG at its end. */
static int
read_all(int fd, void *buf, size_t len)
{
	char *p = buf;

	while (len > 0) {
		const ssize_t n = read(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EBADMSG;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int
write_all(int fd, const void *buf, size_t len)
{
	const char *p = buf;

	while (len > 0) {
		const ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static bool
sound(const struct working_set *ws, uint64_t npages)
{
	uint64_t end = 0;

	for (size_t i = 0; i < ws->n; i++) {
		const struct working_set_run *r = &ws->run[i];

		if (r->n == 0 || (i > 0 && r->first <= end) || r->first >= npages ||
		    r->n > npages - r->first)
			return false;
		end = r->first + r->n;
	}
	return true;
}

static int
load(int fd, const struct file_identity *id, struct working_set *ws)
{
	struct header h;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EBADMSG;
	if ((r = read_all(fd, &h, sizeof h)) < 0)
		return r;
	if (h.magic != MAGIC)
		return -EBADMSG;
	if (h.version != WS_VERSION)
		return -ENOTSUP;
	if (memcmp(&h.id, id, sizeof *id) != 0)
		return -ESTALE;
	if (h.nruns > WORKING_SET_RUNS_MAX ||
	    (uint64_t)st.st_size != sizeof h + h.nruns * sizeof *ws->run)
		return -EBADMSG;
	ws->n = (size_t)h.nruns;
	ws->run = malloc(ws->n * sizeof *ws->run + 1);
	if (ws->run == NULL)
		return -ENOMEM;
	if ((r = read_all(fd, ws->run, ws->n * sizeof *ws->run)) < 0)
		return r;
	if (h.checksum != checksum(&h, ws->run, ws->n) || !sound(ws, id->size / WORKING_SET_PAGE))
		return -EBADMSG;
	for (size_t i = 0; i < ws->n; i++)
		ws->pages += ws->run[i].n;
	return 0;
}

int
working_set_load(const char *path, const struct file_identity *id, struct working_set *ws)
{
	int fd, r;

	*ws = (struct working_set){ 0 };
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = load(fd, id, ws);
	close(fd);
	if (r < 0)
		working_set_free(ws);
	return r;
}

int
working_set_save(const char *path, const struct file_identity *id, const struct working_set *ws)
{
	struct header h = { .magic = MAGIC, .version = WS_VERSION, .id = *id, .nruns = ws->n };
	char temporary[4096];
	uint64_t salt = 0;
	int fd, r;

	if (ws->n > WORKING_SET_RUNS_MAX)
		return -E2BIG;
	if (getrandom(&salt, sizeof salt, GRND_NONBLOCK) < 0)
		salt = (uint64_t)getpid();
	if (snprintf(temporary, sizeof temporary, "%s.%016llx", path, (unsigned long long)salt) >=
	    (int)sizeof temporary)
		return -ENAMETOOLONG;
	h.checksum = checksum(&h, ws->run, ws->n);
	fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0)
		return -errno;
	r = write_all(fd, &h, sizeof h);
	if (r == 0)
		r = write_all(fd, ws->run, ws->n * sizeof *ws->run);
	if (close(fd) < 0 && r == 0)
		r = -errno;
	if (r == 0 && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0)
		unlink(temporary);
	return r;
}

/* --- from bits --- */

struct maker {
	struct working_set *ws;
	size_t room;
};

static int
add_page(struct maker *m, uint64_t page)
{
	struct working_set *ws = m->ws;
	struct working_set_run *last = ws->n > 0 ? &ws->run[ws->n - 1] : NULL;

	ws->pages++;
	if (last != NULL && last->first + last->n == page) {
		last->n++;
		return 0;
	}
	if (ws->n == m->room) {
		const size_t room = m->room > 0 ? 2 * m->room : 64;
		struct working_set_run *run;

		if (ws->n == WORKING_SET_RUNS_MAX)
			return -E2BIG;
		run = realloc(ws->run, room * sizeof *run);
		if (run == NULL)
			return -ENOMEM;
		ws->run = run;
		m->room = room;
	}
	ws->run[ws->n++] = (struct working_set_run){ page, 1 };
	return 0;
}

int
working_set_make(struct working_set *ws, const _Atomic uint64_t *bits, uint64_t npages,
		 const struct working_set *also)
{
	struct maker m = { .ws = ws };
	size_t at = 0; /* run of also */
	int r = 0;

	*ws = (struct working_set){ 0 };
	for (uint64_t i = 0; i < npages && r == 0; i++) {
		bool set;

		while (also != NULL && at < also->n && also->run[at].first + also->run[at].n <= i)
			at++;
		set = also != NULL && at < also->n && also->run[at].first <= i;
		if (!set) {
			const uint64_t w =
				atomic_load_explicit(&bits[i / 64], memory_order_relaxed);

			/* Nothing in the word: on to the next, or to the run that begins first. */
			if (i % 64 == 0 && w == 0 &&
			    (also == NULL || at == also->n || also->run[at].first >= i + 64)) {
				i += 63;
				continue;
			}
			set = w >> i % 64 & 1;
		}
		if (set)
			r = add_page(&m, i);
	}
	if (r < 0)
		working_set_free(ws);
	return r;
}

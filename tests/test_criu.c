/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_criu.c: what CRIU says, byte for byte, the images that it writes, and memory behind it.
 *
 *	test			vmm, a child (vmm.h)			the daemon's side: this process, too
 *	writes images		memory behind a userfaultfd		a session in a loop
 *	plays CRIU: gives the vmm's userfaultfd away, as a task's, and keeps no copy; nor does the vmm
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu.h"
#include "criu_image.h"
#include "door.h"
#include "pmap/uffd_abi.h"
#include "vmm.h"

TestSuite(criu, .timeout = 110);

#define N ((uint64_t)1024)
#define FEATURES                                                                          \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | \
	 UFFD_FEATURE_EVENT_UNMAP)
#define SIGBUSES(n) ((int64_t)(n) << 32)
#define HERE CRIU_PRESENT
#define LAZY (CRIU_LAZY | CRIU_PRESENT)
#define LAZY_OLD (CRIU_LAZY | CRIU_PARENT)
#define STALE UINT64_C(1000000) /* added to a page's number: content that nobody is to see */

/* --- images --- */

/* Bytes of an image, as CRIU 4.1.1 and 4.2 write them. */
struct bytes {
	unsigned char b[65536];
	size_t n;
};

static void
u32(struct bytes *o, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		o->b[o->n++] = (unsigned char)(v >> 8 * i);
}

static void
varint(struct bytes *o, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		o->b[o->n++] = (unsigned char)(v | 0x80);
	o->b[o->n++] = (unsigned char)v;
}

static void
number(struct bytes *o, unsigned field, uint64_t v)
{
	varint(o, field << 3);
	varint(o, v);
}

/* A message, behind its length. */
static void
message(struct bytes *o, const struct bytes *m)
{
	u32(o, (uint32_t)m->n);
	memcpy(o->b + o->n, m->b, m->n);
	o->n += m->n;
}

static void
magic(struct bytes *o, uint32_t m)
{
	o->n = 0;
	u32(o, 0x54564319);
	u32(o, m);
}

static char dir[] = "/tmp/test_criu.XXXXXX";
static struct bytes out, msg, part;

static const char *
path_of(const char *name)
{
	static char p[4][160];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(p[i], sizeof p[i], "%s/%s", dir, name);
	return p[i];
}

static void
save(const char *name, const void *b, size_t n)
{
	FILE *f = fopen(path_of(name), "we");

	cr_assert(f != NULL, "%s: %s", name, strerror(errno));
	cr_assert(n == 0 || fwrite(b, n, 1, f) == 1);
	cr_assert(zero(int, fclose(f)));
}

/* inventory.img, and a pstree.img of so many tasks. */
static void
make_tree(const uint32_t pid[], unsigned n)
{
	msg.n = out.n = 0;
	u32(&out, 0x58313116);
	number(&msg, 1, 2);
	number(&msg, 2, 1);
	message(&out, &msg);
	save("inventory.img", out.b, out.n);
	magic(&out, 0x50273030);
	for (unsigned i = 0; i < n; i++) {
		msg.n = 0;
		number(&msg, 1, pid[i]);
		number(&msg, 2, 1);
		number(&msg, 3, pid[i]);
		number(&msg, 4, pid[i]);
		number(&msg, 5, pid[i]);
		number(&msg, 5, pid[i] + 1);
		message(&out, &msg);
	}
	save("pstree.img", out.b, out.n);
}

struct map {
	char in[64]; /* "" or "parent/"... */
	uint32_t pid, id;
	uint64_t address;
	struct bytes pagemap;
	FILE *pages;
	bool wide; /* as 4.2 writes it */
};

static void
map_begin(struct map *m, const char *in, uint32_t pid, uint32_t id, uint64_t address)
{
	char name[128];

	snprintf(m->in, sizeof m->in, "%s", in);
	m->pid = pid;
	m->id = id;
	m->address = address;
	m->wide = false;
	magic(&m->pagemap, 0x56084025);
	msg.n = 0;
	number(&msg, 1, id);
	message(&m->pagemap, &msg);
	snprintf(name, sizeof name, "%spages-%u.img", in, id);
	m->pages = fopen(path_of(name), "we");
	cr_assert(m->pages != NULL);
}

/* Pages [first, first + n) of the memory, whose content is that of those from `content` on. */
static void
map_entry(struct map *m, uint64_t first, uint64_t n, uint32_t flags, uint64_t content)
{
	uint64_t w[VMM_PAGE / 8];

	msg.n = 0;
	number(&msg, 1, m->address + first * VMM_PAGE);
	if (!m->wide)
		number(&msg, 2, n);
	number(&msg, 4, flags);
	if (m->wide)
		number(&msg, 5, n);
	message(&m->pagemap, &msg);
	for (uint64_t p = 0; p < n && flags & CRIU_PRESENT; p++) {
		for (unsigned i = 0; i < VMM_PAGE / 8; i++)
			w[i] = vmm_word(content + p, i);
		cr_assert(fwrite(w, sizeof w, 1, m->pages) == 1);
	}
}

static void
map_end(struct map *m)
{
	char name[128];

	cr_assert(zero(int, fclose(m->pages)));
	snprintf(name, sizeof name, "%spagemap-%u.img", m->in, m->pid);
	save(name, m->pagemap.b, m->pagemap.n);
}

static void
add_vma(uint64_t start, uint64_t end, uint64_t madv)
{
	part.n = 0;
	number(&part, 1, start);
	number(&part, 2, end);
	number(&part, 3, 0);
	number(&part, 4, 0);
	number(&part, 5, PROT_READ | PROT_WRITE);
	number(&part, 6, MAP_PRIVATE | MAP_ANONYMOUS);
	number(&part, 7, 0x201);
	number(&part, 8, 1);
	if (madv != 0)
		number(&part, 9, madv);
	varint(&msg, 14 << 3 | 2);
	varint(&msg, part.n);
	memcpy(msg.b + msg.n, part.b, part.n);
	msg.n += part.n;
}

/* Mappings: of pages [0, n), in two parts; of the second half a child has zeros, if that is wanted. */
static void
make_mm(uint32_t pid, uint64_t address, uint64_t n, bool wiped)
{
	char name[64];

	msg.n = 0;
	number(&msg, 1, 0x400000); /* start of code, and so on */
	add_vma(0x400000, 0x401000, 0);
	add_vma(address, address + n / 2 * VMM_PAGE, 0);
	add_vma(address + n / 2 * VMM_PAGE, address + n * VMM_PAGE,
		wiped ? UINT64_C(1) << MADV_WIPEONFORK : 0);
	magic(&out, 0x57492820);
	message(&out, &msg);
	snprintf(name, sizeof name, "mm-%u.img", pid);
	save(name, out.b, out.n);
}

/*
 * Images of a task that has all of its pages but [600, 610), which are zeros: in four entries, with some in front that are not ours, so that
 * no page is where its number says.
 */
static void
make_task(uint32_t pid, uint32_t id, const struct vmm *v)
{
	static struct map m;

	map_begin(&m, "", pid, id, v->address);
	m.wide = id % 2 == 0;
	m.address -= 16 * VMM_PAGE;
	map_entry(&m, 0, 7, HERE, STALE);
	m.address = v->address;
	map_entry(&m, 0, 300, LAZY, 0);
	map_entry(&m, 300, 300, LAZY, 300);
	map_entry(&m, 610, v->npages - 610, LAZY, 610);
	map_end(&m);
	make_mm(pid, v->address, v->npages, false);
}

/* --- the daemon's side --- */

static unsigned complete, descriptors_before, threads_before;
static struct criu_config config;

static const struct logger logger = { .fn = collect };

static void
on_session_gone(void *ctx, struct session *s)
{
	door_gone(ctx, s);
	complete += criu_complete(s);
}

static int
open_session(uv_loop_t *loop, int connection, struct session **s)
{
	return criu_open(loop, connection, &config, s);
}

static void
up(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	config = (struct criu_config){ .dir = dir, .log = logger, .gone = on_session_gone };
	door_open(path_of(CRIU_SOCKET), open_session);
}

static void
down(void)
{
	char command[200];

	for (struct session *s = session_first(), *next; s != NULL; s = next) {
		next = s->next;
		criu_end(s, FILL_END_DROP, 0);
	}
	door_empty(VMM_DEADLINE_MS);
	door_close();
	snprintf(command, sizeof command, "rm -rf %s", dir);
	cr_assert(zero(int, system(command)));
}

struct want {
	enum up_fault_kind kind;
	uint64_t n;
};

static bool
has_served(void *arg)
{
	const struct want *w = arg;

	return door_counts().faults[w->kind] >= w->n;
}

static void
served(enum up_fault_kind kind, uint64_t n)
{
	struct want w = { kind, n };

	vmm_until(has_served, &w, VMM_DEADLINE_MS, "as many faults as there should be");
}

/* --- CRIU's side --- */

static void
begin(struct vmm *v, uint64_t npages)
{
	const struct vmm_config cfg = { .npages = npages, .features = FEATURES };

	vmm_start(v, &cfg);
	cr_assert(zero(i64, vmm_do(v, VMM_CLOSE_UFFD, 0, 0, 0)));
}

static int
dial(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(sun.sun_path, path_of(CRIU_SOCKET));
	/* The verb's file is there a moment before it listens. */
	for (unsigned i = 0; connect(fd, (struct sockaddr *)&sun, sizeof sun) < 0; i++) {
		cr_assert(eq(int, errno, ECONNREFUSED));
		cr_assert(lt(uint, i, VMM_DEADLINE_MS), "nobody listens");
		poll(NULL, 0, 1);
	}
	return fd;
}

static ssize_t
say(int fd, const void *data, size_t n, const int give[], unsigned ngive)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(8 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)data, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (ngive > 0) {
		struct cmsghdr *c;

		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(ngive * sizeof(int));
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(ngive * sizeof(int));
		memcpy(CMSG_DATA(c), give, ngive * sizeof(int));
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL);
}

static void
says(int fd, int32_t word)
{
	cr_assert(eq(i64, say(fd, &word, sizeof word, NULL, 0), sizeof word));
}

/* The only copy goes. */
static void
gives(int fd, struct vmm *v)
{
	cr_assert(eq(i64, say(fd, "\0", 1, &v->uffd, 1), 1));
	close(v->uffd);
	v->uffd = -1;
}

static void
gives_task(int fd, int32_t pid, struct vmm *v)
{
	says(fd, pid);
	gives(fd, v);
}

/* The only task, number 100. */
static int
comes(struct vmm *v)
{
	int fd;

	descriptors_before = vmm_descriptors() - 1; /* its userfaultfd */
	fd = dial();
	gives_task(fd, 100, v);
	return fd;
}

/* One whose memory is registered once its userfaultfd has been given away. */
static int
begin_late(struct vmm *v)
{
	const struct vmm_config cfg = { .npages = N, .features = FEATURES, .late = true };

	vmm_start(v, &cfg);
	make_tree((uint32_t[]){ 100 }, 1);
	make_task(100, 1, v);
	return comes(v);
}

static void
finishes(int fd)
{
	cr_assert(eq(i64, say(fd, "FTSR", 4, NULL, 0), 4));
	close(fd);
}

#define VERIFIES(v, first, n) cr_assert(zero(i64, vmm_do(v, VMM_VERIFY, first, n, 0)), "%s", logged)
#define ARE_ZEROS(v, first, n) cr_assert(zero(i64, vmm_do(v, VMM_ZEROS, first, n, 0)), "%s", logged)

/* All that make_task() has said. */
static void
is_right(struct vmm *v)
{
	VERIFIES(v, 0, 600);
	ARE_ZEROS(v, 600, 10);
	VERIFIES(v, 610, v->npages - 610);
}

static bool
one_has_left(void *arg)
{
	return door_came > 0 && door_is_empty(arg);
}

static void
is_transferred(unsigned n)
{
	vmm_until(one_has_left, NULL, VMM_DEADLINE_MS, "transferred");
	cr_assert(eq(uint, complete, n), "%s", logged);
	cr_assert(has_logged("nothing is missing any more"), "%s", logged);
	/* Those of tasks, children, images. */
	cr_assert(eq(uint, vmm_descriptors(), descriptors_before));
}

/* One task, number 100: its images are there, and it has not come yet. */
static int
begin_one(struct vmm *v, uint64_t npages)
{
	begin(v, npages);
	make_tree((uint32_t[]){ 100 }, 1);
	make_task(100, 1, v);
	descriptors_before = vmm_descriptors() - 1; /* its userfaultfd */
	threads_before = vmm_threads();
	return dial();
}

/* --- words --- */

static char why[300];

static struct criu_pagemap
reads_pagemap(const void *b, size_t n)
{
	struct criu_pagemap pm;

	cr_assert(zero(int, criu_parse_pagemap(b, n, &pm, why, sizeof why)), "%s", why);
	return pm;
}

/* Of a dump of redis by CRIU 4.1.1. */
Test(criu, in_words_captured_images_are_read)
{
	static const unsigned char pstree[] = {
		0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50, 0x14, 0,    0,
		0,    0x08, 0x17, 0x10, 0,    0x18, 0x17, 0x20, 0x17, 0x28, 0x17,
		0x28, 0x19, 0x28, 0x1a, 0x28, 0x1b, 0x28, 0x1c, 0x28, 0x1d,
	};
	static const unsigned char pagemap[] = {
		0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 0x02, 0,    0,	  0,
		0x08, 0x01, 0x0c, 0,	0,    0,    0x08, 0x80, 0xa0, 0x9a, 0xc1, 0xd5,
		0xc3, 0x15, 0x10, 0x01, 0x20, 0x04, 0x0c, 0,	0,    0,    0x08, 0x80,
		0xa0, 0xba, 0xc2, 0xd5, 0xc3, 0x15, 0x10, 0x17, 0x20, 0x06,
	};
	struct criu_pagemap pm = reads_pagemap(pagemap, sizeof pagemap);
	struct criu_tasks t;

	cr_assert(zero(int, criu_parse_pstree(pstree, sizeof pstree, &t, why, sizeof why)), "%s",
		  why);
	cr_assert(eq(sz, t.n, 1));
	cr_assert(eq(u32, t.pid[0], 23));
	cr_assert(eq(sz, pm.n, 2));
	cr_assert(eq(u32, pm.pages_id, 1));
	cr_assert(eq(u64, pm.entry[0].len, VMM_PAGE));
	cr_assert(eq(u32, pm.entry[0].flags, CRIU_PRESENT));
	cr_assert(eq(u64, pm.entry[0].start, UINT64_C(0x561d58269000)));
	cr_assert(eq(u64, pm.entry[1].start, UINT64_C(0x561d584e9000)));
	cr_assert(eq(u64, pm.entry[1].len, 23 * VMM_PAGE));
	cr_assert(eq(u64, pm.entry[1].offset, VMM_PAGE));
	cr_assert(eq(u32, pm.entry[1].flags, LAZY));
	cr_assert(eq(u64, pm.bytes, 24 * VMM_PAGE));
	free(pm.entry);
	free(t.pid);
}

/* Cut anywhere, it is refused, with nothing left; each bit of it turned round, it does no harm. */
Test(criu, in_words_images_that_are_broken_are_refused)
{
	static struct bytes good, bad;
	struct criu_pagemap pm;

	magic(&good, 0x56084025);
	msg.n = 0;
	number(&msg, 1, 7);
	message(&good, &msg);
	for (unsigned i = 0; i < 3; i++) {
		msg.n = 0;
		number(&msg, 1, (16 + i * 16) * VMM_PAGE);
		number(&msg, 4, LAZY);
		number(&msg, 5, 16);
		message(&good, &msg);
	}
	for (size_t n = 0; n < good.n; n++) {
		const int r = criu_parse_pagemap(good.b, n, &pm, why, sizeof why);

		/* What ends with a message is an image of fewer. */
		cr_assert(r < 0 || pm.n < 3, "%zu of %zu bytes", n, good.n);
		cr_assert(r == 0 || (pm.entry == NULL && pm.n == 0));
		free(pm.entry);
	}
	for (size_t i = 0; i < good.n * 8; i++) {
		bad = good;
		bad.b[i / 8] ^= (unsigned char)(1 << i % 8);
		if (criu_parse_pagemap(bad.b, bad.n, &pm, why, sizeof why) == 0)
			free(pm.entry);
	}
}

static int
parse_entry(uint64_t address, uint64_t pages, uint32_t flags)
{
	struct criu_pagemap pm;
	int r;

	magic(&out, 0x56084025);
	msg.n = 0;
	number(&msg, 1, 7);
	message(&out, &msg);
	for (unsigned i = 0; i < 2; i++) {
		msg.n = 0;
		number(&msg, 1, i == 0 ? 0x10000 : address);
		number(&msg, 4, i == 0 ? LAZY : flags);
		number(&msg, 5, i == 0 ? 2 : pages);
		message(&out, &msg);
	}
	r = criu_parse_pagemap(out.b, out.n, &pm, why, sizeof why);
	if (r == 0)
		free(pm.entry);
	return r;
}

Test(criu, in_words_pages_that_make_no_sense_are_refused)
{
	cr_assert(zero(int, parse_entry(0x12000, 1, LAZY)));
	cr_assert(eq(int, parse_entry(0x11000, 1, LAZY), -EINVAL), "twice");
	cr_assert(eq(int, parse_entry(0x1000, 1, LAZY), -EINVAL), "out of order");
	cr_assert(eq(int, parse_entry(0x20001, 1, LAZY), -EINVAL), "misaligned");
	cr_assert(eq(int, parse_entry(0x20000, 0, LAZY), -EINVAL), "none");
	cr_assert(eq(int, parse_entry(0x20000, UINT64_C(1) << 52, LAZY), -EINVAL), "too many");
	cr_assert(eq(int, parse_entry(0x20000, UINT64_MAX, LAZY), -EINVAL), "too many");
	cr_assert(eq(int, parse_entry(UINT64_C(0x7ffffffffffff000), 1, LAZY), -EINVAL), "too high");
	cr_assert(eq(int, parse_entry(UINT64_MAX - 4095, 1, LAZY), -EINVAL), "too high");
	cr_assert(eq(int, parse_entry(0x20000, 1, 7), -EINVAL), "here and in the parent");
}

static void
mm_header(size_t n)
{
	magic(&out, 0x57492820);
	u32(&out, (uint32_t)n);
}

Test(criu, in_words_a_message_of_many_parts_does_not_take_all_memory)
{
	/* Mappings of the fewest bytes: each becomes a hundred. */
	const size_t n = CRIU_MESSAGE_MAX / 6 * 6;
	unsigned char *b;
	struct criu_vmas v;

	mm_header(n);
	b = malloc(out.n + n);
	cr_assert(b != NULL);
	memcpy(b, out.b, out.n);
	for (size_t i = 0; i < n; i += 6)
		memcpy(b + out.n + i, "\x72\x04\x08\x00\x10\x01", 6);
	cr_assert(eq(int, criu_parse_mm(b, out.n + n, &v, why, sizeof why), -EPROTO), "%s", why);
	cr_assert(v.vma == NULL);
	mm_header(CRIU_MESSAGE_MAX + 1);
	cr_assert(eq(int, criu_parse_mm(out.b, out.n, &v, why, sizeof why), -E2BIG));
	free(b);
}

/* --- restores --- */

Test(criu, a_task_gets_what_it_asks_for_and_then_the_rest, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);

	gives_task(fd, 100, &v);
	VERIFIES(&v, 290, 20);
	ARE_ZEROS(&v, 600, 3);
	served(UP_FAULT_MAJOR, 20);
	served(UP_FAULT_ZERO, 3);
	cr_assert(zero(u64, door_counts().prefetched), "nothing comes before all is restored");
	cr_assert(eq(u64, door_counts().mapped, (N - 10) * VMM_PAGE));
	finishes(fd);
	is_transferred(1);
	is_right(&v);
	/* The pool of the loop stays. */
	cr_assert(le(uint, vmm_threads(), threads_before + 4));
	vmm_stop(&v);
}

/* As CRIU does it. */
Test(criu, memory_may_be_registered_after_its_userfaultfd_has_come, .init = up, .fini = down)
{
	struct vmm v;
	const int fd = begin_late(&v);

	/* What it needs at once it has read for itself. */
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 5, 1, 9)));
	cr_assert(zero(i64, vmm_do(&v, VMM_REGISTER, 0, N, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CLOSE_UFFD, 0, 0, 0)));
	VERIFIES(&v, 0, 5);
	finishes(fd);
	is_transferred(1);
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 5, 1, 9)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 5, 1, 0)));
	VERIFIES(&v, 6, 594);
	ARE_ZEROS(&v, 600, 10);
	VERIFIES(&v, 610, N - 610);
	vmm_stop(&v);
}

Test(criu, several_tasks_and_a_zombie_are_served, .init = up, .fini = down)
{
	struct vmm v[3];
	int fd;

	make_tree((uint32_t[]){ 7, 8, 9, 10 }, 4);
	for (unsigned i = 0; i < 3; i++) {
		begin(&v[i], N << i);
		make_task(7 + i, i + 1, &v[i]);
	}
	descriptors_before = vmm_descriptors() - 3;
	fd = dial();
	/* In any order, and in pieces. */
	gives_task(fd, 9, &v[2]);
	says(fd, -10);
	cr_assert(eq(i64, say(fd, "\7\0", 2, NULL, 0), 2));
	VERIFIES(&v[2], 0, 10);
	cr_assert(eq(i64, say(fd, "\0\0", 2, NULL, 0), 2));
	gives(fd, &v[0]);
	gives_task(fd, 8, &v[1]);
	for (unsigned i = 0; i < 3; i++)
		vmm_ask(&v[i], VMM_THREADS, 0, 512, 4);
	finishes(fd);
	for (unsigned i = 0; i < 3; i++)
		cr_assert(zero(i64, vmm_answer(&v[i])), "%s", logged);
	is_transferred(1);
	for (unsigned i = 0; i < 3; i++) {
		is_right(&v[i]);
		vmm_stop(&v[i]);
	}
}

Test(criu, a_task_without_lazy_pages_is_let_go, .init = up, .fini = down)
{
	static struct map m;
	struct vmm v;
	int fd;

	begin(&v, N);
	make_tree((uint32_t[]){ 100 }, 1);
	map_begin(&m, "", 100, 1, v.address);
	map_entry(&m, 0, 10, HERE, STALE);
	map_end(&m);
	make_mm(100, v.address, N, false);
	fd = comes(&v);
	ARE_ZEROS(&v, 20, 5);
	finishes(fd);
	is_transferred(1);
	ARE_ZEROS(&v, 20, N - 20);
	vmm_stop(&v);
}

Test(criu, a_restore_of_zombies_alone_is_complete, .init = up, .fini = down)
{
	int fd;

	make_tree((uint32_t[]){ 100 }, 1);
	descriptors_before = vmm_descriptors();
	fd = dial();
	says(fd, -100);
	finishes(fd);
	is_transferred(1);
}

Test(criu, pages_are_found_in_parents, .init = up, .fini = down)
{
	static struct map m;
	struct vmm v;
	int fd;

	begin(&v, N);
	make_tree((uint32_t[]){ 100 }, 1);
	cr_assert(zero(int, mkdir(path_of("1"), 0700)));
	cr_assert(zero(int, mkdir(path_of("2"), 0700)));
	cr_assert(zero(int, symlink("2", path_of("parent"))));
	cr_assert(zero(int, symlink("../1", path_of("2/parent"))));
	/* The first dump has all, most of it stale by now. */
	map_begin(&m, "1/", 100, 5, v.address);
	map_entry(&m, 0, 100, HERE, STALE);
	map_entry(&m, 100, 50, HERE, 100);
	map_entry(&m, 150, 150, HERE, 150);
	map_entry(&m, 300, N - 300, HERE, STALE);
	map_end(&m);
	map_begin(&m, "2/", 100, 1, v.address);
	map_entry(&m, 0, 100, LAZY, STALE);
	map_entry(&m, 100, 140, LAZY_OLD, 0);
	map_entry(&m, 240, 10, HERE, 240);
	map_entry(&m, 250, 50, CRIU_PARENT, 0);
	map_entry(&m, 300, 700, LAZY, 300);
	map_end(&m);
	map_begin(&m, "", 100, 1, v.address);
	m.wide = true;
	map_entry(&m, 0, 120, LAZY, 0);
	map_entry(&m, 120, 200, LAZY_OLD, 0);
	map_entry(&m, 320, 180, LAZY_OLD, 0);
	map_entry(&m, 500, N - 500, LAZY, 500);
	map_end(&m);
	make_mm(100, v.address, N, false);
	fd = comes(&v);
	VERIFIES(&v, 90, 60);
	VERIFIES(&v, 230, 30);
	finishes(fd);
	is_transferred(1);
	VERIFIES(&v, 0, N);
	vmm_stop(&v);
}

/* --- what tasks do --- */

Test(criu, a_fork_inherits_what_is_missing, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);
	int64_t pid;

	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 50);
	cr_assert(zero(i64, vmm_do(&v, VMM_FORK, 40, 100, 0)), "%s", logged);
	cr_assert(zero(i64, vmm_do(&v, VMM_FORK, 600, 10, 1)), "%s", logged);
	/* Nothing but a child of the task is there when the rest begins to come. */
	pid = vmm_do(&v, VMM_BECOME_CHILD, 0, 0, 0);
	cr_assert(gt(i64, pid, 0));
	VERIFIES(&v, 100, 100);
	finishes(fd);
	is_transferred(1);
	is_right(&v);
	kill((pid_t)pid, SIGKILL);
	vmm_stop(&v);
}

Test(criu, children_are_forked_while_pages_come, .init = up, .fini = down)
{
	struct vmm v;
	const uint64_t n = 16 * N;
	int fd = begin_one(&v, n);

	gives_task(fd, 100, &v);
	finishes(fd);
	for (unsigned i = 0; i < 20; i++)
		cr_assert(zero(i64, vmm_do(&v, VMM_FORK, 610 + i * 700, 500, 0)), "child %u: %s", i,
			  logged);
	is_transferred(1);
	is_right(&v);
	vmm_stop(&v);
}

/* MADV_WIPEONFORK, of which only the images tell. */
Test(criu, what_a_fork_wipes_is_zeros_in_the_child, .init = up, .fini = down)
{
	struct vmm v;
	int fd;

	begin(&v, N);
	make_tree((uint32_t[]){ 100 }, 1);
	make_task(100, 1, &v);
	make_mm(100, v.address, N, true);
	cr_assert(zero(i64, vmm_do(&v, VMM_WIPE, N / 2, N / 2, 0)));
	fd = comes(&v);
	VERIFIES(&v, 700, 5);
	cr_assert(zero(i64, vmm_do(&v, VMM_FORK, 0, N / 2, 0)), "%s", logged);
	cr_assert(zero(i64, vmm_do(&v, VMM_FORK, N / 2, N / 2, 1)), "%s", logged);
	finishes(fd);
	is_transferred(1);
	is_right(&v);
	vmm_stop(&v);
}

Test(criu, what_is_moved_is_found_where_it_is, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);

	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_MOVE, 0, 0, 0)));
	VERIFIES(&v, 10, 30);
	ARE_ZEROS(&v, 600, 2);
	finishes(fd);
	cr_assert(zero(i64, vmm_do(&v, VMM_MOVE, 0, 0, 0)));
	VERIFIES(&v, 610, 30);
	is_transferred(1);
	is_right(&v);
	vmm_stop(&v);
}

Test(criu, what_is_removed_is_zeros, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);

	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 10, 40, 0)));
	ARE_ZEROS(&v, 10, 5);
	finishes(fd);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 700, 100, 0)));
	is_transferred(1);
	ARE_ZEROS(&v, 10, 40);
	ARE_ZEROS(&v, 700, 100);
	VERIFIES(&v, 0, 10);
	VERIFIES(&v, 50, 550);
	VERIFIES(&v, 800, N - 800);
	vmm_stop(&v);
}

Test(criu, what_is_unmapped_is_not_waited_for, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);

	gives_task(fd, 100, &v);
	cr_assert(zero(i64, vmm_do(&v, VMM_UNMAP, 100, 200, 0)));
	VERIFIES(&v, 300, 20);
	finishes(fd);
	cr_assert(zero(i64, vmm_do(&v, VMM_UNMAP, 1000, 24, 0)));
	is_transferred(1);
	VERIFIES(&v, 0, 100);
	VERIFIES(&v, 300, 300);
	ARE_ZEROS(&v, 600, 10);
	VERIFIES(&v, 610, 390);
	vmm_stop(&v);
}

/* Pages of the images that are behind no userfaultfd are nobody's to wait for. */
Test(criu, what_is_not_registered_is_not_waited_for, .init = up, .fini = down)
{
	struct vmm v;
	const int fd = begin_late(&v);

	cr_assert(zero(i64, vmm_do(&v, VMM_REGISTER, 0, N / 2, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CLOSE_UFFD, 0, 0, 0)));
	finishes(fd);
	is_transferred(1);
	VERIFIES(&v, 0, N / 2);
	vmm_stop(&v);
}

/* Threads touch one half while the other one is removed; all of it comes meanwhile. */
Test(criu, a_storm_of_faults_and_events_meets_the_transfer, .init = up, .fini = down)
{
	static struct map m;
	const uint64_t n = 8 * N;
	struct vmm v;
	int fd;

	begin(&v, n);
	make_tree((uint32_t[]){ 100 }, 1);
	map_begin(&m, "", 100, 1, v.address);
	map_entry(&m, 0, n, LAZY, 0);
	map_end(&m);
	make_mm(100, v.address, n, false);
	fd = comes(&v);
	vmm_ask(&v, VMM_STORM, 0, 0, 3000);
	finishes(fd);
	cr_assert(zero(i64, vmm_answer(&v)), "%s", logged);
	is_transferred(1);
	VERIFIES(&v, 0, n / 2);
	vmm_stop(&v);
}

/* --- what goes wrong --- */

Test(criu, pages_behind_the_end_of_a_file_that_is_cut_short_are_sigbus, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);

	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 50);
	/* Its pages are 7 further back than in memory; in the middle of page 500. */
	cr_assert(zero(int, truncate(path_of("pages-1.img"), 507 * VMM_PAGE + 100)));
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 495, 10, 0), SIGBUSES(5)), "%s", logged);
	finishes(fd);
	door_empty(VMM_DEADLINE_MS);
	cr_assert(zero(uint, complete));
	logs("514 lost");
	/* Nobody serves it any more. */
	VERIFIES(&v, 0, 500);
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 500, 100, 0), SIGBUSES(100)));
	ARE_ZEROS(&v, 600, 10);
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 610, N - 610, 0), SIGBUSES(N - 610)));
	vmm_stop(&v);
}

static bool
is_waited_for(void *arg)
{
	const struct vmm *v = arg;
	struct pollfd p = { .fd = v->control, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

/* Where there is no UFFDIO_POISON a page that can't be read is waited for: who is to be signalled is not known. */
Test(criu, without_poison_lost_pages_keep_the_userfaultfd_open, .init = up, .fini = down)
{
	struct vmm v;
	int fd;

	config.call_mask = FILL_NO_POISON;
	fd = begin_one(&v, N);
	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 50);
	cr_assert(zero(int, truncate(path_of("pages-1.img"), 507 * VMM_PAGE)));
	finishes(fd);
	logs("cut short");
	VERIFIES(&v, 0, 500);
	vmm_ask(&v, VMM_VERIFY, 500, 1, 0);
	logs("waits for ever");
	cr_assert(not(is_waited_for(&v)), "it has been given something");
	cr_assert(session_first() != NULL);
	vmm_stop(&v);
	door_empty(VMM_DEADLINE_MS);
	cr_assert(zero(uint, complete));
}

static void
refuses_images(const char *reason)
{
	char byte;
	int fd = dial();
	struct pollfd p = { .fd = fd, .events = POLLIN };

	door_somebody();
	door_empty(VMM_DEADLINE_MS);
	cr_assert(eq(int, poll(&p, 1, VMM_DEADLINE_MS), 1));
	cr_assert(zero(i64, recv(fd, &byte, 1, 0)));
	close(fd);
	cr_assert(zero(uint, complete));
	cr_assert(has_logged(reason), "%s: %s", reason, logged);
	door_came = door_left = 0;
	log_clear();
}

Test(criu, images_that_make_no_sense_are_refused, .init = up, .fini = down)
{
	static struct map m;
	struct vmm v;

	begin(&v, N);
	refuses_images("inventory.img: No such file");
	make_tree((uint32_t[]){ 100 }, 1);
	save("inventory.img", "\x16\x31\x31\x58\x02\0\0\0\x08\x03", 10);
	refuses_images("images of version 3");
	make_tree((uint32_t[]){ 100, 100 }, 2);
	refuses_images("task 100 is there twice");
	make_tree((uint32_t[]){ 100 }, 1);
	make_task(100, 1, &v);
	cr_assert(zero(int, unlink(path_of("mm-100.img"))));
	refuses_images("mm-100.img: No such file");
	make_mm(100, v.address, N, false);
	cr_assert(zero(int, truncate(path_of("pages-1.img"), 1000 * VMM_PAGE)));
	refuses_images("cut short");
	cr_assert(zero(int, unlink(path_of("pages-1.img"))));
	refuses_images("pages-1.img: No such file");
	cr_assert(zero(int, truncate(path_of("pagemap-100.img"), 40)));
	refuses_images("cut short");
	cr_assert(zero(int, unlink(path_of("pagemap-100.img"))));
	cr_assert(zero(int, mkfifo(path_of("pagemap-100.img"), 0600)));
	refuses_images("no regular file");
	cr_assert(zero(int, unlink(path_of("pagemap-100.img"))));
	map_begin(&m, "", 100, 1, v.address);
	map_entry(&m, 0, 10, LAZY_OLD, 0);
	map_end(&m);
	refuses_images("is in the parent, and there is none");
	/* Parents that have no end. */
	cr_assert(zero(int, symlink(".", path_of("parent"))));
	refuses_images("too many parents");
	cr_assert(zero(int, unlink(path_of("parent"))));
	map_begin(&m, "", 100, 1, v.address);
	map_entry(&m, 0, 10, CRIU_LAZY, 0);
	map_end(&m);
	refuses_images("with another machine");
	vmm_stop(&v);
}

static void
refuses(const char *reason)
{
	door_empty(VMM_DEADLINE_MS);
	cr_assert(has_logged(reason), "%s: %s", reason, logged);
	cr_assert(zero(uint, complete));
	log_clear();
}

Test(criu, words_that_make_no_sense_are_refused, .init = up, .fini = down)
{
	struct vmm v;
	int pair[2], fd = begin_one(&v, N);

	cr_assert(zero(int, pipe2(pair, O_CLOEXEC)));
	logs("");
	says(fd, 0);
	door_somebody();
	refuses("no number of a task");
	close(fd);
	fd = dial();
	says(fd, 101);
	logs("do not have");
	refuses("a task that the images do not have");
	close(fd);
	fd = dial();
	says(fd, INT32_MIN);
	logs("no number");
	refuses("no number of a task");
	close(fd);
	fd = dial();
	says(fd, 100);
	cr_assert(eq(i64, say(fd, "\0", 1, NULL, 0), 1));
	logs("without");
	refuses("a task without its userfaultfd");
	close(fd);
	fd = dial();
	says(fd, 100);
	cr_assert(eq(i64, say(fd, "\0", 1, pair, 1), 1));
	logs("no userfaultfd");
	refuses("that is no userfaultfd");
	close(fd);
	fd = dial();
	says(fd, 100);
	cr_assert(eq(i64, say(fd, "\0", 1, (int[]){ v.uffd, pair[0] }, 2), 1));
	logs("more than one");
	refuses("more than one file descriptor");
	close(fd);
	fd = dial();
	cr_assert(
		eq(i64,
		   say(fd, "\x64\0\0\0", 4, (int[]){ v.uffd, pair[0], pair[1], v.uffd, v.uffd }, 5),
		   4));
	logs("belongs to no");
	refuses("belongs to no task");
	close(fd);
	close(pair[0]);
	close(pair[1]);
	/* Nothing of all that has been kept: it can still be had, once. */
	cr_assert(eq(uint, vmm_descriptors(), descriptors_before + 1));
	fd = dial();
	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 10);
	says(fd, 100);
	logs("for the second time");
	close(fd);
	vmm_stop(&v);
	door_empty(VMM_DEADLINE_MS);
}

Test(criu, a_userfaultfd_that_tells_too_little_is_refused, .init = up, .fini = down)
{
	const struct vmm_config cfg = { .npages = N, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct vmm v;
	int fd;

	vmm_start(&v, &cfg);
	make_tree((uint32_t[]){ 100 }, 1);
	make_task(100, 1, &v);
	fd = dial();
	gives_task(fd, 100, &v);
	logs("does not tell of fork()");
	door_empty(VMM_DEADLINE_MS);
	close(fd);
	vmm_stop(&v);
}

/* CRIU kills the tasks; what they touch until then is what it should be. */
Test(criu, a_restore_that_fails_is_served_until_its_tasks_are_gone, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, N);

	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 10);
	close(fd);
	logs("the restore has failed: CRIU has hung up");
	VERIFIES(&v, 10, 10);
	cr_assert(zero(u64, door_counts().prefetched));
	vmm_stop(&v);
	door_empty(5000);
	cr_assert(zero(uint, complete));
	cr_assert(eq(uint, vmm_descriptors(), descriptors_before - 1));
}

/* If they do not go, what they miss is SIGBUS: never zeros. */
Test(criu, after_a_restore_that_fails_nothing_reads_as_zeros, .init = up, .fini = down)
{
	struct vmm v;
	int fd;

	config.grace_ms = 300;
	fd = begin_one(&v, N);
	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 10);
	close(fd);
	logs("the restore has failed");
	door_empty(VMM_DEADLINE_MS);
	VERIFIES(&v, 0, 10);
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 10, 590, 0), SIGBUSES(590)));
	ARE_ZEROS(&v, 600, 10);
	cr_assert(zero(uint, complete));
	vmm_stop(&v);
}

Test(criu, a_task_that_is_killed_leaves_nothing, .init = up, .fini = down)
{
	struct vmm v[2];
	int fd;

	make_tree((uint32_t[]){ 7, 8 }, 2);
	for (unsigned i = 0; i < 2; i++) {
		begin(&v[i], 16 * N);
		make_task(7 + i, i + 1, &v[i]);
	}
	descriptors_before = vmm_descriptors();
	fd = dial();
	gives_task(fd, 7, &v[0]);
	gives_task(fd, 8, &v[1]);
	vmm_ask(&v[0], VMM_THREADS, 610, 8192, 4);
	served(UP_FAULT_MAJOR, 100);
	finishes(fd);
	vmm_stop(&v[0]);
	/* The other one notices nothing. */
	door_empty(VMM_DEADLINE_MS);
	cr_assert(eq(uint, complete, 1), "%s", logged);
	is_right(&v[1]);
	vmm_stop(&v[1]);
	cr_assert(eq(uint, vmm_descriptors(), descriptors_before - 4));
}

/* SIGTERM: what is missing is filled. */
Test(criu, a_session_that_is_ended_has_all_its_pages, .init = up, .fini = down)
{
	struct vmm v;
	int fd = begin_one(&v, 16 * N);

	gives_task(fd, 100, &v);
	finishes(fd);
	logs("restored: 1 task");
	if (session_first() != NULL)
		session_first()->ops->end(session_first());
	door_empty(VMM_DEADLINE_MS);
	is_right(&v);
	cr_assert(eq(uint, complete, 1), "%s", logged);
	vmm_stop(&v);
}

/* --- uffd-pagerd criu --- */

static pid_t
start_verb(const char *drain)
{
	char *argv[] = { (char[]){ "criu" },
			 (char[]){ "-D" },
			 dir,
			 (char[]){ "--work-dir" },
			 dir,
			 (char *)(uintptr_t)drain,
			 NULL };
	const pid_t pid = fork();

	cr_assert(ge(int, pid, 0));
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		freopen("/dev/null", "w", stderr);
		_exit(criu_main(drain != NULL ? 6 : 5, argv));
	}
	return pid;
}

static bool
is_listening(void *arg)
{
	struct stat st;

	(void)arg;
	return stat(path_of(CRIU_SOCKET), &st) == 0 && S_ISSOCK(st.st_mode);
}

static bool
has_ended(void *arg)
{
	siginfo_t info = { 0 };

	return waitid(P_PID, (id_t) * (pid_t *)arg, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
	       info.si_pid != 0;
}

static int
ends(pid_t pid)
{
	int status;

	vmm_until(has_ended, &pid, VMM_DEADLINE_MS, "uffd-pagerd criu has ended");
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	cr_assert(eq(int, !!WIFEXITED(status), 1), "status %#x", (unsigned)status);
	return WEXITSTATUS(status);
}

static void
up_alone(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	make_tree((uint32_t[]){ 100 }, 1);
}

static void
down_alone(void)
{
	char command[200];

	snprintf(command, sizeof command, "rm -rf %s", dir);
	cr_assert(zero(int, system(command)));
}

Test(criu, the_verb_ends_with_0_when_all_is_there, .init = up_alone, .fini = down_alone)
{
	struct vmm v;
	pid_t pid;
	int fd;

	begin(&v, 4 * N);
	make_task(100, 1, &v);
	pid = start_verb(NULL);
	vmm_until(is_listening, NULL, VMM_DEADLINE_MS, "listening");
	fd = dial();
	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 10);
	finishes(fd);
	cr_assert(zero(int, ends(pid)));
	is_right(&v);
	cr_assert(not(is_listening(NULL)), "its socket is left");
	vmm_stop(&v);
}

Test(criu, the_verb_ends_with_1_when_the_restore_fails, .init = up_alone, .fini = down_alone)
{
	struct vmm v;
	pid_t pid;
	int fd;

	begin(&v, N);
	make_task(100, 1, &v);
	pid = start_verb("--drain-seconds=1");
	vmm_until(is_listening, NULL, VMM_DEADLINE_MS, "listening");
	fd = dial();
	gives_task(fd, 100, &v);
	VERIFIES(&v, 0, 10);
	close(fd);
	vmm_stop(&v);
	cr_assert(eq(int, ends(pid), 1));
	pid = start_verb("--what");
	cr_assert(eq(int, ends(pid), 2));
}

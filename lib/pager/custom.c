/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * custom.c: the program's own pager behind the interface of a source.
 *
 * Its functions are called on a service thread, which serves other faults too, so they should hand the work to a
 * thread of their own unless it is short; up_request_complete() puts the request on its service's list and
 * wakes the service.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "pager/custom.h"
#include "pager/source.h"

struct custom {
	struct source src;
	struct up_pager_ops ops; /* (c) */
	void *ctx;		 /* (c) */
};

/* What the program sees as a struct up_request. */
static struct request *
request_of(const struct up_request *req)
{
	return (struct request *)(uintptr_t)req;
}

static struct up_request *
handle_of(struct request *req)
{
	return (struct up_request *)req;
}

static struct custom *
custom_of(struct source *src)
{
	return container_of(src, struct custom, src);
}

/* A request of a thread of the program, which waits for it. */
struct waiting {
	struct request req;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done; /* (lock) */
};

static int
call(struct custom *c, struct request *req, bool write)
{
	int (*const fn)(void *, struct up_request *) = write ? c->ops.page_out : c->ops.page_in;
	int r;

	if (fn == NULL)
		return -EROFS; /* changed all the same, by a debugger say */
	atomic_store(&req->handed_out, true);
	r = fn(c->ctx, handle_of(req));
	/* One that fails must not have been completed; if it has, that is what counts. */
	if (r < 0 && atomic_exchange(&req->handed_out, false))
		return r > SOURCE_CUT_OFF ? r : -EIO;
	return 0;
}

/* By the service only. */
static void
count_handed(struct service *s, struct source *src, bool write, int n)
{
	uint8_t *own = write ? &src->writes[s->id] : &src->reads[s->id];

	*own = (uint8_t)(*own + n);
	s->nhanded += (unsigned)n;
	s->nhanded_out += write ? (unsigned)n : 0;
}

static int
custom_start(struct service *s, struct source *src, struct request *req, bool write)
{
	int r;

	count_handed(s, src, write, 1);
	r = call(custom_of(src), req, write);
	if (r < 0)
		count_handed(s, src, write, -1);
	return r;
}

static int
custom_has(struct source *src, uint64_t index, uint64_t *before, uint64_t *after)
{
	struct custom *c = custom_of(src);
	size_t b = 0, a = 0;
	int r;

	*before = *after = 0;
	r = c->ops.has_page(c->ctx, index << PAGE_SHIFT, &b, &a);
	if (r < 0)
		return r > SOURCE_CUT_OFF ? r : -EIO;
	*before = b >> PAGE_SHIFT;
	*after = a >> PAGE_SHIFT;
	return r > 0;
}

static void
custom_cancel(struct source *src, struct request *req)
{
	struct custom *c = custom_of(src);

	if (c->ops.cancel != NULL)
		c->ops.cancel(c->ctx, handle_of(req));
}

static int
custom_write(struct source *src, uint64_t index, void *page, size_t len)
{
	struct waiting w = {
		.req = { .kind = REQ_PAGEOUT, .source = src, .index = index, .n = 1 },
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER,
	};
	int r;

	(void)len;
	w.req.io.iov[0].iov_base = page;
	r = call(custom_of(src), &w.req, true);
	if (r < 0)
		return r;
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	return w.req.status;
}

static int
custom_ended(struct source *src, uint64_t index, size_t want, size_t got)
{
	(void)src;
	(void)index;
	(void)want;
	(void)got;
	return -EIO; /* it says that it filled all of it, or that it failed */
}

static void
custom_destroy(struct source *src)
{
	struct custom *c = custom_of(src);

	if (c->ops.destroy != NULL)
		c->ops.destroy(c->ctx);
	free(c);
}

static const struct source_ops custom_ops = {
	.name = "custom",
	.contiguous = true,
	.start = custom_start,
	.write = custom_write,
	.cancel = custom_cancel,
	.has = custom_has,
	.ended = custom_ended,
	.destroy = custom_destroy,
};

int
custom_source(uint64_t size, const struct up_pager_ops *ops, void *ctx, struct source **src)
{
	struct custom *c = calloc(1, sizeof *c);

	if (c == NULL)
		return -ENOMEM;
	memcpy(&c->ops, ops, MIN(ops->size, sizeof c->ops));
	c->ctx = ctx;
	c->src.ops = &custom_ops;
	c->src.bytes = size;
	atomic_init(&c->src.refs, 1);
	c->src.asks = c->ops.has_page != NULL;
	*src = &c->src;
	return 0;
}

/*
 * Somebody is telling the pager that nobody wants this request, which it has just completed: the struct is not used for another one
 * before he has, or he would cancel that.  Put aside if so.
 */
static bool
being_cancelled(struct service *s, struct request *req)
{
	if (req->kind != REQ_PAGEIN)
		return false;
	source_let_go(s->p, req);
	pthread_mutex_lock(&s->cmd_lock);
	if (!atomic_load(&req->cancelling)) {
		pthread_mutex_unlock(&s->cmd_lock);
		return false;
	}
	req->next = s->completed;
	s->completed = req;
	pthread_mutex_unlock(&s->cmd_lock);
	return true;
}

void
source_completions(struct service *s)
{
	struct request *list, *next;

	pthread_mutex_lock(&s->cmd_lock);
	list = s->completed;
	s->completed = NULL;
	pthread_mutex_unlock(&s->cmd_lock);
	for (; list != NULL; list = next) {
		next = list->next;
		if (being_cancelled(s, list))
			continue;
		count_handed(s, list->source, list->kind == REQ_PAGEOUT, -1);
		list->io.result = list->status;
		list->io.done = (size_t)list->n << PAGE_SHIFT;
		source_done(s, list);
	}
}

/* --- what the program calls --- */

uint64_t
up_request_offset(const struct up_request *req)
{
	return request_of(req)->index << PAGE_SHIFT;
}

size_t
up_request_length(const struct up_request *req)
{
	const struct request *r = request_of(req);

	return source_length(r->source, r->index, r->n);
}

void *
up_request_buffer(const struct up_request *req)
{
	return request_of(req)->io.iov[0].iov_base;
}

void
up_request_complete(struct up_request *req, int status)
{
	struct request *r = request_of(req);
	struct service *s = r->service;
	sigset_t all, old;

	if (!atomic_exchange(&r->handed_out, false))
		return; /* twice */
	r->status = status > 0 || status <= SOURCE_CUT_OFF ? -EIO : status;
	if (s == NULL) {
		struct waiting *w = container_of(r, struct waiting, req);

		pthread_mutex_lock(&w->lock);
		w->done = true;
		pthread_cond_signal(&w->cond);
		pthread_mutex_unlock(&w->lock);
		return;
	}
	/* A handler that runs here and touches a page of such a pager would ask for the same lock. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	pthread_mutex_lock(&s->cmd_lock);
	r->next = s->completed;
	s->completed = r;
	s->io->ops->kick(s->io);
	pthread_mutex_unlock(&s->cmd_lock);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

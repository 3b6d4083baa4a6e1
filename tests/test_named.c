/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_named.c: named objects over the simulated kernel: a pager of the test's own, which keeps its pages in an
 * array, can be slow, fail and count.
 */
#include <errno.h>
#include <stdlib.h>

#include "pager/source.h"
#include "scene.h"

TestSuite(named, .timeout = 30);

#define NPAGES 4096

/* What the pager has, and what it was asked for. */
static uint64_t *store; /* NPAGES pages */
static unsigned nin, nout, nin_pages, nout_pages, ndestroyed;
static bool slow; /* requests are kept until the test completes them */
static int fail_in, fail_out;
static bool fail_after; /* a failing page-out has kept the bytes */
static struct up_request *kept[64];
static unsigned nkept;
static bool kept_out[64];

static void
carry_out(struct up_request *req, bool out)
{
	char *at = (char *)store + up_request_offset(req);

	if (out)
		memcpy(at, up_request_buffer(req), up_request_length(req));
	else
		memcpy(up_request_buffer(req), at, up_request_length(req));
}

static int
request(struct up_request *req, bool out)
{
	const int error = out ? fail_out : fail_in;

	cr_assert(eq(u64, up_request_offset(req) % PAGE_SIZE, 0));
	cr_assert(gt(sz, up_request_length(req), 0));
	if (error != 0 && out && fail_after)
		carry_out(req, out);
	if (error != 0)
		return error;
	if (slow) {
		cr_assert(lt(uint, nkept, ARRAY_SIZE(kept)));
		kept_out[nkept] = out;
		kept[nkept++] = req;
		return 0;
	}
	carry_out(req, out);
	up_request_complete(req, 0);
	return 0;
}

static int
page_in(void *ctx, struct up_request *req)
{
	cr_assert(eq(ptr, ctx, (void *)&store));
	nin++;
	nin_pages += (unsigned)((up_request_length(req) + PAGE_MASK) / PAGE_SIZE);
	return request(req, false);
}

static int
page_out(void *ctx, struct up_request *req)
{
	cr_assert(eq(ptr, ctx, (void *)&store));
	nout++;
	nout_pages += (unsigned)((up_request_length(req) + PAGE_MASK) / PAGE_SIZE);
	return request(req, true);
}

static void
destroyed(void *ctx)
{
	cr_assert(eq(ptr, ctx, (void *)&store));
	ndestroyed++;
}

static struct up_request *cancelled[64];
static unsigned ncancelled;

static void
cancel(void *ctx, struct up_request *req)
{
	cr_assert(eq(ptr, ctx, (void *)&store));
	cancelled[ncancelled++] = req;
}

static const struct up_pager_ops ops = {
	.size = sizeof ops,
	.page_in = page_in,
	.page_out = page_out,
	.destroy = destroyed,
	.cancel = cancel,
};

static void
complete_kept(int status)
{
	for (unsigned i = 0; i < nkept; i++) {
		if (status == 0)
			carry_out(kept[i], kept_out[i]);
		up_request_complete(kept[i], status);
	}
	nkept = 0;
}

static struct up_object *
custom(uint64_t size)
{
	struct up_object *obj;

	store = calloc(NPAGES, PAGE_SIZE);
	cr_assert(store != NULL);
	for (size_t i = 0; i < NPAGES; i++) {
		for (unsigned k = 0; k < PAGE_SIZE / 8; k++)
			store[i * PAGE_SIZE / 8 + k] = word_of(i, k);
	}
	cr_assert(zero(int, up_object_create_custom(r->rt, size, &ops, &store, &obj)));
	return obj;
}

static uintptr_t
map_named(struct up_object *obj, size_t npages, unsigned flags, int prot)
{
	void *p;

	cr_assert(zero(int, up_map(r->rt, NULL, npages * PAGE_SIZE, prot, flags, obj, 0, &p)));
	return (uintptr_t)p;
}

static void
in_order(uintptr_t va, size_t npages)
{
	cr_assert(zero(int, up_advise(r->rt, (void *)va, npages * PAGE_SIZE, UP_ADVICE_RANDOM)));
}

static bool
stored(size_t page, uint64_t number)
{
	return is_page(store + page * PAGE_SIZE / 8, number);
}

static void
finish(struct up_object *obj)
{
	up_object_unref(obj);
	rig_down(r);
	cr_assert(eq(uint, ndestroyed, 1));
	free(store);
}

/* The same with two of them. */
static void
finish_both(struct up_object *obj)
{
	up_object_unref(obj);
	rig_down(r);
	cr_assert(eq(uint, ndestroyed, 2));
	free(store);
}

Test(named, pages_come_from_the_pager_as_they_are_touched)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(100 * PAGE_SIZE);
	va = map_named(obj, 100, UP_SHARED, PROT_READ);
	in_order(va, 100);
	check_page(va + 7 * PAGE_SIZE, 7);
	check_page(va + 99 * PAGE_SIZE, 99);
	cr_assert(eq(uint, nin, 2));
	check_pages(va, 100, 0);
	cr_assert(eq(uint, nin_pages, 100));
	cr_assert(eq(uint, nout, 0));
	finish(obj);
}

Test(named, a_stream_asks_for_runs)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom(400 * PAGE_SIZE);
	va = map_named(obj, 400, UP_SHARED, PROT_READ);
	check_pages(va, 400, 0);
	cr_assert(lt(uint, nin, 60), "%u requests for 400 pages", nin);
	cr_assert(eq(uint, nin_pages, 400));
	finish(obj);
}

/* Four times what fits: unchanged pages are forgotten and asked for again, and never written. */
Test(named, unchanged_pages_are_forgotten_and_not_written)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 2 });
	obj = custom(2048 * PAGE_SIZE);
	va = map_named(obj, 2048, UP_SHARED, PROT_READ | PROT_WRITE);
	check_pages(va, 2048, 0);
	check_pages(va, 2048, 0);
	cr_assert(gt(uint, nin_pages, 2048));
	cr_assert(eq(uint, nout, 0));
	cr_assert(eq(u64, rig_stats(r).swap_writes, 0));
	finish(obj);
}

static enum policy_queue
queue_of(uintptr_t va)
{
	const struct anon *an = anon_at(va);

	cr_assert(an != NULL && anon_in_core(an));
	return (enum policy_queue)page_at(&r->p->pages, an->loc)->node.queue;
}

/* It has no slot while it is out: its address is what the policy remembers. */
Test(named, the_policy_knows_a_page_that_comes_back_soon)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_S3FIFO });
	obj = custom(NPAGES * PAGE_SIZE);
	va = map_named(obj, 4, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 4);
	check_pages(va, 4, 0);
	cr_assert(eq(int, queue_of(va), PQ_FRESH));
	swap_out();
	cr_assert(eq(u64, r->p->pages.policy.ghost.clock, 4));
	check_page(va + 2 * PAGE_SIZE, 2);
	cr_assert(eq(int, queue_of(va + 2 * PAGE_SIZE), PQ_MAIN));
	finish(obj);
}

Test(named, what_is_written_to_a_shared_mapping_goes_back_under_pressure)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 3 });
	obj = custom(2048 * PAGE_SIZE);
	va = map_named(obj, 2048, UP_SHARED, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < 2048; i += 2)
		put_page(va + i * PAGE_SIZE, 10000 + i);
	for (size_t i = 0; i < 2048; i++)
		check_page(va + i * PAGE_SIZE, i % 2 ? i : 10000 + i);
	cr_assert(gt(uint, nout_pages, 0));
	cr_assert(eq(u64, rig_stats(r).swap_writes, 0), "it has a place of its own");
	unmap(va, 2048);
	for (size_t i = 0; i < 2048; i++)
		cr_assert(stored(i, i % 2 ? i : 10000 + i), "page %zu", i);
	finish(obj);
}

Test(named, sync_writes_what_changed_and_only_that)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	check_pages(va, 64, 0);
	put_page(va + 3 * PAGE_SIZE, 1003);
	put_page(va + 40 * PAGE_SIZE, 1040);
	put_page(va + 41 * PAGE_SIZE, 41); /* the same as it was */
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 64 * PAGE_SIZE, 0)));
	cr_assert(eq(uint, nout_pages, 2));
	cr_assert(stored(3, 1003) && stored(40, 1040));
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 64 * PAGE_SIZE, 0)));
	cr_assert(eq(uint, nout_pages, 2), "nothing has changed since");
	put_page(va + 3 * PAGE_SIZE, 2003);
	put_page(va + 4 * PAGE_SIZE, 2004);
	cr_assert(zero(int, up_sync(r->rt, (void *)(va + 4 * PAGE_SIZE), PAGE_SIZE, 0)));
	cr_assert(stored(3, 1003) && stored(4, 2004), "a part of the range");
	unmap(va, 64);
	cr_assert(stored(3, 2003));
	finish(obj);
}

/* As it is done for clients of a daemon: in between, others do what they like. */
Test(named, a_sync_in_pieces_lets_others_in_between)
{
	const size_t npages = 300;
	uintptr_t va, other = 0;
	struct up_object *obj;
	struct syncing y;
	unsigned n = 0;
	int s;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(npages * PAGE_SIZE);
	va = map_named(obj, npages, UP_SHARED, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < npages; i++)
		put_page(va + i * PAGE_SIZE, 5000 + i);
	y = (struct syncing){ .at = va, .end = va + npages * PAGE_SIZE };
	do {
		const unsigned before = nout_pages;

		s = sync_some(r->rt, &r->rt->p.map, &y, 0);
		cr_assert(le(uint, nout_pages - before, 64), "that is no piece");
		cr_assert(lt(uint, ++n, 20), "it does not get on: %#lx of %#lx",
			  (unsigned long)(y.at - va), npages * PAGE_SIZE);
		if (other != 0)
			unmap(other, 4);
		other = map_random(4);
		put_page(other, n);
		if (y.flush != NULL) {
			cr_assert(eq(ulong, y.at, y.end), "not all of it is written");
			sync_flushed(r->rt, &y, source_settle(y.flush));
		}
	} while (s > 0);
	cr_assert(eq(int, s, 0));
	cr_assert(ge(uint, n, 5));
	for (size_t i = 0; i < npages; i++)
		cr_assert(stored(i, 5000 + i), "page %zu", i);

	/* A failure is kept until the end, and the rest is written all the same; what is not mapped in between matters only if that was said. */
	put_page(va, 1);
	put_page(va + 200 * PAGE_SIZE, 2);
	fail_out = -EIO;
	y = (struct syncing){ .at = va, .end = va + npages * PAGE_SIZE };
	cr_assert(eq(int, sync_some(r->rt, &r->rt->p.map, &y, 0), 1));
	fail_out = 0;
	while ((s = sync_some(r->rt, &r->rt->p.map, &y, 0)) > 0) {
		if (y.flush != NULL)
			sync_flushed(r->rt, &y, source_settle(y.flush));
	}
	cr_assert(eq(int, s, -EIO));
	cr_assert(stored(200, 2));
	put_page(va + 299 * PAGE_SIZE, 3);
	unmap(va + 10 * PAGE_SIZE, 10);
	y = (struct syncing){ .at = va, .end = va + npages * PAGE_SIZE };
	cr_assert(eq(int, sync_some(r->rt, &r->rt->p.map, &y, 0), -ENOMEM));
	cr_assert(not(stored(299, 3)));
	y.gaps = true;
	while ((s = sync_some(r->rt, &r->rt->p.map, &y, 0)) > 0) {
		if (y.flush != NULL)
			sync_flushed(r->rt, &y, source_settle(y.flush));
	}
	cr_assert(eq(int, s, 0));
	cr_assert(stored(299, 3) && stored(0, 1));
	finish(obj);
}

Test(named, a_failed_write_is_told_once_and_tried_again)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	va = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	put_page(va, 500);
	fail_out = -EIO;
	cr_assert(eq(int, up_sync(r->rt, (void *)va, 8 * PAGE_SIZE, 0), -EIO));
	cr_assert(rig_logged(r, "up_sync: writing back to the custom pager: EIO"));
	check_page(va, 500);
	fail_out = 0;
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 8 * PAGE_SIZE, 0)));
	cr_assert(stored(0, 500));
	finish(obj);
}

/* The page is then again what it was when it was read, but the source is not. */
Test(named, a_write_that_failed_may_have_changed_the_source_all_the_same)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	va = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	check_page(va, 0);
	put_page(va, 500);
	fail_out = -EIO;
	fail_after = true;
	cr_assert(eq(int, up_sync(r->rt, (void *)va, 8 * PAGE_SIZE, 0), -EIO));
	fail_out = 0;
	fail_after = false;
	cr_assert(stored(0, 500));
	put_page(va, 0);
	cr_assert(zero(int, up_advise(r->rt, (void *)va, 8 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	cr_assert(stored(0, 0), "what it had become was believed to be what the pager has");
	check_page(va, 0);
	finish(obj);
}

/* A write that failed at pageout is told by the next up_sync(), once; the page stayed in memory. */
Test(named, a_write_that_failed_at_pageout_is_told_by_sync)
{
	struct up_object *obj;
	uintptr_t va, other;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(32 * PAGE_SIZE);
	va = map_named(obj, 32, UP_SHARED, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < 32; i++)
		put_page(va + i * PAGE_SIZE, 700 + i);
	fail_out = -EIO;
	other = map_random(1500);
	put_pages(other, 1500, 0);
	cr_assert(gt(u64, rig_stats(r).source_errors, 0), "no write failed: nothing was tested");
	fail_out = 0;
	check_pages(va, 32, 700);
	cr_assert(eq(int, up_sync(r->rt, (void *)va, 32 * PAGE_SIZE, 0), -EIO));
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 32 * PAGE_SIZE, 0)));
	for (size_t i = 0; i < 32; i++)
		cr_assert(stored(i, 700 + i));
	finish(obj);
}

Test(named, a_private_mapping_never_writes_back)
{
	struct up_object *obj;
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 4 });
	obj = custom(1500 * PAGE_SIZE);
	a = map_named(obj, 1500, UP_PRIVATE, PROT_READ | PROT_WRITE);
	b = map_named(obj, 1500, UP_PRIVATE, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < 1500; i += 3)
		put_page(a + i * PAGE_SIZE, 20000 + i);
	for (size_t i = 0; i < 1500; i += 5)
		put_page(b + i * PAGE_SIZE, 30000 + i);
	for (size_t i = 0; i < 1500; i++) {
		check_page(a + i * PAGE_SIZE, i % 3 ? i : 20000 + i);
		check_page(b + i * PAGE_SIZE, i % 5 ? i : 30000 + i);
	}
	cr_assert(eq(uint, nout, 0));
	cr_assert(gt(u64, rig_stats(r).swap_writes, 0));
	for (size_t i = 0; i < 1500; i++)
		cr_assert(stored(i, i));
	finish(obj);
}

Test(named, a_private_mapping_sees_what_a_shared_one_has_in_memory)
{
	struct up_object *obj;
	uintptr_t shared, priv;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	shared = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	priv = map_named(obj, 8, UP_PRIVATE, PROT_READ | PROT_WRITE);
	put_page(shared, 99);
	check_page(priv, 99);
	put_page(priv, 77);
	check_page(shared, 99);
	check_page(priv + PAGE_SIZE, 1);
	finish(obj);
}

/* Zeros are content like any other here: forgetting them would bring the source's bytes back. */
Test(named, zeros_over_a_named_page_stay_zeros)
{
	static char zeros[PAGE_SIZE];
	struct up_object *obj;
	uintptr_t shared, priv;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	shared = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	priv = map_named(obj, 8, UP_PRIVATE, PROT_READ | PROT_WRITE);
	check_page(priv + PAGE_SIZE, 1);
	cr_assert(eq(int, rig_touch(r, 0, priv + PAGE_SIZE, true, zeros, 0, PAGE_SIZE), SIM_OK));
	cr_assert(eq(int, rig_touch(r, 0, shared, true, zeros, 0, PAGE_SIZE), SIM_OK));
	rig_push_out(r, priv + PAGE_SIZE);
	rig_push_out(r, shared);
	rig_settle(r);
	check_zeros(priv + PAGE_SIZE);
	check_zeros(shared);
	check_page(shared + PAGE_SIZE, 1);
	finish(obj);
}

Test(named, discarding_brings_back_what_the_source_has)
{
	struct up_object *obj;
	uintptr_t shared, priv;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	shared = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	priv = map_named(obj, 8, UP_PRIVATE, PROT_READ | PROT_WRITE);
	put_page(priv, 123);
	put_page(shared + PAGE_SIZE, 456);
	cr_assert(zero(int, up_advise(r->rt, (void *)priv, 8 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	cr_assert(zero(int, up_advise(r->rt, (void *)shared, 8 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	check_page(priv, 0);
	check_page(shared + PAGE_SIZE, 456);
	cr_assert(stored(1, 456), "a shared page is written back first");
	finish(obj);
}

Test(named, clones_of_private_mappings_part_from_the_file_and_each_other)
{
	struct up_object *obj;
	uintptr_t a, b, c;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	a = map_named(obj, 64, UP_PRIVATE, PROT_READ | PROT_WRITE);
	put_page(a, 500);
	put_page(a + PAGE_SIZE, 501);
	cr_assert(zero(int, up_clone(r->rt, (void *)a, 64 * PAGE_SIZE, &p)));
	b = (uintptr_t)p;
	put_page(a, 600);
	put_page(b + 2 * PAGE_SIZE, 702);
	cr_assert(zero(int, up_clone(r->rt, (void *)b, 64 * PAGE_SIZE, &p)));
	c = (uintptr_t)p;
	cr_assert(zero(int, up_advise(r->rt, (void *)b, 64 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	check_page(a, 600);
	check_page(a + PAGE_SIZE, 501);
	check_pages(a + 2 * PAGE_SIZE, 62, 2);
	check_pages(b, 64, 0); /* what the pager has, through everything in between */
	check_page(c, 500);
	check_page(c + PAGE_SIZE, 501);
	check_page(c + 2 * PAGE_SIZE, 702);
	check_pages(c + 3 * PAGE_SIZE, 61, 3);
	unmap(a, 64);
	unmap(b, 64);
	check_page(c, 500);
	check_page(c + 2 * PAGE_SIZE, 702);
	cr_assert(eq(uint, nout, 0));
	finish(obj);
}

Test(named, a_failed_read_is_SIGBUS_on_that_page_until_it_is_discarded)
{
	struct up_object *obj;
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(16 * PAGE_SIZE);
	va = map_named(obj, 16, UP_SHARED, PROT_READ | PROT_WRITE);
	fail_in = -EACCES;
	cr_assert(eq(int, rig_touch(r, 0, va, false, &w, 0, 8), SIM_SIGBUS));
	cr_assert(rig_logged(r, "the custom pager failed with EACCES"));
	fail_in = 0;
	check_page(va + PAGE_SIZE, 1);
	cr_assert(eq(int, rig_touch(r, 0, va, false, &w, 0, 8), SIM_SIGBUS));
	cr_assert(zero(int, up_advise(r->rt, (void *)va, PAGE_SIZE, UP_ADVICE_DONTNEED)));
	check_page(va, 0);
	finish(obj);
}

Test(named, requests_may_take_their_time_and_block_nobody_else)
{
	struct up_object *obj;
	uintptr_t va, other;
	uint64_t w[4] = { 0 };

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ);
	in_order(va, 64);
	other = map_random(8);
	slow = true;
	for (unsigned t = 0; t < 4; t++)
		cr_assert(eq(int,
			     sim_touch(r->pm, 4 + t, va + t * 9 * PAGE_SIZE, false, &w[t], 0, 8),
			     SIM_FAULT));
	for (unsigned i = 0; i < 20; i++)
		rig_step(r);
	cr_assert(eq(uint, nkept, 4), "several are under way at once");
	put_pages(other, 8, 0);
	check_pages(other, 8, 0);
	complete_kept(0);
	slow = false;
	for (unsigned t = 0; t < 4; t++) {
		cr_assert(eq(int, rig_touch(r, 4 + t, va + t * 9 * PAGE_SIZE, false, &w[t], 0, 8),
			     SIM_OK));
		cr_assert(eq(u64, w[t], word_of(t * 9, 0)));
	}
	cr_assert(eq(uint, nin, 4));
	finish(obj);
}

Test(named, a_late_failure_is_SIGBUS_too)
{
	struct up_object *obj;
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(4 * PAGE_SIZE);
	va = map_named(obj, 4, UP_PRIVATE, PROT_READ);
	in_order(va, 4);
	slow = true;
	cr_assert(eq(int, sim_touch(r->pm, 0, va, false, &w, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 10; i++)
		rig_step(r);
	cr_assert(eq(uint, nkept, 1));
	complete_kept(-ETIMEDOUT);
	slow = false;
	cr_assert(eq(int, rig_touch(r, 0, va, false, &w, 0, 8), SIM_SIGBUS));
	check_page(va + PAGE_SIZE, 1);
	finish(obj);
}

/* The program goes on writing to a page whose old content is on its way: the new content must arrive last. */
Test(named, a_write_in_flight_is_not_overtaken)
{
	struct up_object *obj;
	uintptr_t va, other;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	va = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	put_page(va, 111);
	slow = true;
	other = map_random(1500);
	for (size_t i = 0; i < 1500 && nkept == 0; i++)
		put_page(other + i * PAGE_SIZE, i);
	cr_assert(gt(uint, nkept, 0), "it is not on its way");
	cr_assert(eq(int, sim_touch(r->pm, 3, va, true, &w, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 50; i++)
		rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 3, va, true, &w, 0, 8), SIM_FAULT),
		  "it waits for the write");
	slow = false;
	complete_kept(0);
	put_page(va, 222);
	cr_assert(stored(0, 111));
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 8 * PAGE_SIZE, 0)));
	cr_assert(stored(0, 222));
	finish(obj);
}

/* It is neither lost nor may an older one be read while it is on its way: who waits for it waits. */
Test(named, a_slow_write_does_not_time_out)
{
	struct up_object *obj;
	uintptr_t va, other;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 1 });
	obj = custom(8 * PAGE_SIZE);
	va = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	put_page(va, 111);
	slow = true;
	other = map_random(1500);
	for (size_t i = 0; i < 1500 && nkept == 0; i++)
		put_page(other + i * PAGE_SIZE, i);
	cr_assert(gt(uint, nkept, 0), "it is not on its way");
	cr_assert(eq(int, sim_touch(r->pm, 3, va, false, &w, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 2000; i++)
		rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 3, va, false, &w, 0, 8), SIM_FAULT));
	slow = false;
	complete_kept(0);
	cr_assert(eq(int, rig_touch(r, 3, va, false, &w, 0, 8), SIM_OK));
	check_page(va, 111);
	cr_assert(eq(u64, rig_stats(r).lost, 0));
	finish(obj);
}

/* A pager that never answers keeps its own pages, and nobody else from the swap. */
Test(named, writes_that_never_end_do_not_keep_others_from_the_swap)
{
	struct up_object *obj;
	uintptr_t va, other;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(256 * PAGE_SIZE);
	va = map_named(obj, 256, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 256);
	slow = false;
	/* Every other page, so that each is a request of its own. */
	for (size_t i = 0; i < 256; i += 2)
		put_page(va + i * PAGE_SIZE, 5000 + i);
	slow = true;
	other = map_random(1500);
	for (size_t i = 0; i < 1500; i++)
		put_page(other + i * PAGE_SIZE, 7000 + i);
	cr_assert(gt(uint, nkept, 0), "none is on its way: nothing was tested");
	for (size_t i = 0; i < 1500; i++)
		check_page(other + i * PAGE_SIZE, 7000 + i);
	slow = false;
	complete_kept(0);
	rig_settle(r);
	for (size_t i = 0; i < 256; i += 2)
		check_page(va + i * PAGE_SIZE, 5000 + i);
	finish(obj);
}

/* Another thread stores to a page that has been written back already, but is still there: not lost. */
static uintptr_t store_at;
static unsigned stored_late;

static int
page_out_and_store(void *ctx, struct up_request *req)
{
	uint64_t w = UINT64_C(0xfeed);

	if (up_request_offset(req) == PAGE_SIZE && store_at != 0 &&
	    sim_touch(r->pm, 9, store_at, true, &w, 0, 8) == SIM_OK)
		stored_late++;
	return page_out(ctx, req);
}

static void
store_while(bool unmapped)
{
	static const struct up_pager_ops late = { .size = sizeof late,
						  .page_in = page_in,
						  .page_out = page_out_and_store,
						  .destroy = destroyed };
	struct up_object *obj;
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(4 * PAGE_SIZE);
	up_object_unref(obj);
	ndestroyed = 0;
	cr_assert(zero(int, up_object_create_custom(r->rt, 4 * PAGE_SIZE, &late, &store, &obj)));
	va = map_named(obj, 4, UP_SHARED, PROT_READ | PROT_WRITE);
	put_page(va, 900);
	put_page(va + PAGE_SIZE, 901);
	store_at = va;
	stored_late = 0;
	if (unmapped) {
		unmap(va, 4);
	} else {
		cr_assert(
			zero(int, up_advise(r->rt, (void *)va, 4 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	}
	store_at = 0;
	if (stored_late > 0)
		cr_assert(eq(u64, store[0], UINT64_C(0xfeed)), "a store that was done is lost");
	else
		cr_assert(stored(0, 900));
	cr_assert(stored(1, 901));
	/* The thread that could not store then gets to it now, or its mapping is gone. */
	w = UINT64_C(0xfeed);
	cr_assert(eq(int, rig_touch(r, 9, va, true, &w, 0, 8), unmapped ? SIM_SIGSEGV : SIM_OK));
	finish(obj);
}

Test(named, a_store_during_unmap_is_not_lost)
{
	store_while(true);
}

Test(named, a_store_during_discard_is_not_lost)
{
	store_while(false);
}

Test(named, the_last_page_is_zeros_behind_the_end)
{
	struct up_object *obj;
	uint64_t w[PAGE_SIZE / 8];
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(3 * PAGE_SIZE + 800);
	va = map_named(obj, 4, UP_SHARED, PROT_READ | PROT_WRITE);
	cr_assert(eq(int, rig_touch(r, 0, va + 3 * PAGE_SIZE, false, w, 0, sizeof w), SIM_OK));
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
		cr_assert(eq(u64, w[i], i < 100 ? word_of(3, i) : 0), "word %u", i);
	memset(w, 0x55, sizeof w);
	cr_assert(eq(int, rig_touch(r, 0, va + 3 * PAGE_SIZE, true, w, 0, sizeof w), SIM_OK));
	unmap(va, 4);
	cr_assert(eq(u64, store[3 * PAGE_SIZE / 8 + 99], UINT64_C(0x5555555555555555)));
	cr_assert(eq(u64, store[3 * PAGE_SIZE / 8 + 100], word_of(3, 100)),
		  "nothing behind the end");
	finish(obj);
}

Test(named, what_can_not_be_written_to_is_said_when_it_is_mapped)
{
	static const struct up_pager_ops in_only = { .size = sizeof in_only, .page_in = page_in };
	struct up_object *obj, *none;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(4 * PAGE_SIZE);
	up_object_unref(obj);
	cr_assert(zero(int, up_object_create_custom(r->rt, 4 * PAGE_SIZE, &in_only, &store, &obj)));
	cr_assert(eq(int,
		     up_map(r->rt, NULL, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED, obj, 0,
			    &p),
		     -EACCES));
	cr_assert(rig_logged(r, "can not be written to"));
	cr_assert(zero(int, up_map(r->rt, NULL, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE,
				   obj, 0, &p)));
	put_page((uintptr_t)p, 5);
	cr_assert(eq(int, up_map(r->rt, NULL, 5 * PAGE_SIZE, PROT_READ, UP_SHARED, obj, 0, &p),
		     -EINVAL));
	cr_assert(eq(int, up_object_create_custom(r->rt, 0, &ops, &store, &none), -EINVAL));
	cr_assert(eq(int, up_object_create_custom(r->rt, 10, NULL, &store, &none), -EINVAL));
	cr_assert(
		eq(int,
		   up_object_create_custom(r->rt, 10, &(struct up_pager_ops){ .size = sizeof ops },
					   &store, &none),
		   -EINVAL));
	finish(obj);
}

/* A terabyte costs nothing until it is touched. */
Test(named, a_giant_needs_metadata_only_where_it_is_touched)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(UINT64_C(1) << 40);
	va = map_named(obj, (size_t)1 << 28, UP_SHARED, PROT_READ);
	in_order(va, (size_t)1 << 28);
	check_page(va, 0);
	check_page(va + 4000 * PAGE_SIZE, 4000);
	unmap(va, (size_t)1 << 28);
	finish(obj);
}

/* --- what a pager says of its pages beforehand --- */

/* It has pages 16 to 31 of every 64, in clusters of 8; it can not say for the last page of 64. */
static unsigned nasked;

static int
has_page(void *ctx, uint64_t offset, size_t *before, size_t *after)
{
	const size_t page = offset / PAGE_SIZE;

	cr_assert(eq(ptr, ctx, (void *)&store));
	cr_assert(zero(sz, *before));
	cr_assert(zero(sz, *after));
	nasked++;
	if (page % 64 == 63)
		return -ENXIO;
	if (page % 64 < 16 || page % 64 >= 32) {
		*after = (page % 64 < 16 ? 15 - page % 64 : 62 - page % 64) * PAGE_SIZE;
		return 0;
	}
	*before = page % 8 * PAGE_SIZE;
	*after = (7 - page % 8) * PAGE_SIZE;
	return 1;
}

static struct up_object *
custom_that_says(uint64_t size)
{
	static const struct up_pager_ops says = { .size = sizeof says,
						  .page_in = page_in,
						  .page_out = page_out,
						  .destroy = destroyed,
						  .has_page = has_page };
	struct up_object *obj;

	up_object_unref(custom(size));
	ndestroyed = 0;
	cr_assert(zero(int, up_object_create_custom(r->rt, size, &says, &store, &obj)));
	return obj;
}

Test(named, what_the_pager_has_not_is_zeros_without_a_request)
{
	struct up_object *obj;
	uintptr_t va, priv;

	scene((struct rig_config){ .seed = 1 });
	obj = custom_that_says(128 * PAGE_SIZE);
	va = map_named(obj, 128, UP_SHARED, PROT_READ | PROT_WRITE);
	priv = map_named(obj, 128, UP_PRIVATE, PROT_READ | PROT_WRITE);
	check_zeros(va);
	check_zeros(va + 40 * PAGE_SIZE);
	check_zeros(priv + 5 * PAGE_SIZE);
	cr_assert(eq(uint, nin, 0));
	cr_assert(eq(u64, rig_stats(r).faults[UP_FAULT_ZERO], 3));
	check_page(priv + 17 * PAGE_SIZE, 17);
	cr_assert(eq(uint, nin, 1));
	/* Unchanged it is forgotten, changed it is written back. */
	swap_out();
	cr_assert(eq(uint, nout, 0));
	check_zeros(va);
	put_page(va + PAGE_SIZE, 500);
	put_page(priv + 2 * PAGE_SIZE, 600);
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 128 * PAGE_SIZE, 0)));
	cr_assert(stored(1, 500));
	swap_out();
	check_page(priv + 2 * PAGE_SIZE, 600);
	cr_assert(eq(uint, nout_pages, 1));
	finish(obj);
}

Test(named, a_stream_of_zeros_comes_in_runs)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom_that_says(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	for (size_t i = 32; i < 63; i++)
		check_zeros(va + i * PAGE_SIZE);
	cr_assert(lt(uint, nasked, 10), "%u", nasked);
	cr_assert(eq(uint, nin, 0));
	finish(obj);
}

Test(named, a_request_is_for_what_the_pager_calls_best_read_together)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom_that_says(128 * PAGE_SIZE);
	va = map_named(obj, 128, UP_SHARED, PROT_READ | PROT_WRITE);
	check_page(va + 21 * PAGE_SIZE, 21);
	cr_assert(eq(uint, nin, 1));
	cr_assert(eq(uint, nin_pages, 8));
	rig_settle(r);
	check_pages(va + 16 * PAGE_SIZE, 8, 16);
	cr_assert(eq(uint, nin, 1), "it brought its neighbours on both sides");
	/* Where one is there already, only up to that one. */
	put_page(va + 26 * PAGE_SIZE, 900);
	nin = nin_pages = 0;
	advise(va + 28 * PAGE_SIZE, 3, UP_ADVICE_DONTNEED);
	check_page(va + 29 * PAGE_SIZE, 29);
	cr_assert(eq(uint, nin_pages, 3));
	check_page(va + 26 * PAGE_SIZE, 900);
	nin_pages = 0;
	in_order(va, 128);
	check_page(va + (64 + 20) * PAGE_SIZE, 64 + 20);
	cr_assert(eq(uint, nin_pages, 1), "UP_ADVICE_RANDOM: that page alone");
	finish(obj);
}

Test(named, one_in_the_middle_of_a_request_that_fails_is_tried_alone)
{
	struct up_object *obj;
	uintptr_t va;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom_that_says(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	slow = true;
	cr_assert(eq(int, sim_touch(r->pm, 4, va + 21 * PAGE_SIZE, false, &w, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 10; i++)
		rig_step(r);
	cr_assert(eq(uint, nkept, 1));
	cr_assert(eq(u64, up_request_offset(kept[0]), 16 * PAGE_SIZE));
	/* And some of it is gone by then. */
	advise(va + 18 * PAGE_SIZE, 1, UP_ADVICE_DONTNEED);
	complete_kept(-EIO);
	for (unsigned i = 0; i < 10; i++)
		rig_step(r);
	cr_assert(eq(uint, nkept, 1));
	cr_assert(eq(u64, up_request_offset(kept[0]), 21 * PAGE_SIZE));
	cr_assert(eq(sz, up_request_length(kept[0]), PAGE_SIZE));
	complete_kept(0);
	slow = false;
	cr_assert(eq(int, rig_touch(r, 4, va + 21 * PAGE_SIZE, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(21, 0)));
	check_pages(va + 16 * PAGE_SIZE, 16, 16);
	finish(obj);
}

Test(named, a_page_of_which_the_pager_can_not_say_is_SIGBUS)
{
	struct up_object *obj;
	uintptr_t va;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	obj = custom_that_says(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	cr_assert(eq(int, rig_touch(r, 0, va + 63 * PAGE_SIZE, false, &w, 0, 8), SIM_SIGBUS));
	cr_assert(rig_logged(r, "the custom pager failed with ENXIO"));
	cr_assert(eq(int, up_prefault(r->rt, (void *)(va + 63 * PAGE_SIZE), PAGE_SIZE, 0), -EIO));
	check_zeros(va + 62 * PAGE_SIZE);
	cr_assert(eq(uint, nin, 0));
	finish(obj);
}

Test(named, a_range_with_holes_is_brought_in)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom_that_says(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	cr_assert(zero(int, up_prefault(r->rt, (void *)va, 63 * PAGE_SIZE, 1)));
	cr_assert(eq(uint, nin_pages, 16));
	check_zeros(va + 3 * PAGE_SIZE);
	check_pages(va + 16 * PAGE_SIZE, 16, 16);
	finish(obj);
}

/* --- requests that nobody wants any more --- */

/* Touches of n pages that are `apart` from each other begin, and the pager keeps its requests. */
static void
begin(uintptr_t va, unsigned n, unsigned apart)
{
	uint64_t w;

	slow = true;
	for (unsigned t = 0; t < n; t++)
		cr_assert(eq(int,
			     sim_touch(r->pm, 4 + t, va + (uintptr_t)t * apart * PAGE_SIZE, false,
				       &w, 0, 8),
			     SIM_FAULT));
	for (unsigned i = 0; i < 20; i++)
		rig_step(r);
}

/* What the pager still has is answered with rubbish. */
static void
answer_rubbish(void)
{
	for (unsigned i = 0; i < nkept; i++) {
		memset(up_request_buffer(kept[i]), 0x5a, up_request_length(kept[i]));
		up_request_complete(kept[i], 0);
	}
	nkept = 0;
	slow = false;
	rig_settle(r);
	pager_check(r->p);
}

Test(named, unmapping_does_not_wait_for_what_is_not_answered)
{
	struct up_object *obj;
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	begin(va, 4, 9);
	cr_assert(eq(uint, nkept, 4));
	unmap(va, 64);
	cr_assert(eq(uint, ncancelled, 4));
	for (unsigned i = 0; i < 4; i++)
		cr_assert(eq(ptr, cancelled[i], kept[i]));
	cr_assert(eq(int, rig_touch(r, 4, va, false, &w, 0, 8), SIM_SIGSEGV));
	/* The buffers are theirs, whatever happens meanwhile, until they say that they are done. */
	slow = false;
	put_pages(rig_map(r, 1500 * PAGE_SIZE), 1500, 0);
	answer_rubbish();
	va = map_named(obj, 64, UP_SHARED, PROT_READ);
	check_pages(va, 64, 0);
	cr_assert(eq(uint, ncancelled, 4));
	finish(obj);
}

Test(named, a_request_is_cancelled_when_nobody_wants_any_of_its_pages)
{
	struct up_object *obj;
	uintptr_t va;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	cr_assert(zero(int, up_advise(r->rt, (void *)va, 64 * PAGE_SIZE, UP_ADVICE_SEQUENTIAL)));
	begin(va, 1, 1);
	cr_assert(eq(uint, nkept, 1));
	cr_assert(gt(sz, up_request_length(kept[0]), 16 * PAGE_SIZE));
	/* The one that a thread waited for, and some from the middle. */
	unmap(va, 1);
	unmap(va + 4 * PAGE_SIZE, 4);
	cr_assert(eq(uint, ncancelled, 0), "others of it are wanted");
	complete_kept(0);
	slow = false;
	rig_settle(r);
	cr_assert(eq(uint, nin, 1));
	check_pages(va + PAGE_SIZE, 3, 1);
	check_pages(va + 8 * PAGE_SIZE, 8, 8);
	cr_assert(eq(uint, nin, 1), "they came with the first request");
	cr_assert(eq(int, rig_touch(r, 4, va, false, &w, 0, 8), SIM_SIGSEGV));
	finish(obj);
}

Test(named, a_request_that_fails_for_pages_that_are_gone_is_nobodys_failure)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	cr_assert(zero(int, up_advise(r->rt, (void *)va, 64 * PAGE_SIZE, UP_ADVICE_SEQUENTIAL)));
	begin(va, 1, 1);
	unmap(va, 2);
	complete_kept(-EIO);
	slow = false;
	rig_settle(r);
	check_pages(va + 2 * PAGE_SIZE, 62, 2);
	cr_assert(zero(u64, rig_stats(r).lost));
	cr_assert(zero(u64, rig_stats(r).source_errors));
	finish(obj);
}

Test(named, what_is_discarded_is_asked_for_again)
{
	struct up_object *obj;
	uintptr_t va;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	begin(va, 2, 9);
	advise(va, 64, UP_ADVICE_DONTNEED);
	cr_assert(eq(uint, ncancelled, 2));
	slow = false;
	cr_assert(eq(int, rig_touch(r, 4, va, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(0, 0)));
	answer_rubbish();
	check_pages(va, 64, 0);
	finish(obj);
}

/* All faults stand still while a clone is made: that may not last as long as a pager takes. */
Test(named, a_clone_does_not_wait_for_what_is_not_answered)
{
	struct up_object *obj;
	uintptr_t va;
	uint64_t w = 0;
	void *copy;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_PRIVATE, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	put_page(va + PAGE_SIZE, 500);
	begin(va, 2, 9);
	cr_assert(zero(int, up_clone(r->rt, (void *)va, 64 * PAGE_SIZE, &copy)));
	cr_assert(eq(uint, ncancelled, 2));
	slow = false;
	cr_assert(eq(int, rig_touch(r, 4, va, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(0, 0)));
	answer_rubbish();
	check_page(va, 0);
	check_page(va + PAGE_SIZE, 500);
	check_pages(va + 2 * PAGE_SIZE, 62, 2);
	check_page((uintptr_t)copy, 0);
	check_page((uintptr_t)copy + PAGE_SIZE, 500);
	check_pages((uintptr_t)copy + 2 * PAGE_SIZE, 62, 2);
	finish(obj);
}

Test(named, a_range_moves_without_what_is_not_answered)
{
	struct up_object *obj;
	uintptr_t va;
	void *to;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 32, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 32);
	put_page(va + PAGE_SIZE, 500);
	begin(va, 2, 9);
	/* Something lies right behind it, if there was room. */
	(void)up_map(r->rt, (void *)(va + 32 * PAGE_SIZE), PAGE_SIZE, PROT_READ,
		     UP_PRIVATE | UP_FIXED, NULL, 0, &to);
	cr_assert(zero(int, up_remap(r->rt, (void *)va, 32 * PAGE_SIZE, 40 * PAGE_SIZE, UP_MAYMOVE,
				     &to)));
	cr_assert(eq(uint, ncancelled, 2));
	cr_assert(ne(ptr, to, (void *)va));
	answer_rubbish();
	check_page((uintptr_t)to, 0);
	check_page((uintptr_t)to + PAGE_SIZE, 500);
	check_pages((uintptr_t)to + 2 * PAGE_SIZE, 38, 2);
	finish(obj);
}

Test(named, looking_and_syncing_pass_over_what_is_not_answered)
{
	struct up_object *obj;
	uintptr_t va, priv;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	priv = map_named(obj, 64, UP_PRIVATE, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	put_page(va + PAGE_SIZE, 500);
	begin(va, 2, 9);
	cr_assert(zero(uint, residency(va)));
	cr_assert(zero(uint, residency(priv)));
	advise(va, 64, UP_ADVICE_COLD);
	slow = false; /* what is to be written is */
	cr_assert(zero(int, up_sync(r->rt, (void *)va, 64 * PAGE_SIZE, 0)));
	cr_assert(stored(1, 500));
	cr_assert(eq(uint, ncancelled, 0));
	complete_kept(0);
	cr_assert(eq(int, rig_touch(r, 4, va, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(0, 0)));
	finish(obj);
}

Test(named, an_object_may_go_before_its_requests)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	begin(va, 2, 9);
	unmap(va, 64);
	up_object_unref(obj);
	cr_assert(eq(uint, ndestroyed, 0), "the pager has requests");
	cr_assert(eq(uint, ncancelled, 2));
	cr_assert(eq(sz, up_request_length(kept[0]), PAGE_SIZE));
	answer_rubbish();
	unmap(rig_map(r, PAGE_SIZE), 1);
	cr_assert(eq(uint, ndestroyed, 1));
	finish(NULL);
}

/* As a pager does that has a thread: it is told, and answers. */
static void
cancel_and_answer(void *ctx, struct up_request *req)
{
	cancel(ctx, req);
	for (unsigned i = 0; i < nkept; i++) {
		if (kept[i] != req)
			continue;
		kept[i] = kept[--nkept];
		up_request_complete(req, -ECANCELED);
		return;
	}
	cr_assert(false, "a request was cancelled that the pager does not have");
}

Test(named, destroying_the_runtime_cancels_what_is_not_answered)
{
	static const struct up_pager_ops own = { .size = sizeof own,
						 .page_in = page_in,
						 .page_out = page_out,
						 .destroy = destroyed,
						 .cancel = cancel_and_answer };
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	up_object_unref(custom(64 * PAGE_SIZE));
	ndestroyed = 0;
	cr_assert(zero(int, up_object_create_custom(r->rt, 64 * PAGE_SIZE, &own, &store, &obj)));
	va = map_named(obj, 64, UP_PRIVATE, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	begin(va, 3, 9);
	up_runtime_destroy(r->rt);
	r->rt = NULL;
	cr_assert(eq(uint, ncancelled, 3));
	cr_assert(eq(uint, nkept, 0));
	cr_assert(eq(uint, ndestroyed, 1));
	rig_down(r);
	free(store);
}

/* A pager that knows nothing of cancelling, of a size from before it could: the pages go all the same. */
Test(named, a_pager_need_not_know_what_cancelling_is)
{
	static struct up_pager_ops old = { .page_in = page_in,
					   .page_out = page_out,
					   .destroy = destroyed };
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	up_object_unref(custom(64 * PAGE_SIZE));
	ndestroyed = 0;
	old.size = offsetof(struct up_pager_ops, cancel);
	cr_assert(zero(int, up_object_create_custom(r->rt, 64 * PAGE_SIZE, &old, &store, &obj)));
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	begin(va, 3, 9);
	unmap(va, 64);
	answer_rubbish();
	check_pages(map_named(obj, 64, UP_SHARED, PROT_READ), 64, 0);
	finish(obj);
}

/* The second half of up_wire() keeps all other calls from the map. */
Test(named, wiring_does_not_keep_the_map_for_ever)
{
	struct up_object *obj;
	struct demand d = { .wire = true };
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 64);
	begin(va, 1, 1);
	d.va = va;
	d.end = va + 4 * PAGE_SIZE;
	cr_assert(eq(int, demand_range(r->p, &d), -EAGAIN));
	complete_kept(0);
	slow = false;
	rig_settle(r);
	check_pages(va, 64, 0);
	finish(obj);
}

Test(named, a_pager_that_never_answers_does_not_keep_others_from_theirs)
{
	struct up_object *obj, *other;
	uintptr_t va, vb;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom(256 * PAGE_SIZE);
	cr_assert(zero(int, up_object_create_custom(r->rt, 256 * PAGE_SIZE, &ops, &store, &other)));
	va = map_named(obj, 256, UP_SHARED, PROT_READ | PROT_WRITE);
	vb = map_named(other, 256, UP_SHARED, PROT_READ | PROT_WRITE);
	in_order(va, 256);
	in_order(vb, 256);
	begin(va, 12, 9);
	cr_assert(ge(uint, nkept, 4));
	cr_assert(lt(uint, nkept, 12));
	slow = false;
	check_pages(vb, 256, 0);
	complete_kept(0);
	check_pages(va, 256, 0);
	up_object_unref(other);
	finish_both(obj);
}

/* --- what streams want of a pager, and advice behind it --- */

#define NOTHER 32

/* Pages that are in swap: what is advised while a pager has not answered. */
static uintptr_t
others_out(void)
{
	const uintptr_t va = map_random(NOTHER);

	put_pages(va, NOTHER, 7000);
	swap_out();
	all_are(va, NOTHER, SWAPPED);
	return va;
}

/* Those, and beside them an object that a pager of the program has. */
static uintptr_t
beside_others(struct up_object **obj, uintptr_t *va)
{
	uintptr_t other;

	scene((struct rig_config){ .seed = 1, .memory = 17 << 20 });
	other = others_out();
	*obj = custom(NPAGES * PAGE_SIZE);
	*va = map_named(*obj, NPAGES, UP_SHARED, PROT_READ);
	return other;
}

/* Nobody touches them: they come since they were advised. */
static void
advice_is_taken(uintptr_t va)
{
	advise(va, NOTHER, UP_ADVICE_WILLNEED);
	for (unsigned i = 0; i < 20; i++)
		rig_step(r);
	all_are(va, NOTHER, MAPPED);
	check_pages(va, NOTHER, 7000);
}

Test(named, a_stream_that_its_pager_never_answers_does_not_keep_others_from_what_is_advised)
{
	struct up_object *obj;
	uintptr_t va;
	const uintptr_t other = beside_others(&obj, &va);

	advise(va, NPAGES, UP_ADVICE_SEQUENTIAL);
	/* Each takes a request for itself and wants two more: the third finds the pager's share used up. */
	begin(va, 4, 800);
	cr_assert(gt(uint, nkept, 4), "nothing was wished for: nothing was tested");
	cr_assert(lt(uint, nkept, 12), "everything was taken: nothing was tested");
	advice_is_taken(other);
	slow = false;
	complete_kept(0);
	check_pages(va, NPAGES, 0);
	finish(obj);
}

Test(named, a_stream_without_frames_does_not_wait_for_those_that_a_pager_never_gives_back)
{
	struct up_object *obj;
	uintptr_t va;
	const uintptr_t other = beside_others(&obj, &va);

	in_order(va, NPAGES);
	begin(va, 1, 0);
	cr_assert(eq(uint, nkept, 1));
	/* Enough for advice, and not for a wish. */
	squeeze(CLUSTER_MAX + NOTHER);
	hold_frames(false);
	early_wish(r->p->service[0], va + 800 * PAGE_SIZE, va + 1000 * PAGE_SIZE, 1);
	advice_is_taken(other);
	cr_assert(eq(uint, nkept, 1), "there was room for it: nothing was tested");
	give_room();
	slow = false;
	complete_kept(0);
	check_pages(va, NPAGES, 0);
	finish(obj);
}

Test(named, a_stream_whose_pager_fails_does_not_keep_others_from_what_is_advised)
{
	struct up_object *obj;
	uintptr_t va, other;
	uint64_t w;

	scene((struct rig_config){ .seed = 1, .memory = 17 << 20 });
	other = others_out();
	obj = custom(NPAGES * PAGE_SIZE);
	va = map_named(obj, NPAGES, UP_SHARED, PROT_READ);
	advise(va, NPAGES, UP_ADVICE_SEQUENTIAL);
	fail_in = -EIO;
	cr_assert(eq(int, sim_touch(r->pm, 4, va, false, &w, 0, 8), SIM_FAULT));
	advice_is_taken(other);
	cr_assert(gt(uint, nin, 2), "nothing was wished for: nothing was tested");
	fail_in = 0;
	cr_assert(zero(int, up_advise(r->rt, (void *)va, PAGE_SIZE, UP_ADVICE_DONTNEED)));
	check_pages(va, NPAGES, 0);
	finish(obj);
}

/* One that refuses its writes is left alone for a while; the swap is not. */
Test(named, a_pager_that_fails_does_not_keep_others_from_the_swap)
{
	struct up_object *obj;
	uintptr_t va, other;

	scene((struct rig_config){ .seed = 1, .honest_backoff = true });
	obj = custom(32 * PAGE_SIZE);
	va = map_named(obj, 32, UP_SHARED, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < 32; i++)
		put_page(va + i * PAGE_SIZE, 700 + i);
	fail_out = -EIO;
	other = map_random(1500);
	put_pages(other, 1500, 0);
	cr_assert(gt(u64, rig_stats(r).source_errors, 0), "no write failed: nothing was tested");
	cr_assert(gt(u64, atomic_load(&((struct object *)obj)->source->write_again), 0));
	cr_assert(zero(u64, atomic_load(&r->p->write_again)), "it is not the swap that failed");
	fail_out = 0;
	check_pages(other, 1500, 0);
	check_pages(va, 32, 700);
	finish(obj);
}

/* --- the flags of up_sync() --- */

static int
sync_range(uintptr_t va, size_t npages, unsigned flags)
{
	return up_sync(r->rt, (void *)va, npages * PAGE_SIZE, flags);
}

Test(named, async_starts_what_a_later_sync_waits_for)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	check_pages(va, 64, 0);
	put_page(va + 3 * PAGE_SIZE, 1003);
	put_page(va + 40 * PAGE_SIZE, 1040);
	slow = true;
	cr_assert(zero(int, sync_range(va, 64, UP_SYNC_ASYNC)));
	cr_assert(eq(uint, nout, 0), "the services do it");
	for (unsigned i = 0; i < 5; i++)
		rig_step(r);
	cr_assert(eq(uint, nkept, 2));
	cr_assert(eq(uint, nout_pages, 2), "what has changed, and only that");
	slow = false;
	complete_kept(0);
	rig_settle(r);
	cr_assert(stored(3, 1003) && stored(40, 1040));
	check_page(va + 3 * PAGE_SIZE, 1003);
	cr_assert(zero(int, sync_range(va, 64, UP_SYNC_WAIT)));
	cr_assert(eq(uint, nout_pages, 2));
	finish(obj);
}

/* More than a pager gets at a time: the rest goes on as those are answered. */
Test(named, async_starts_everything_in_the_end)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(64 * PAGE_SIZE);
	va = map_named(obj, 64, UP_SHARED, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < 64; i += 2)
		put_page(va + i * PAGE_SIZE, 2000 + i);
	slow = true;
	cr_assert(zero(int, sync_range(va, 64, UP_SYNC_ASYNC)));
	for (unsigned turn = 0; turn < 200 && nout_pages < 32; turn++) {
		rig_step(r);
		complete_kept(0);
	}
	slow = false;
	rig_settle(r);
	for (size_t i = 0; i < 64; i++)
		cr_assert(stored(i, i % 2 ? i : 2000 + i), "page %zu", i);
	finish(obj);
}

Test(named, an_error_of_an_async_sync_is_told_by_the_next_that_waits_once)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	va = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	put_page(va, 500);
	fail_out = -EIO;
	cr_assert(zero(int, sync_range(va, 8, UP_SYNC_ASYNC)));
	rig_settle(r);
	cr_assert(gt(uint, nout, 0));
	fail_out = 0;
	cr_assert(zero(int, sync_range(va, 8, UP_SYNC_ASYNC)));
	cr_assert(eq(int, sync_range(va, 8, UP_SYNC_WAIT), -EIO));
	cr_assert(zero(int, sync_range(va, 8, UP_SYNC_WAIT)));
	cr_assert(stored(0, 500));
	finish(obj);
}

Test(named, async_writes_wired_pages_at_once)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(8 * PAGE_SIZE);
	va = map_named(obj, 8, UP_SHARED, PROT_READ | PROT_WRITE);
	put_page(va, 500);
	cr_assert(zero(int, up_wire(r->rt, (void *)va, 8 * PAGE_SIZE)));
	cr_assert(zero(int, sync_range(va, 8, UP_SYNC_ASYNC)));
	cr_assert(stored(0, 500));
	cr_assert(eq(int, sync_range(va, 8, UP_SYNC_INVALIDATE), -EBUSY));
	cr_assert(rig_logged(r, "is wired"));
	fail_out = -EIO;
	put_page(va, 501);
	cr_assert(zero(int, sync_range(va, 8, UP_SYNC_ASYNC)));
	fail_out = 0;
	cr_assert(eq(int, sync_range(va, 8, UP_SYNC_WAIT), -EIO));
	cr_assert(stored(0, 501));
	finish(obj);
}

/* The source changes behind our back. */
Test(named, invalidate_reads_the_source_again)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(16 * PAGE_SIZE);
	va = map_named(obj, 16, UP_SHARED, PROT_READ | PROT_WRITE);
	check_pages(va, 16, 0);
	put_page(va + PAGE_SIZE, 500);
	for (unsigned k = 0; k < PAGE_SIZE / 8; k++)
		store[2 * PAGE_SIZE / 8 + k] = word_of(900, k);
	check_page(va + 2 * PAGE_SIZE, 2);
	cr_assert(zero(int, sync_range(va, 16, UP_SYNC_INVALIDATE)));
	cr_assert(stored(1, 500));
	check_page(va + PAGE_SIZE, 500);
	check_page(va + 2 * PAGE_SIZE, 900);
	check_page(va + 3 * PAGE_SIZE, 3);
	/* What can not be written back is kept. */
	put_page(va + 5 * PAGE_SIZE, 505);
	fail_out = -ENOSPC;
	cr_assert(eq(int, sync_range(va, 16, UP_SYNC_INVALIDATE), -ENOSPC));
	fail_out = 0;
	check_page(va + 5 * PAGE_SIZE, 505);
	finish(obj);
}

Test(named, invalidate_leaves_what_a_private_mapping_has_changed)
{
	struct up_object *obj;
	uintptr_t va;
	void *copy;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(16 * PAGE_SIZE);
	va = map_named(obj, 16, UP_PRIVATE, PROT_READ | PROT_WRITE);
	check_pages(va, 16, 0);
	put_page(va + PAGE_SIZE, 500);
	put_page(va + 4 * PAGE_SIZE, 504);
	cr_assert(zero(int, up_clone(r->rt, (void *)va, 16 * PAGE_SIZE, &copy)));
	for (size_t i = 1; i < 4; i++) {
		for (unsigned k = 0; k < PAGE_SIZE / 8; k++)
			store[i * PAGE_SIZE / 8 + k] = word_of(900 + i, k);
	}
	cr_assert(zero(int, sync_range(va, 16, UP_SYNC_INVALIDATE)));
	check_page(va + PAGE_SIZE, 500);
	check_page(va + 2 * PAGE_SIZE, 902);
	check_page(va + 3 * PAGE_SIZE, 903);
	check_page(va + 4 * PAGE_SIZE, 504);
	check_page((uintptr_t)copy + PAGE_SIZE, 500);
	check_page((uintptr_t)copy + 2 * PAGE_SIZE, 902);
	check_page((uintptr_t)copy + 4 * PAGE_SIZE, 504);
	cr_assert(eq(uint, nout, 0));
	finish(obj);
}

Test(named, sync_refuses_flags_that_are_none)
{
	struct up_object *obj;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	obj = custom(4 * PAGE_SIZE);
	va = map_named(obj, 4, UP_SHARED, PROT_READ | PROT_WRITE);
	cr_assert(eq(int, sync_range(va, 4, 4), -EINVAL));
	cr_assert(eq(int, sync_range(va, 4, UP_SYNC_ASYNC | UP_SYNC_INVALIDATE), -EINVAL));
	finish(obj);
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_tier.c: pages through the compressed tier, over the simulated kernel: where they go, what comes back, and what is told if
 * it does not.  The pool itself is test_zpool.c's.
 */
#include <sys/mman.h>

#include "scene.h"

#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)
#define N 128

static void
tier_scene(enum up_compression kind, uint64_t limit)
{
	scene((struct rig_config){
		.seed = 1, .memory = 4 << 20, .compression = kind, .compress_limit = limit });
}

static size_t
zipped(void)
{
	return rig_stats(r).compressed / PAGE_SIZE;
}

static bool
is_zipped(uintptr_t va)
{
	return anon_at(va) != NULL && anon_at(va)->kind == ANON_ZIP;
}

/*
 * Everything leaves memory, as swap_out() has it, but with some room at any time: the pool has to grow.  `steps`: as long as there is
 * something to do, and no longer than that.
 */
static void
push_out(unsigned steps)
{
	const size_t leave = 8;

	for (unsigned k = 0; k < steps; k++) {
		struct budget *b = &r->p->budget;
		size_t room = (b->limit - atomic_load(&b->used)) / PAGE_SIZE, n;
		frame_t first;

		if (room > leave && budget_charge(b, (room - leave) * PAGE_SIZE))
			scene_taken += (room - leave) * PAGE_SIZE;
		while (frames_nfree(&r->p->frames) > leave &&
		       (n = frame_take(&r->p->frames,
				       MIN(frames_nfree(&r->p->frames) - leave, CLUSTER_MAX),
				       &first)) > 0) {
			for (size_t i = 0; i < n; i++)
				scene_held[scene_nheld++] = first + (frame_t)i;
		}
		atomic_store(&r->p->pageout_on, true);
		r->p->pages.policy.queue[PQ_MAIN].n += SCENE_YOUNGER;
		rig_step(r);
		r->p->pages.policy.queue[PQ_MAIN].n -= SCENE_YOUNGER;
		rig_settle(r);
		hold_frames(true);
		frames_release(r->p, scene_held + scene_nheld - MIN(scene_nheld, leave),
			       (unsigned)MIN(scene_nheld, leave));
		scene_nheld -= MIN(scene_nheld, leave);
		if (rig_stats(r).resident + rig_stats(r).staged == 0)
			break;
	}
	give_room();
	rig_step(r);
}

static void
zip_out(void)
{
	push_out(1000);
	rig_settle(r);
	cr_assert(zero(u64, rig_stats(r).resident + rig_stats(r).staged));
}

/* Half a page of noise, which lz4 halves; its number is in it. */
static void
put_half(uintptr_t va, uint64_t number)
{
	uint64_t w[PAGE_SIZE / 8] = { 0 };

	for (unsigned i = 0; i < ARRAY_SIZE(w) / 2; i++)
		w[i] = word_of(number * 1000003, i) * 0x9e3779b97f4a7c15u;
	w[0] = number;
	cr_assert(eq(int, rig_touch(r, 0, va, true, w, 0, sizeof w), SIM_OK));
}

static void
check_half(uintptr_t va, uint64_t number)
{
	uint64_t w[PAGE_SIZE / 8] = { 0 };

	cr_assert(eq(int, rig_touch(r, 0, va, false, w, 0, sizeof w), SIM_OK));
	cr_assert(eq(u64, w[0], number));
	for (unsigned i = 1; i < ARRAY_SIZE(w); i++)
		cr_assert(eq(u64, w[i],
			     i < ARRAY_SIZE(w) / 2
				     ? word_of(number * 1000003, i) * 0x9e3779b97f4a7c15u
				     : 0));
}

static uintptr_t
all_zipped(enum up_compression kind)
{
	uintptr_t va;

	tier_scene(kind, 0);
	va = map_random(N);
	for (unsigned i = 0; i < N; i++)
		put_half(PAGE(i), i);
	zip_out();
	cr_assert(eq(sz, zipped(), N));
	return va;
}

Test(tier, pages_go_there_and_not_to_the_disk_and_come_back)
{
	const enum up_compression kinds[] = { UP_COMPRESS_LZ4, UP_COMPRESS_ZSTD };

	for (unsigned k = 0; k < 2; k++) {
		const uintptr_t va = all_zipped(kinds[k]);
		struct up_stats st = rig_stats(r);

		cr_assert(zero(u64, st.swap_writes + st.swapped));
		cr_assert(eq(u64, st.pages_compressed, N));
		cr_assert(lt(u64, st.compressed_pool, N * PAGE_SIZE * 2 / 3));
		cr_assert(gt(u64, st.compressed_pool, N * PAGE_SIZE / 3));
		cr_assert(eq(uint, residency(va), UP_PAGE_COMPRESSED));
		for (unsigned i = 0; i < N; i++)
			check_half(PAGE(i), i);
		st = rig_stats(r);
		cr_assert(zero(u64, st.swap_reads + st.compressed));
		cr_assert(eq(u64, st.pages_decompressed, N));
		over();
	}
}

Test(tier, of_one_word_takes_no_room)
{
	uint64_t w[PAGE_SIZE / 8];
	uintptr_t va;

	tier_scene(UP_COMPRESS_LZ4, 0);
	va = map_random(N);
	for (unsigned k = 0; k < ARRAY_SIZE(w); k++)
		w[k] = 0x5a5a5a5a;
	for (unsigned i = 0; i < N; i++)
		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), true, w, 0, sizeof w), SIM_OK));
	zip_out();
	cr_assert(eq(sz, zipped(), N));
	cr_assert(zero(u64, rig_stats(r).compressed_pool));
	for (unsigned i = 0; i < N; i++) {
		uint64_t got[PAGE_SIZE / 8];

		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), false, got, 0, sizeof got), SIM_OK));
		cr_assert(zero(int, memcmp(w, got, sizeof w)));
	}
	over();
}

Test(tier, what_does_not_compress_goes_to_swap_as_ever)
{
	uintptr_t va;
	uint64_t w[PAGE_SIZE / 8], x = 1;

	tier_scene(UP_COMPRESS_LZ4, 0);
	va = map_random(N);
	for (unsigned i = 0; i < N; i++) {
		for (unsigned k = 0; k < ARRAY_SIZE(w); k++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			w[k] = x;
		}
		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), true, w, 0, sizeof w), SIM_OK));
	}
	zip_out();
	cr_assert(zero(sz, zipped()));
	all_are(va, N, SWAPPED);
	cr_assert(eq(u64, rig_stats(r).swap_write_bytes, N * PAGE_SIZE));
	over();
}

Test(tier, the_oldest_are_written_back_when_it_is_full)
{
	const unsigned n = 2048;
	struct up_stats st;
	uintptr_t va;
	unsigned young = 0;

	/* Of 512 KiB, about 240 pages. */
	tier_scene(UP_COMPRESS_LZ4, 512 << 10);
	va = map_random(n);
	atomic_store(&r->p->tier.credit, (int)n); /* as if reads had earned it */
	for (unsigned i = 0; i < n; i++)
		put_half(PAGE(i), i);
	rig_settle(r);
	st = rig_stats(r);
	cr_assert(gt(u64, st.pages_written_back, n / 16));
	cr_assert(le(u64, st.compressed_pool, 512 << 10));
	cr_assert(gt(sz, zipped(), 32));
	for (unsigned i = 0; i < n; i++)
		young += is_zipped(PAGE(i)) && i > n / 4;
	cr_assert(gt(sz, 2 * young, zipped()), "old ones stayed");
	/* In clusters. */
	cr_assert(gt(u64, st.swap_write_bytes / st.swap_writes, 8 * PAGE_SIZE));
	for (unsigned i = 0; i < n; i++)
		check_half(PAGE(i), i);
	over();
}

/* Four times what memory and a pool of 512 KiB hold. */
#define FILLED 2048

static uintptr_t
filled(enum up_compression kind)
{
	uintptr_t va;

	tier_scene(kind, 512 << 10);
	va = map_random(FILLED);
	for (unsigned i = 0; i < FILLED; i++)
		put_half(PAGE(i), i);
	rig_settle(r);
	return va;
}

Test(tier, a_full_pool_takes_nothing_while_nobody_asks_for_any)
{
	const enum up_compression kinds[] = { UP_COMPRESS_LZ4, UP_COMPRESS_ZSTD };

	for (unsigned k = 0; k < 2; k++) {
		const uintptr_t va = filled(kinds[k]);
		const struct up_stats st = rig_stats(r);
		unsigned young = 0;

		cr_assert(gt(sz, zipped(), 64));
		cr_assert(gt(u64, st.swapped / PAGE_SIZE, FILLED / 4));
		/* Hardly more were compressed than are in it, and a cluster or two written back. */
		cr_assert(le(u64, st.pages_written_back, 3 * CLUSTER_MAX));
		cr_assert(eq(u64, st.pages_compressed, zipped() + st.pages_written_back));
		for (unsigned i = FILLED / 2; i < FILLED; i++)
			young += is_zipped(PAGE(i));
		cr_assert(lt(sz, 4 * young, zipped()));
		for (unsigned i = 0; i < FILLED; i++)
			check_half(PAGE(i), i);
		over();
	}
}

Test(tier, reads_of_single_pages_earn_a_full_pool_others)
{
	const uintptr_t va = filled(UP_COMPRESS_LZ4);
	uint64_t back = rig_stats(r).pages_written_back, zips;
	unsigned asked = 0;

	cr_assert(le(int, atomic_load(&r->p->tier.credit), 0));
	/* What the pool has, and what it no longer has, or did not get. */
	for (unsigned i = 0; i < FILLED && asked < 100; i++) {
		if (!is_zipped(PAGE(i)) && where(PAGE(i)) != SWAPPED)
			continue;
		check_half(PAGE(i), i);
		asked++;
	}
	cr_assert(gt(int, atomic_load(&r->p->tier.credit), 2 * (int)asked));
	zips = rig_stats(r).pages_compressed;
	for (unsigned i = 0; i < FILLED / 2; i++)
		put_half(PAGE(i), FILLED + i);
	rig_settle(r);
	cr_assert(gt(u64, rig_stats(r).pages_compressed - zips, 256));
	cr_assert(gt(u64, rig_stats(r).pages_written_back - back, 64));
	for (unsigned i = 0; i < FILLED; i++)
		check_half(PAGE(i), i < FILLED / 2 ? FILLED + i : i);
	over();
}

Test(tier, a_stream_earns_it_nothing)
{
	const uintptr_t va = filled(UP_COMPRESS_LZ4);
	uint64_t back, zips;

	advise(va, FILLED, UP_ADVICE_SEQUENTIAL);
	for (unsigned i = 0; i < FILLED; i++)
		check_half(PAGE(i), i);
	/* But for its first pages. */
	cr_assert(lt(int, atomic_load(&r->p->tier.credit), 100));
	back = rig_stats(r).pages_written_back;
	zips = rig_stats(r).pages_compressed;
	for (unsigned i = 0; i < FILLED; i++)
		check_half(PAGE(i), i);
	rig_settle(r);
	/* What is clean in swap was not compressed instead. */
	cr_assert(lt(u64, rig_stats(r).pages_compressed - zips, FILLED / 2));
	cr_assert(lt(u64, rig_stats(r).pages_written_back - back, FILLED / 8));
	over();
}

Test(tier, a_page_that_is_being_written_back_is_waited_for)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
	unsigned busy = 0;
	uint64_t w;

	/* It is to be half as large. */
	r->p->tier.tune.target = tier_bytes(r->p) / 2;
	zpool_set_limit(&r->p->tier.pool, r->p->tier.tune.target);
	sim_disk_hold(r->disk, SWAP_WRITE);
	cr_assert(tier_write_back(r->p->service[0]));
	while (busy < N && (atomic_load(&anon_at(PAGE(busy))->bits) & ANON_BUSY) == 0)
		busy++;
	cr_assert(lt(uint, busy, N), "none is being written back");
	cr_assert(is_zipped(PAGE(busy)));
	/* Parked, for nobody would wake it by its address. */
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(busy), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(busy), false, &w, 0, 8), SIM_FAULT));
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(busy), false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, busy));
	cr_assert(gt(u64, rig_stats(r).pages_written_back, 0));
	for (unsigned i = 0; i < N; i++)
		check_half(PAGE(i), i);
	over();
}

Test(tier, a_write_back_that_fails_loses_nothing)
{
	const unsigned n = 512;
	uintptr_t va;

	tier_scene(UP_COMPRESS_LZ4, 256 << 10);
	va = map_random(n);
	for (unsigned i = 0; i < n; i++)
		put_half(PAGE(i), i);
	for (unsigned k = 0; k < 20; k++) {
		sim_fail_nth(&r->f, 1 + k % 3, SIM_BIT(SIM_WRITE), -EIO);
		push_out(20);
		rig_settle(r);
		sim_fail_disarm(&r->f);
	}
	cr_assert(gt(u64, rig_stats(r).swap_write_errors, 0));
	for (unsigned i = 0; i < n; i++)
		check_half(PAGE(i), i);
	over();
}

/* A bit of what is in the pool, somewhere in its middle. */
static void
damage(void)
{
	struct zpool *zp = &r->p->tier.pool;

	zp->base[zp->pool / 2] ^= 4;
}

/* How many pages say that they are lost; the others hold what was put there. */
static unsigned
lost_of(uintptr_t va, unsigned n)
{
	unsigned lost = 0;

	for (unsigned i = 0; i < n; i++) {
		uint64_t w;

		if (rig_touch(r, 0, PAGE(i), false, &w, 0, 8) == SIM_SIGBUS)
			lost++;
		else
			check_half(PAGE(i), i);
	}
	return lost;
}

Test(tier, a_page_that_comes_back_from_it_has_earned_no_round)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);

	for (unsigned i = 0; i < N; i++)
		check_half(PAGE(i), i);
	for (unsigned i = 0; i < N; i++)
		cr_assert(le(uint, page_of(PAGE(i))->node.count, 1));
	over();
}

Test(tier, damage_is_told_to_who_touches_the_page_and_to_nobody_else)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
	struct up_stats st;

	damage();
	cr_assert(eq(uint, lost_of(va, N), 1));
	st = rig_stats(r);
	cr_assert(eq(u64, st.checksum_errors, 1));
	cr_assert(eq(u64, st.lost, PAGE_SIZE));
	cr_assert(not(zero(ptr, strstr(r->log[(r->nlog - 1) % ARRAY_SIZE(r->log)], "compressed"))));
	over();
}

Test(tier, damage_is_not_written_back)
{
	const unsigned n = 512;
	uintptr_t va;

	tier_scene(UP_COMPRESS_LZ4, 256 << 10);
	va = map_random(n);
	for (unsigned i = 0; i < 64; i++)
		put_half(PAGE(i), i);
	zip_out();
	cr_assert(ge(sz, zipped(), 32));
	damage();
	for (unsigned i = 64; i < n; i++)
		put_half(PAGE(i), i);
	zip_out();
	cr_assert(eq(uint, lost_of(va, n), 1));
	over();
}

Test(tier, discarded_and_unmapped_while_compressed)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);

	advise(PAGE(10), 10, UP_ADVICE_DONTNEED);
	cr_assert(eq(sz, zipped(), N - 10));
	for (unsigned i = 10; i < 20; i++)
		check_zeros(PAGE(i));
	check_half(PAGE(20), 20);
	unmap(va, N);
	cr_assert(zero(sz, zipped()));
	over();
}

Test(tier, a_stream_unpacks_many_at_a_time)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);

	advise(va, N, UP_ADVICE_SEQUENTIAL);
	seen();
	for (unsigned i = 0; i < N; i++)
		check_half(PAGE(i), i);
	expect(SOFT(N / ZIP_RUN_MAX));
	over();
}

/* A stream from the third fault on; each window is twice the one before. */
Test(tier, a_stream_that_goes_backwards_unpacks_many_at_a_time)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);

	advise(va, N, UP_ADVICE_NORMAL);
	seen();
	for (unsigned i = N; i-- > 0;)
		check_half(PAGE(i), i);
	cr_assert(le(u64, rig_stats(r).faults[UP_FAULT_SOFT] - scene_seen.faults[UP_FAULT_SOFT],
		     8 + N / ZIP_RUN_MAX));
	cr_assert(eq(u64, rig_stats(r).pages_decompressed, N));
	zip_out();
	check_half(va, 0);
	over();
}

static enum policy_queue
queue_of(uintptr_t va)
{
	const struct page *pg = page_of(va);

	cr_assert(pg != NULL, "%#lx is not in memory", (unsigned long)va);
	return (enum policy_queue)pg->node.queue;
}

/* So that a loop finds a part of it in memory; of a small region nobody knows that it is more than once.  The second half comes back soon after it left. */
Test(tier, what_is_read_in_order_will_have_been_used_once)
{
	for (unsigned told = 0; told < 2; told++) {
		const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
		unsigned once = 0;

		advise(va, N, told ? UP_ADVICE_SEQUENTIAL : UP_ADVICE_NORMAL);
		for (unsigned i = 0; i < N; i++)
			check_half(PAGE(i), i);
		for (unsigned i = 0; i < N / 2; i++)
			once += queue_of(PAGE(i)) == PQ_ONCE;
		cr_assert(eq(uint, once, told ? N / 2 : 0));
		cr_assert(ne(int, queue_of(PAGE(N - 1)), PQ_ONCE));
		over();
	}
}

Test(tier, what_a_stream_reads_is_like_other_pages_as_soon_as_there_is_the_disk)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);

	advise(va, N, UP_ADVICE_SEQUENTIAL);
	check_half(PAGE(0), 0);
	cr_assert(eq(int, queue_of(PAGE(0)), PQ_ONCE));
	tier_falls_short(r->p);
	for (unsigned i = N / 2; i < N; i++) {
		const bool was = page_of(PAGE(i)) != NULL;

		check_half(PAGE(i), i);
		cr_assert(was || queue_of(PAGE(i)) != PQ_ONCE, "page %u", i);
	}
	over();
}

static int
number_in(void *ctx, struct up_request *req)
{
	memset(up_request_buffer(req), 0, up_request_length(req));
	for (size_t at = 0; at < up_request_length(req); at += PAGE_SIZE)
		*(uint64_t *)((char *)up_request_buffer(req) + at) = up_request_offset(req) + at;
	(*(unsigned *)ctx)++;
	up_request_complete(req, 0);
	return 0;
}

/* What its source has leaves without being packed, and comes back from there. */
Test(tier, what_a_stream_reads_from_a_source_is_like_other_pages)
{
	const struct up_pager_ops ops = { .size = sizeof ops, .page_in = number_in };
	struct up_object *obj;
	unsigned nin = 0;
	void *p;

	tier_scene(UP_COMPRESS_LZ4, 0);
	cr_assert(zero(int, up_object_create_custom(r->rt, N * PAGE_SIZE, &ops, &nin, &obj)));
	cr_assert(zero(int, up_map(r->rt, NULL, N * PAGE_SIZE, PROT_READ, UP_SHARED, obj, 0, &p)));
	advise((uintptr_t)p, N, UP_ADVICE_SEQUENTIAL);
	for (size_t i = 0; i < N; i++) {
		const uintptr_t at = (uintptr_t)p + i * PAGE_SIZE;

		cr_assert(eq(u64, rig_get(r, at), i * PAGE_SIZE));
		cr_assert(ne(int, queue_of(at), PQ_ONCE), "page %zu", i);
	}
	cr_assert(gt(uint, nin, 0));
	unmap((uintptr_t)p, N);
	up_object_unref(obj);
	over();
}

Test(tier, a_stream_over_more_than_memory_is_one_untold)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
	size_t less;

	advise(va, N, UP_ADVICE_NORMAL);
	less = (frames_most(r->p) - N * 5 / 8) * PAGE_SIZE;
	r->p->budget.limit -= less;
	/* The pool gives room back meanwhile.  By then its window is a cluster. */
	for (unsigned i = 0; i < N * 5 / 8; i++)
		check_half(PAGE(i), i);
	cr_assert(ne(int, queue_of(PAGE(N / 4)), PQ_ONCE));
	cr_assert(eq(int, queue_of(PAGE(N * 5 / 8 - 1)), PQ_ONCE));
	r->p->budget.limit += less;
	over();
}

/* Damage in the middle of a run is told to who comes to it, whichever way he goes. */
Test(tier, a_run_ends_in_front_of_what_is_damaged)
{
	for (unsigned back = 0; back < 2; back++) {
		const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
		uint64_t w;

		anon_at(PAGE(N / 2))->hash ^= 1;
		advise(va, N, back ? UP_ADVICE_NORMAL : UP_ADVICE_SEQUENTIAL);
		for (unsigned i = 0; i < N; i++) {
			const unsigned at = back ? N - 1 - i : i;

			if (at != N / 2)
				check_half(PAGE(at), at);
			else
				cr_assert(eq(int, rig_touch(r, 0, PAGE(at), false, &w, 0, 8),
					     SIM_SIGBUS));
		}
		cr_assert(eq(u64, rig_stats(r).lost, PAGE_SIZE));
		over();
	}
}

Test(tier, prefaulted_and_wanted_soon)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);

	advise(va, 32, UP_ADVICE_WILLNEED);
	rig_settle(r);
	all_are(va, 32, MAPPED);
	cr_assert(zero(int, up_prefault(r->rt, (void *)PAGE(32), 32 * PAGE_SIZE, 0)));
	all_are(PAGE(32), 32, MAPPED);
	for (unsigned i = 0; i < N; i++)
		check_half(PAGE(i), i);
	over();
}

Test(tier, a_clone_sees_what_is_compressed)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
	void *copy;

	cr_assert(zero(int, up_clone(r->rt, (void *)va, N * PAGE_SIZE, &copy)));
	put_half(PAGE(3), 1003);
	for (unsigned i = 0; i < N; i++)
		check_half((uintptr_t)copy + i * PAGE_SIZE, i);
	check_half(PAGE(3), 1003);
	for (unsigned i = 4; i < N; i++)
		check_half(PAGE(i), i);
	zip_out();
	for (unsigned i = 0; i < N; i++)
		check_half((uintptr_t)copy + i * PAGE_SIZE, i);
	over();
}

Test(tier, metadata_that_is_short_gets_the_pools_memory)
{
	const uintptr_t va = all_zipped(UP_COMPRESS_LZ4);
	const size_t had = tier_bytes(r->p);

	/* Most of the entries go, and leave holes. */
	for (unsigned i = 0; i < N; i++)
		if (i % 4 != 1)
			advise(PAGE(i), 1, UP_ADVICE_DONTNEED);
	squeeze(0);
	pager_starved(r->p, METADATA_STEP);
	rig_step(r);
	cr_assert(lt(sz, tier_bytes(r->p), had));
	unsqueeze();
	for (unsigned i = 1; i < N; i += 4)
		check_half(PAGE(i), i);
	over();
}

/* It grows whenever a page comes to it: one that did so before the metadata was there let a fill wait for that until all memory was compressed. */
Test(tier, what_metadata_waits_for_the_pool_does_not_take)
{
	frame_t f[CLUSTER_MAX];
	uintptr_t va;

	tier_scene(UP_COMPRESS_LZ4, 0);
	va = map_random(N);
	for (unsigned i = 0; i < N; i++)
		put_half(PAGE(i), i);
	cr_assert(eq(uint, frames_obtain(r->p, CLUSTER_MAX, f), CLUSTER_MAX));
	frames_release(r->p, f, CLUSTER_MAX);
	squeeze(0);
	pager_starved(r->p, METADATA_STEP);
	atomic_store(&r->p->pageout_on, true);
	cr_assert(pageout_step(r->p->service[0]));
	cr_assert(zero(sz, atomic_load(&r->p->starved)));
	cr_assert(eq(sz, r->p->budget.limit - atomic_load(&r->p->budget.used), METADATA_STEP));
	cr_assert(zero(u64, rig_stats(r).pages_staged + rig_stats(r).compressed));
	unsqueeze();
	over();
}

/* The first needs a page of the pool, for which the second's frame would do. */
Test(tier, a_page_for_which_there_is_no_room_yet_is_not_written)
{
	uintptr_t va;

	tier_scene(UP_COMPRESS_LZ4, 0);
	va = map_random(N);
	for (unsigned i = 0; i < N; i++)
		put_half(PAGE(i), i);
	no_room();
	atomic_store(&r->p->pageout_on, true);
	for (unsigned k = 0; k < 20; k++) {
		rig_step(r);
		hold_frames(false);
	}
	rig_settle(r);
	/* One batch had to be, to begin with. */
	cr_assert(le(u64, rig_stats(r).swap_write_bytes, CLUSTER_MAX * PAGE_SIZE));
	give_room();
	for (unsigned i = 0; i < N; i++)
		check_half(PAGE(i), i);
	over();
}

Test(tier, less_is_kept_free_and_staged_while_nothing_is_written)
{
	const unsigned n = 8192;
	struct up_stats st;
	uintptr_t va;
	size_t most;

	scene((struct rig_config){ .seed = 1, .memory = 24 << 20, .compression = UP_COMPRESS_LZ4 });
	va = map_random(n);
	for (unsigned i = 0; i < n; i++)
		put_half(PAGE(i), i);
	rig_settle(r);
	st = rig_stats(r);
	most = frames_most(r->p);
	cr_assert(tier_suffices(r->p));
	cr_assert(zero(u64, st.swap_writes));
	cr_assert(lt(u64, st.staged / PAGE_SIZE, most / 64 + 3 * CLUSTER_MAX));
	cr_assert(lt(sz, frames_available(r->p), 6 * CLUSTER_MAX));

	/* From the first write on it is as without a tier. */
	tier_falls_short(r->p);
	cr_assert(not(tier_suffices(r->p)));
	atomic_store(&r->p->pageout_on, true);
	for (unsigned k = 0; k < 100; k++)
		rig_step(r);
	rig_settle(r);
	cr_assert(ge(sz, frames_available(r->p), frames_most(r->p) / 16));
	for (unsigned i = 0; i < n; i++)
		check_half(PAGE(i), i);
	over();
}

Test(tier, and_less_while_pages_come_back_one_by_one)
{
	const unsigned n = 8192;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 24 << 20, .compression = UP_COMPRESS_LZ4 });
	va = map_random(n);
	for (unsigned i = 0; i < n; i++)
		put_half(PAGE(i), i);
	rig_settle(r);
	cr_assert(not(tier_serves_singles(r->p)));
	cr_assert(ge(sz, frames_available(r->p), 2 * CLUSTER_MAX));
	for (unsigned i = 0; i < n; i++)
		check_half(PAGE(i * 2741 % n), i * 2741 % n);
	cr_assert(tier_serves_singles(r->p) && tier_suffices(r->p));
	rig_settle(r);
	cr_assert(lt(sz, frames_available(r->p), 4 * CLUSTER_MAX));

	/* Of what is in swap streams are read ahead. */
	atomic_fetch_add(&r->p->nswapped, 1);
	cr_assert(not(tier_serves_singles(r->p)));
	atomic_fetch_sub(&r->p->nswapped, 1);
	cr_assert(tier_serves_singles(r->p));

	/* Who wants a run finds one soon: backwards, too. */
	zip_out();
	advise(va, n, UP_ADVICE_NORMAL);
	for (unsigned i = n / 2; i-- > 0;)
		check_half(PAGE(i), i);
	cr_assert(not(tier_serves_singles(r->p)));
	atomic_store(&r->p->tier.singles, 1u << 20);
	advise(va, n, UP_ADVICE_SEQUENTIAL);
	for (unsigned i = 0; i < n / 2; i++)
		check_half(PAGE(i), i);
	cr_assert(not(tier_serves_singles(r->p)));
	over();
}

Test(tier, limits_and_kinds_that_are_none_are_refused)
{
	int err;

	cr_assert(zero(ptr, rig_try(&(struct rig_config){ .compression = 3 }, &err)));
	cr_assert(eq(int, err, -EINVAL));
	cr_assert(zero(ptr, rig_try(&(struct rig_config){ .memory = 4 << 20,
							  .compression = UP_COMPRESS_LZ4,
							  .compress_limit = 5 << 20 },
				    &err)));
	cr_assert(eq(int, err, -EINVAL));
}

/* What regions were promised is theirs, whatever the pool would like to have. */
Test(tier, the_largest_region_that_can_be_mapped_can_be_used)
{
	size_t most = 1, too_many = 200000;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1,
				   .memory = 3 << 20,
				   .swap_slots = 262144,
				   .compression = UP_COMPRESS_LZ4 });
	while (too_many - most > 1) {
		const size_t n = (most + too_many) / 2;
		void *p;

		if (up_map(r->rt, NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0,
			   &p) < 0) {
			too_many = n;
			continue;
		}
		most = n;
		cr_assert(zero(int, up_unmap(r->rt, p, n * PAGE_SIZE)));
	}
	cr_assert(gt(sz, most, 4096));
	va = map_random(most);
	for (size_t i = 0; i < most; i++) {
		uint64_t w = i + 1;

		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), true, &w, 0, 8), SIM_OK),
			  "page %zu of %zu", i, most);
	}
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	for (size_t i = 0; i < most; i += 97) {
		uint64_t w;

		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), false, &w, 0, 8), SIM_OK));
		cr_assert(eq(u64, w, i + 1));
	}
	over();
}

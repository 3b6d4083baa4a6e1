/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_policy_sim.c: the simulator of bench/policy, against figures from books, by hand and by exhaustion.
 */
#include "model.h"

#include "assertions.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Per suite: a time-out of a single test makes Criterion 2.4 leak. */
TestSuite(policy_sim, .timeout = 120);

/* One page at a time, and no watermarks: for figures by hand. */
static struct model_config
tiny(uint32_t memory)
{
	return (struct model_config){
		.memory = memory, .batch = 1, .reclaim = 1, .staged_target = 1, .high = 1
	};
}

static struct refstring
string(const char *pages, uint32_t *room)
{
	struct refstring r = { .page = room, .n = strlen(pages), .npages = 10 };

	for (size_t i = 0; i < r.n; i++)
		room[i] = (uint32_t)(pages[i] - '0');
	return r;
}

static uint64_t
misses(run_fn *run, const char *pages, uint32_t memory)
{
	uint32_t room[64];
	const struct refstring r = string(pages, room);
	const struct model_config cfg = tiny(memory);
	struct outcome out;

	cr_assert(run(&cfg, &r, &out));
	cr_assert(zero(u64, out.soft));
	return out.misses;
}

/* L. Belady, R. Nelson and G. Shedler, CACM 12(6), 1969: with FIFO, more memory can miss more. */
Test(policy_sim, beladys_anomaly_is_there)
{
	static const char anomaly[] = "123412512345";

	cr_assert(eq(u64, misses(fifo_run, anomaly, 3), 9));
	cr_assert(eq(u64, misses(fifo_run, anomaly, 4), 10));
	cr_assert(eq(u64, misses(lru_run, anomaly, 3), 10));
	cr_assert(eq(u64, misses(lru_run, anomaly, 4), 8));
	cr_assert(eq(u64, misses(optimum_run, anomaly, 3), 7));
	cr_assert(eq(u64, misses(optimum_run, anomaly, 4), 6));
}

/* A. Silberschatz, P. Galvin and G. Gagne, "Operating System Concepts", the chapter on virtual memory. */
Test(policy_sim, the_textbook_string_gives_the_textbooks_figures)
{
	static const char book[] = "70120304230321201701";

	cr_assert(eq(u64, misses(fifo_run, book, 3), 15));
	cr_assert(eq(u64, misses(lru_run, book, 3), 12));
	cr_assert(eq(u64, misses(optimum_run, book, 3), 9));
}

/*
 *	touch   out     mapped  staged   since
 *	0 1 2           0 1 2            misses
 *	3       0       2 3     1        a miss: 0 is staged, 1 too and 0 written, 0 leaves
 *	1               2 3 1            a soft fault
 *	0       2       1 0     3        a miss, likewise
 *	1                                unseen
 *	2       3       0 2     1        a miss; 3 was staged already
 *	1               0 2 1            a soft fault
 */
Test(policy_sim, a_string_followed_by_hand_through_the_three_places)
{
	const struct model_config cfg = tiny(3);
	uint32_t room[16];
	const struct refstring r = string("012310121", room);
	struct outcome out;

	cr_assert(model_run(POLICY_SFIFO, &cfg, &r, &out));
	cr_assert(eq(u64, out.misses, 6));
	cr_assert(eq(u64, out.soft, 2));
	cr_assert(eq(u64, out.staged, 5));
}

/* The fewest misses of string[at ..] over all choices of victims; `in` is a set of pages. */
static unsigned
fewest(const struct refstring *r, size_t at, uint32_t in, unsigned room)
{
	unsigned best = UINT32_MAX;

	for (; at < r->n && (in >> r->page[at] & 1) != 0; at++)
		continue;
	if (at == r->n)
		return 0;
	in |= UINT32_C(1) << r->page[at];
	if (room > 0)
		return 1 + fewest(r, at + 1, in, room - 1);
	for (unsigned page = 0; page < 10; page++) {
		if ((in >> page & 1) != 0 && page != r->page[at]) {
			const unsigned n = 1 + fewest(r, at + 1, in & ~(UINT32_C(1) << page), 0);

			best = MIN(best, n);
		}
	}
	return best;
}

Test(policy_sim, the_optimum_is_what_trying_all_victims_finds)
{
	uint64_t seed = 88172645463325252u;

	for (unsigned round = 0; round < 300; round++) {
		uint32_t page[12];
		const struct refstring r = { .page = page, .n = 12, .npages = 10 };
		const uint32_t memory = 1 + round % 4;
		const struct model_config cfg = tiny(memory);
		struct outcome out;

		for (size_t i = 0; i < r.n; i++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			page[i] = (uint32_t)(seed % (memory + 3));
		}
		cr_assert(optimum_run(&cfg, &r, &out));
		cr_assert(eq(u64, out.misses, fewest(&r, 0, 0, memory)), "round %u", round);
	}
}

static const struct refstring_config small = {
	.pages = 8000, .memory = 1500, .n = 100000, .seed = 3
};

Test(policy_sim, no_policy_misses_less_than_the_optimum)
{
	run_fn *const others[] = { lru_run, fifo_run, s3fifo_run };

	for (unsigned law = 0; refstring_name(law) != NULL; law++) {
		struct refstring r;

		cr_assert(refstring_make(&r, law, &small));
		for (uint32_t memory = 50; memory <= 6000; memory *= 4) {
			const struct model_config cfg = model_config_for(memory);
			struct outcome best, out;

			cr_assert(optimum_run(&cfg, &r, &best));
			for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
				cr_assert(others[i](&cfg, &r, &out));
				cr_assert(le(u64, best.misses, out.misses), "%s",
					  refstring_name(law));
			}
			for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
				cr_assert(model_run(kind, &cfg, &r, &out));
				cr_assert(le(u64, best.misses, out.misses), "%s, %s",
					  refstring_name(law), policy_name(kind));
			}
		}
		refstring_free(&r);
	}
}

/* The law of that name. */
static unsigned
law_of(const char *name)
{
	unsigned law = 0;

	while (strcmp(refstring_name(law), name) != 0)
		law++;
	return law;
}

Test(policy_sim, a_loop_just_larger_than_memory_is_all_misses_for_whoever_goes_by_age)
{
	const struct model_config cfg = model_config_for(small.memory);
	struct refstring r;
	struct outcome out;

	cr_assert(refstring_make(&r, law_of("loop"), &small));
	cr_assert(fifo_run(&cfg, &r, &out));
	cr_assert(eq(u64, out.misses, r.n));
	cr_assert(lru_run(&cfg, &r, &out));
	cr_assert(eq(u64, out.misses, r.n));
	cr_assert(model_run(POLICY_SFIFO, &cfg, &r, &out));
	cr_assert(eq(u64, out.misses, r.n));
	cr_assert(zero(u64, out.soft));
	cr_assert(optimum_run(&cfg, &r, &out));
	/* Of each 1,651 all but the 151 that do not fit are hits: 1,500 of them after the first round. */
	cr_assert(lt(u64, out.misses, r.n / 8));
	refstring_free(&r);
}

Test(policy_sim, what_fits_is_missed_once_and_never_staged)
{
	const struct model_config cfg = model_config_for(small.pages + 1000);

	for (unsigned law = 0; refstring_name(law) != NULL; law++) {
		struct outcome best, out;
		struct refstring r;

		cr_assert(refstring_make(&r, law, &small));
		cr_assert(optimum_run(&cfg, &r, &best));
		cr_assert(le(u64, best.misses, r.npages));
		for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
			cr_assert(model_run(kind, &cfg, &r, &out));
			cr_assert(eq(u64, out.misses, best.misses));
			cr_assert(zero(u64, out.soft | out.staged));
		}
		refstring_free(&r);
	}
}

Test(policy_sim, soft_faults_are_why_segmented_fifo_misses_less_than_fifo)
{
	const struct model_config cfg = model_config_for(small.memory);
	struct outcome fifo, ours;
	struct refstring r;

	cr_assert(refstring_make(&r, law_of("zipf-0.99"), &small));
	cr_assert(fifo_run(&cfg, &r, &fifo));
	cr_assert(model_run(POLICY_SFIFO, &cfg, &r, &ours));
	cr_assert(lt(u64, ours.misses, fifo.misses));
	cr_assert(gt(u64, ours.soft, 0));
	refstring_free(&r);
}

Test(policy_sim, the_same_seed_gives_the_same_string_and_another_seed_another)
{
	for (unsigned law = 0; refstring_name(law) != NULL; law++) {
		struct refstring_config other = small;
		struct refstring a, b, c;
		bool random;

		other.seed = small.seed + 1;
		cr_assert(refstring_make(&a, law, &small));
		cr_assert(refstring_make(&b, law, &small));
		cr_assert(refstring_make(&c, law, &other));
		for (size_t i = 0; i < a.n; i++)
			cr_assert(lt(u32, a.page[i], a.npages));
		cr_assert(zero(int, memcmp(a.page, b.page, a.n * sizeof a.page[0])));
		random = law != law_of("scan") && law != law_of("loop");
		cr_assert(eq(int, memcmp(a.page, c.page, a.n * sizeof a.page[0]) != 0, random),
			  "%s", refstring_name(law));
		refstring_free(&a);
		refstring_free(&b);
		refstring_free(&c);
	}
}

/* refstring_read() of a file with that text. */
static bool
read_text(struct refstring *r, const char *text)
{
	char path[] = "/tmp/uffd-pager-string.XXXXXX";
	const int fd = mkstemp(path);
	bool ok;

	cr_assert(ge(int, fd, 0));
	cr_assert(eq(sz, (size_t)write(fd, text, strlen(text)), strlen(text)));
	close(fd);
	ok = refstring_read(r, path);
	unlink(path);
	return ok;
}

Test(policy_sim, a_file_has_one_page_number_a_line_and_any_will_do)
{
	static const uint32_t want[] = { 1, 2, 0, 1, 3 };
	struct refstring r;

	cr_assert(read_text(&r, "# from somewhere\n17\n0x20\n\n3 # the third\n17\n"
				"18446744073709551615"));
	cr_assert(eq(sz, r.n, ARRAY_SIZE(want)));
	cr_assert(eq(u32, r.npages, 4));
	for (size_t i = 0; i < r.n; i++)
		cr_assert(eq(u32, r.page[i], want[i]));
	refstring_free(&r);
}

Test(policy_sim, what_is_not_a_file_of_page_numbers_is_refused)
{
	static const char *const bad[] = {
		"", "# nothing\n\n", "1\n-2\n", "1\ntwo\n", "1 2\n", "18446744073709551616\n",
	};
	struct refstring r;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cr_assert(not(read_text(&r, bad[i])), "\"%s\"", bad[i]);
		cr_assert(r.page == NULL);
	}
	cr_assert(not(refstring_read(&r, "/tmp/uffd-pager-string-that-is-not-there")));
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * model.h: what a replacement policy makes of a reference string.
 *
 *	model.c      the library's own policies (lib/vm/policy.h), seeing what the library sees
 *	textbook.c   for comparison: policies that see every touch, or none; and the optimum
 *
 * The model of the library: a page is
 *
 *	mapped    a touch costs nothing, and the policy does not learn of it
 *	staged    a touch is a soft fault
 *	out       a touch is a miss; so is the first touch of all
 *
 * and pageout works to the watermarks of pager/pageout.c.  Writes take no time, all pages are dirty when
 * they are staged, nothing is read ahead, and nobody holds a page busy.
 */
#ifndef MODEL_H
#define MODEL_H

#include "refstring.h"
#include "vm/policy.h"

struct outcome {
	uint64_t misses; /* first touches, and touches of pages that are out */
	uint64_t soft;	 /* soft faults */
	uint64_t staged; /* pages taken out of the page table */
};

struct model_config {
	uint32_t memory;	/* pages */
	uint32_t batch;		/* staged or written at a time */
	uint32_t reclaim;	/* frames taken from clean pages at a time */
	uint32_t staged_target; /* staged pages not written yet that we want */
	uint32_t high; /* free and clean: pageout begins below half of this, and stops here */
};

/* As pager/pageout.c would set it for a memory of that size. */
struct model_config model_config_for(uint32_t memory);

/* False if there is no memory to run it. */
typedef bool run_fn(const struct model_config *cfg, const struct refstring *r, struct outcome *out);

bool model_run(enum policy_kind kind, const struct model_config *cfg, const struct refstring *r,
	       struct outcome *out);

/* They take no notice of anything in cfg but the memory. */
run_fn optimum_run; /* L. Belady, "A study of replacement algorithms", IBM Systems Journal 5(2), 1966 */
run_fn lru_run;	    /* sees every touch */
run_fn s3fifo_run; /* sees every touch; as in the paper, see lib/vm/policy_s3fifo.c */
run_fn fifo_run;   /* sees none */

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_stress.c: the mill of stress.c in short runs, one for each way of running the library.
 *
 * Each run has threads that read, write, hand pages to system calls, advise, protect, unmap and map
 * again, objects included, while others fork, take signals and create runtimes, all under
 * a limit so small that everything thrashes.  Every byte has an oracle, every step a
 * deadline, and the kernel's count of resident memory is held against the limit.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "stress.h"

TestSuite(stress, .timeout = 240);

static void
mill(struct stress cfg)
{
	struct stress_result res;
	struct up_config config = { .memory_limit = cfg.memory, .feature_mask = cfg.mask };
	struct up_runtime *rt;
	const int r = up_runtime_create(&rt, &config);

	if (r < 0)
		cr_skip_test("no userfaultfd here: %d", r);
	up_runtime_destroy(rt);

	stress_run(&cfg, &res); /* aborts on the first thing that is wrong */
	cr_assert(gt(u64, res.pages, 0), "nothing was verified");
	cr_assert(gt(u64, res.st.pages_out, 0), "nothing was paged out: no stress");
	cr_assert(gt(u64, res.st.faults[UP_FAULT_MAJOR], 0));
	cr_assert(gt(u64, res.samples, 0));
	cr_assert(eq(u64, res.st.checksum_errors, 0));
	cr_assert(eq(u64, res.st.lost, 0));
}

Test(stress, one_service_and_two_mebibytes)
{
	mill((struct stress){ .seconds = 6,
			      .threads = 6,
			      .services = 1,
			      .memory = UP_MEMORY_LIMIT_MIN,
			      .seed = 11 });
}

Test(stress, four_services_on_few_cpus)
{
	mill((struct stress){
		.seconds = 6, .threads = 8, .services = 4, .memory = 4 << 20, .seed = 12 });
}

Test(stress, two_services_without_move)
{
	mill((struct stress){ .seconds = 6,
			      .threads = 6,
			      .services = 2,
			      .memory = 3 << 20,
			      .mask = UP_MASK_MOVE,
			      .seed = 13 });
}

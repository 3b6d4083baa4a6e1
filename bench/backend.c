/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * backend.c: a runtime with another replacement policy than the default.
 *
 * The one place of the benchmark that looks behind the public header, and so it does not see bench.h.
 */
#include <errno.h>
#include <string.h>

#include "runtime.h"

int runtime_open_with(struct up_runtime **rt, const struct up_config *cfg, const char *policy);

int
runtime_open_with(struct up_runtime **rt, const struct up_config *cfg, const char *policy)
{
	static struct backend b; /* outlives the runtime */
	enum policy_kind kind = 0;

	if (policy == NULL)
		return up_runtime_create(rt, cfg);
	while (strcmp(policy_name(kind), policy) != 0)
		if (++kind == POLICY_KINDS)
			return -EINVAL;
	b = *runtime_backend();
	b.policy = kind;
	return runtime_create(rt, cfg, &b);
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_criu.c: any bytes at all as images of CRIU.
 *
 * The first byte says which image the rest is; as pagemaps it is cut into mappings and layers behind each other, each behind its length of
 * 16 bits, and what comes of them is resolved.
 *
 * Checked beside that nothing crashes: what is accepted is sound, what is refused has a reason, and leaves nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "criu_image.h"
#include "fuzz_files.h"

#define LAYERS 4
#define CHECK(is) ((is) ? (void)0 : (fprintf(stderr, "%s\n", #is), abort()))

static char why[64];

static void
check_reason(int r)
{
	CHECK(r < 0 && why[0] != '\0' && strlen(why) < sizeof why);
}

static void
check_pagemap(const struct criu_pagemap *pm)
{
	uint64_t end = 0, bytes = 0;

	CHECK(pm->n <= CRIU_ENTRIES_MAX);
	for (size_t i = 0; i < pm->n; i++) {
		const struct criu_entry *e = &pm->entry[i];

		CHECK(e->start >= end && e->start % 4096 == 0);
		CHECK(e->len > 0 && e->len % 4096 == 0 && e->start + e->len > e->start);
		CHECK(e->offset == bytes);
		if (e->flags & CRIU_PRESENT)
			bytes += e->len;
		end = e->start + e->len;
	}
	CHECK(pm->bytes == bytes);
}

static void
check_vmas(const struct criu_vmas *v)
{
	uint64_t end = 0;

	for (size_t i = 0; i < v->n; i++) {
		CHECK(v->vma[i].start >= end && v->vma[i].start < v->vma[i].end);
		end = v->vma[i].end;
	}
}

/* Every run is in one mapping or none, and has content in its layer. */
static void
check_runs(const struct criu_runs *runs, const struct criu_pagemap *layer, unsigned layers,
	   const struct criu_vmas *v)
{
	uint64_t end = 0;

	CHECK(runs->n <= CRIU_RANGES_MAX);
	for (size_t i = 0; i < runs->n; i++) {
		const struct criu_run *r = &runs->run[i];

		CHECK(r->start >= end && r->len > 0 && r->layer < layers);
		end = r->start + r->len;
		CHECK(end > r->start);
		CHECK(r->offset % 4096 == 0 && r->offset <= layer[r->layer].bytes &&
		      r->len <= layer[r->layer].bytes - r->offset);
		for (size_t k = 0; k < v->n && k < 64; k++)
			CHECK(r->start >= v->vma[k].end || end <= v->vma[k].start ||
			      (r->start >= v->vma[k].start && end <= v->vma[k].end));
	}
}

static void
resolve(const uint8_t *data, size_t size)
{
	struct criu_pagemap layer[LAYERS];
	struct criu_vmas v = { 0 };
	struct criu_runs runs;
	unsigned n = 0;
	int r = 0;

	for (unsigned i = 0; i <= LAYERS && size >= 2 && r == 0; i++) {
		size_t len = data[0] | (size_t)data[1] << 8;

		data += 2;
		size -= 2;
		len = len < size ? len : size;
		if (i == 0)
			r = criu_parse_mm(data, len, &v, why, sizeof why);
		else if ((r = criu_parse_pagemap(data, len, &layer[n], why, sizeof why)) == 0)
			n++;
		data += len;
		size -= len;
	}
	if (n > 0) {
		r = criu_resolve(layer, n, &v, &runs, why, sizeof why);
		if (r == 0)
			check_runs(&runs, layer, n, &v);
		else
			check_reason(r);
		CHECK(r == 0 || runs.run == NULL);
		free(runs.run);
	}
	for (unsigned i = 0; i < n; i++)
		free(layer[i].entry);
	free(v.vma);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct criu_pagemap pm;
	struct criu_tasks t;
	struct criu_vmas v;
	int r;

	if (size == 0)
		return 0;
	why[0] = '\0';
	switch (data[0] % 5) {
	case 0:
		r = criu_parse_inventory(data + 1, size - 1, why, sizeof why);
		break;
	case 1:
		r = criu_parse_pstree(data + 1, size - 1, &t, why, sizeof why);
		CHECK(r < 0 ? t.pid == NULL && t.n == 0 : t.n > 0 && t.n <= CRIU_TASKS_MAX);
		free(t.pid);
		break;
	case 2:
		r = criu_parse_pagemap(data + 1, size - 1, &pm, why, sizeof why);
		CHECK(r == 0 || (pm.entry == NULL && pm.n == 0));
		check_pagemap(&pm);
		free(pm.entry);
		break;
	case 3:
		r = criu_parse_mm(data + 1, size - 1, &v, why, sizeof why);
		CHECK(r == 0 || (v.vma == NULL && v.n == 0));
		check_vmas(&v);
		free(v.vma);
		break;
	default:
		resolve(data + 1, size - 1);
		return 0;
	}
	if (r < 0)
		check_reason(r);
	return 0;
}

/* SPDX-License-Identifier: BSD-2-Clause */
#include "firecracker_wire.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

#define PAGE 4096u
#define HUGE (2u << 20)

int64_t
fc_scan(struct fc_scan *s, const char *text, size_t len, bool *complete)
{
	*complete = false;
	for (size_t i = 0; i < len; i++) {
		const char c = text[i];

		if (s->string) {
			if (s->escaped)
				s->escaped = false;
			else if (c == '\\')
				s->escaped = true;
			else if (c == '"')
				s->string = false;
			continue;
		}
		if (s->depth == 0) {
			if (c == ' ' || c == '\t' || c == '\n' || c == '\r')
				continue;
			if (c != '[')
				return -EPROTO;
		}
		switch (c) {
		case '"':
			s->string = true;
			break;
		case '[':
		case '{':
			s->begun = true;
			if (++s->depth > FC_NESTED_MAX)
				return -EPROTO;
			break;
		case ']':
		case '}':
			if (--s->depth == 0) {
				*s = (struct fc_scan){ 0 };
				*complete = true;
				return (int64_t)i + 1;
			}
			break;
		default:
			break;
		}
	}
	return (int64_t)len;
}

static int
page_size(const json_t *o, size_t i, uint64_t *size, const struct wire_reason *why)
{
	int r = wire_number(o, "page_size", i, size, why);

	/* Bytes, whatever it is called. */
	if (r == -ENOENT)
		r = wire_number(o, "page_size_kib", i, size, why);
	if (r == -ENOENT) {
		*size = PAGE;
		r = 0;
	}
	if (r == 0 && *size != PAGE && *size != HUGE)
		r = wire_refuse(why, -EINVAL,
				"pages of region %zu are of %" PRIu64
				" bytes: 4096 and 2097152 are known",
				i, *size);
	return r;
}

static int
region(const json_t *o, size_t i, uint64_t file_size, struct fc_region *rg,
       const struct wire_reason *why)
{
	const json_t *secret;
	uint64_t size;
	int r;

	if (!json_is_object(o))
		return wire_refuse(why, -EPROTO, "region %zu is no object", i);
	secret = json_object_get(o, "is_guest_memfd");
	if (secret != NULL && !json_is_false(secret) && !json_is_null(secret))
		return wire_refuse(why, -ENOTSUP,
				   "region %zu is guest_memfd (secret-free): that is not served",
				   i);
	if ((r = wire_number(o, "base_host_virt_addr", i, &rg->address, why)) < 0 ||
	    (r = wire_number(o, "size", i, &rg->size, why)) < 0 ||
	    (r = wire_number(o, "offset", i, &rg->offset, why)) < 0 ||
	    (r = page_size(o, i, &size, why)) < 0)
		return r == -ENOENT ? -EINVAL : r;
	rg->page_size = (uint32_t)size;
	if (rg->address == 0 || rg->size == 0 || rg->address % size != 0 || rg->size % size != 0 ||
	    rg->offset % PAGE != 0)
		return wire_refuse(why, -EINVAL, "region %zu is empty, or not made of whole pages",
				   i);
	/* All three are below 2^63. */
	if (rg->address + rg->size > INT64_MAX)
		return wire_refuse(why, -EINVAL, "region %zu goes beyond the end of memory", i);
	if (rg->offset > file_size || rg->size > file_size - rg->offset)
		return wire_refuse(why, -EINVAL,
				   "region %zu (offset %" PRIu64 ", size %" PRIu64
				   ") goes beyond the end of the memory file (%" PRIu64 ")",
				   i, rg->offset, rg->size, file_size);
	return 0;
}

static int
by_address(const void *a, const void *b)
{
	const struct fc_region *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

static int
by_offset(const void *a, const void *b)
{
	const struct fc_region *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Each checked alone: none overlaps another, and together they are the file. */
static int
check(struct fc_region *rg, size_t n, uint64_t file_size, const struct wire_reason *why)
{
	uint64_t sum = 0;

	qsort(rg, n, sizeof *rg, by_offset);
	for (size_t i = 0; i < n; i++) {
		/* They do not overlap, so the sum does not wrap. */
		if (i > 0 && rg[i].offset < rg[i - 1].offset + rg[i - 1].size)
			return wire_refuse(why, -EINVAL,
					   "two regions overlap in the file, at offset %" PRIu64,
					   rg[i].offset);
		sum += rg[i].size;
	}
	qsort(rg, n, sizeof *rg, by_address);
	for (size_t i = 1; i < n; i++) {
		if (rg[i].address < rg[i - 1].address + rg[i - 1].size)
			return wire_refuse(why, -EINVAL,
					   "two regions overlap in memory, at %#" PRIx64,
					   rg[i].address);
	}
	if (sum != file_size)
		return wire_refuse(why, -EINVAL,
				   "the regions are %" PRIu64 " bytes, the memory file is %" PRIu64
				   ": it is not this machine's",
				   sum, file_size);
	return 0;
}

int
fc_parse(const char *text, size_t len, uint64_t file_size, struct fc_region **regions,
	 char *whytext, size_t whysize)
{
	const struct wire_reason why = { whytext, whysize };
	struct fc_region *rg = NULL;
	json_error_t error;
	json_t *all;
	size_t n;
	int r = 0;

	*regions = NULL;
	all = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	if (all == NULL)
		return wire_refuse(&why, -EPROTO, "it is no JSON: %.160s, at byte %d", error.text,
				   error.position);
	n = json_array_size(all);
	if (!json_is_array(all) || n == 0)
		r = wire_refuse(&why, -EPROTO, "it is no array of regions");
	else if (n > FC_REGIONS_MAX)
		r = wire_refuse(&why, -E2BIG, "%zu regions: %u are the most", n, FC_REGIONS_MAX);
	else if ((rg = calloc(n, sizeof *rg)) == NULL)
		r = wire_refuse(&why, -ENOMEM, "no memory");
	for (size_t i = 0; i < n && r == 0; i++)
		r = region(json_array_get(all, i), i, file_size, &rg[i], &why);
	if (r == 0)
		r = check(rg, n, file_size, &why);
	json_decref(all);
	if (r < 0) {
		free(rg);
		return r;
	}
	*regions = rg;
	return (int)n;
}

/* SPDX-License-Identifier: BSD-2-Clause */
#include "handoff_wire.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

#define PAGE 4096u

int64_t
handoff_length(const unsigned char h[HANDOFF_HEADER])
{
	const uint32_t len =
		(uint32_t)h[0] | (uint32_t)h[1] << 8 | (uint32_t)h[2] << 16 | (uint32_t)h[3] << 24;

	if (len == 0)
		return -EPROTO;
	return len > HANDOFF_MESSAGE_MAX ? -E2BIG : (int64_t)len;
}

static int
region(const json_t *o, size_t i, struct handoff_region *rg, const struct wire_reason *why)
{
	uint64_t guest;
	int r;

	if (!json_is_object(o))
		return wire_refuse(why, -EPROTO, "region %zu is no object", i);
	if ((r = wire_number(o, "guest_phys_addr", i, &guest, why)) < 0 ||
	    (r = wire_number(o, "host_virt_addr", i, &rg->address, why)) < 0 ||
	    (r = wire_number(o, "size", i, &rg->size, why)) < 0 ||
	    (r = wire_number(o, "backing_file_offset", i, &rg->offset, why)) < 0)
		return r == -ENOENT ? -EINVAL : r;
	if (rg->address == 0 || rg->size == 0 || (rg->address | rg->size | rg->offset) % PAGE != 0)
		return wire_refuse(why, -EINVAL, "region %zu is empty, or not made of whole pages",
				   i);
	/* All are below 2^63. */
	if (rg->address + rg->size > INT64_MAX || rg->offset + rg->size > INT64_MAX)
		return wire_refuse(why, -EINVAL, "region %zu goes beyond the end of memory", i);
	return 0;
}

static int
by_address(const void *a, const void *b)
{
	const struct handoff_region *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

static int
all_of(const json_t *o, struct handoff_message *m, const struct wire_reason *why)
{
	static const char *const modes[] = {
		[HANDOFF_MISSING] = "MISSING", [HANDOFF_WP] = "WP", [HANDOFF_WP_ASYNC] = "WP_ASYNC"
	};
	const json_t *version = json_object_get(o, "version"), *pid = json_object_get(o, "vmm_pid"),
		     *list = json_object_get(o, "regions");
	const char *mode = json_string_value(json_object_get(o, "mode"));
	unsigned k = 0;

	if (!json_is_integer(version))
		return wire_refuse(why, -EPROTO, "it has no version");
	if (json_integer_value(version) != 0)
		return wire_refuse(why, -EPROTONOSUPPORT,
				   "version %" JSON_INTEGER_FORMAT ": 0 is known",
				   json_integer_value(version));
	if (!json_is_integer(pid) || json_integer_value(pid) <= 0)
		return wire_refuse(why, -EINVAL, "vmm_pid is no process");
	m->pid = (uint64_t)json_integer_value(pid);
	while (mode != NULL && k < 3 && strcmp(mode, modes[k]) != 0)
		k++;
	if (mode == NULL || k == 3)
		return wire_refuse(why, -EINVAL, "its mode is none of MISSING, WP, WP_ASYNC");
	m->mode = (enum handoff_mode)k;
	if (!json_is_array(list) || json_array_size(list) == 0)
		return wire_refuse(why, -EPROTO, "it has no regions");
	if (json_array_size(list) > HANDOFF_REGIONS_MAX)
		return wire_refuse(why, -E2BIG, "%zu regions: %u are the most",
				   json_array_size(list), HANDOFF_REGIONS_MAX);
	m->n = (unsigned)json_array_size(list);
	m->region = calloc(m->n, sizeof m->region[0]);
	if (m->region == NULL)
		return wire_refuse(why, -ENOMEM, "no memory");
	for (unsigned i = 0; i < m->n; i++) {
		const int r = region(json_array_get(list, i), i, &m->region[i], why);

		if (r < 0)
			return r;
	}
	qsort(m->region, m->n, sizeof m->region[0], by_address);
	for (unsigned i = 1; i < m->n; i++) {
		if (m->region[i].address < m->region[i - 1].address + m->region[i - 1].size)
			return wire_refuse(why, -EINVAL,
					   "two regions overlap in memory, at %#" PRIx64,
					   m->region[i].address);
	}
	return 0;
}

static int
add_of(const json_t *o, struct handoff_message *m, const struct wire_reason *why)
{
	m->type = HANDOFF_ADD;
	m->n = 1;
	m->region = calloc(1, sizeof m->region[0]);
	if (m->region == NULL)
		return wire_refuse(why, -ENOMEM, "no memory");
	return region(json_object_get(o, "region"), 0, m->region, why);
}

int
handoff_parse(const char *text, size_t len, struct handoff_message *m, char *whytext,
	      size_t whysize)
{
	const struct wire_reason why = { whytext, whysize };
	const char *type;
	json_error_t error;
	json_t *o;
	int r;

	*m = (struct handoff_message){ .region = NULL };
	o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	if (o == NULL)
		return wire_refuse(&why, -EPROTO, "it is no JSON: %.160s, at byte %d", error.text,
				   error.position);
	type = json_string_value(json_object_get(o, "type"));
	if (type != NULL && strcmp(type, "handoff") == 0)
		r = all_of(o, m, &why);
	else if (type != NULL && strcmp(type, "add_region") == 0)
		r = add_of(o, m, &why);
	else
		r = wire_refuse(&why, -EPROTO, "its type is neither handoff nor add_region");
	json_decref(o);
	if (r < 0) {
		free(m->region);
		*m = (struct handoff_message){ .region = NULL };
	}
	return r;
}

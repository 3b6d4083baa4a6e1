/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * dump.c: the map, for people: up_map_dump().
 */
#include "dump.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "childmsg.h"
#include "remote.h"

/* What the line before this one says of the same object is not asked again. */
static void
dump_object(struct pager *p, struct object *o, struct dump_line *line)
{
	if (line->object.id != o->id)
		object_info(p, o, &line->object);
	snprintf(line->name, sizeof line->name, "%s%s", o->name != NULL ? " " : "",
		 o->name != NULL ? o->name : "");
}

static void
dump_range(struct pager *p, const struct map_entry *e, struct dump_line *line)
{
	line->what = DUMP_RANGE;
	line->serial = e->serial;
	line->depth = 0;
	line->start = e->start;
	line->end = e->end;
	line->offset = e->offset << PAGE_SHIFT;
	line->prot = e->prot;
	line->shared = (e->flags & UP_SHARED) != 0;
	line->wired = e->wired;
	line->inherit = e->inherit;
	dump_object(p, e->object, line);
}

/* The next object beneath the range of `line`.  False: there is none, or the range is another by now. */
static bool
dump_beneath(struct pager *p, struct map *map, struct dump_line *line)
{
	const struct map_entry *e = map_lookup(map, line->start);
	struct object *o;
	uint64_t at;

	if (e == NULL || e->start != line->start || e->serial != line->serial)
		return false;
	o = e->object;
	at = e->offset;
	for (unsigned i = 0; i <= line->depth; i++) {
		at += o->backing_offset;
		o = o->backing;
		if (o == NULL)
			return false;
	}
	line->what = DUMP_BENEATH;
	line->depth++;
	line->offset = at << PAGE_SHIFT;
	dump_object(p, o, line);
	return true;
}

/* True if whoever asks may know of it: a client of its own children, whose account is the client's. */
static bool
is_shown(const struct space *of, const struct space *sp)
{
	return of == NULL || (sp->client == NULL && sp->account == of->account);
}

/* The oldest child that is younger than this one, or NULL. */
static struct space *
space_after(struct pager *p, const struct space *of, uint64_t id)
{
	struct space *next = NULL;

	for (struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		if (sp->id > id && is_shown(of, sp) && (next == NULL || sp->id < next->id))
			next = sp;
	}
	return next;
}

bool
dump_next(struct pager *p, const struct space *of, struct dump_line *line)
{
	struct space *sp = line->space > 0 ? space_after(p, of, line->space - 1) : NULL;
	struct map *map = of != NULL ? (struct map *)(uintptr_t)&of->map : &p->map;
	struct map_entry *e;

	if (line->space > 0)
		map = sp != NULL && sp->id == line->space ? &sp->map : NULL;
	if (map != NULL) {
		if (line->serial > 0 && dump_beneath(p, map, line))
			return true;
		e = map_first_from(map, line->end);
		if (e != NULL) {
			dump_range(p, e, line);
			return true;
		}
	}
	sp = space_after(p, of, line->space);
	if (sp == NULL)
		return false;
	line->what = DUMP_CHILD;
	line->space = sp->id;
	line->pid = atomic_load(&sp->pid);
	line->serial = 0;
	line->end = 0;
	return true;
}

/* In columns of the same width as those of dump_print(). */
void
dump_head(FILE *out)
{
	fprintf(out, "%-25s %-5s %-8s %6s %-9s %8s %8s %7s %4s %4s %5s %-5s name\n", "address",
		"perms", "offset", "object", "pager", "pages", "resident", "swapped", "lost",
		"refs", "wired", "fork");
}

void
dump_print(FILE *out, const struct dump_line *line)
{
	static const char *const inherit[] = {
		[UP_INHERIT_NONE] = "-",
		[UP_INHERIT_COPY] = "copy",
		[UP_INHERIT_SHARE] = "share",
	};
	const struct up_object_stats *o = &line->object;
	const bool range = line->what == DUMP_RANGE;
	char where[40] = "  over", perms[] = "-", wired[12] = "-";
	char rwx[] = { line->prot == PROT_NONE ? '-' : 'r', (line->prot & PROT_WRITE) ? 'w' : '-',
		       '-', line->shared ? 's' : 'p', '\0' };

	if (line->what == DUMP_CHILD) {
		if (line->pid > 0)
			fprintf(out, "child PID %d\n", line->pid);
		else
			fputs("child PID -\n", out);
		return;
	}
	if (range) {
		snprintf(where, sizeof where, "%" PRIxPTR "-%" PRIxPTR, line->start, line->end);
		snprintf(wired, sizeof wired, "%u", line->wired);
	}
	fprintf(out,
		"%-25s %-5s %08" PRIx64 " %6" PRIu64 " %-9s %8" PRIu64 " %8" PRIu64 " %7" PRIu64
		" %4" PRIu64 " %4" PRIu32 " %5s %s%s\n",
		where, range ? rwx : perms, line->offset, o->id, o->pager, o->size >> PAGE_SHIFT,
		o->resident >> PAGE_SHIFT, o->swapped >> PAGE_SHIFT, o->lost >> PAGE_SHIFT, o->refs,
		wired, range ? inherit[line->inherit] : "-", line->name);
}

/* --- in messages --- */

size_t
dump_pack(unsigned char to[], size_t room, const struct dump_line *line)
{
	const struct up_object_stats *o = &line->object;
	const size_t name = strlen(line->name);
	const size_t all = round_up(sizeof(struct dump_record) + name + 1, sizeof(uint64_t));
	struct dump_record rec = {
		.space = line->space,
		.serial = line->serial,
		.start = line->start,
		.end = line->end,
		.offset = line->offset,
		.object = o->id,
		.size = o->size,
		.resident = o->resident,
		.swapped = o->swapped,
		.lost = o->lost,
		.what = line->what,
		.depth = line->depth,
		.prot = (uint32_t)line->prot,
		.shared = line->shared,
		.wired = line->wired,
		.inherit = line->inherit,
		.pid = (uint32_t)line->pid,
		.refs = o->refs,
		/* A child that comes first has no object yet. */
		.pager = pager_number(o->pager != NULL ? o->pager : "anonymous"),
		.name = (uint32_t)name,
	};

	if (all > room)
		return 0;
	memcpy(to, &rec, sizeof rec);
	memset(to + sizeof rec, 0, all - sizeof rec);
	memcpy(to + sizeof rec, line->name, name);
	return all;
}

/* True if a line may come after another: the end is nearer then. */
static bool
follows(const struct dump_line *line, const struct dump_record *rec)
{
	switch (rec->what) {
	case DUMP_RANGE:
		return rec->space == line->space && rec->start < rec->end && rec->end > line->end &&
		       rec->serial > 0;
	case DUMP_BENEATH:
		return rec->space == line->space && line->serial > 0 &&
		       rec->serial == line->serial && rec->start == line->start &&
		       rec->end == line->end && rec->depth > line->depth;
	case DUMP_CHILD:
		return rec->space > line->space && rec->serial == 0 && rec->end == 0 &&
		       rec->pid <= INT32_MAX;
	default:
		return false;
	}
}

size_t
dump_unpack(const unsigned char from[], size_t n, struct dump_line *line)
{
	struct dump_record rec;
	size_t all;

	if (n < sizeof rec)
		return 0;
	memcpy(&rec, from, sizeof rec);
	if (rec.name > UP_OBJECT_NAME_MAX + 1)
		return 0;
	all = round_up(sizeof rec + rec.name + 1, sizeof(uint64_t));
	if (all > n || strnlen((const char *)from + sizeof rec, rec.name + 1) != rec.name)
		return 0;
	if (!follows(line, &rec) || (rec.prot & ~(uint32_t)(PROT_READ | PROT_WRITE)) != 0 ||
	    rec.shared > 1 || rec.inherit > UP_INHERIT_SHARE || pager_name(rec.pager) == NULL)
		return 0;
	*line = (struct dump_line){
		.what = (enum dump_what)rec.what,
		.space = rec.space,
		.pid = (int)rec.pid,
		.serial = rec.serial,
		.depth = rec.depth,
		.start = rec.start,
		.end = rec.end,
		.offset = rec.offset,
		.prot = (int)rec.prot,
		.shared = rec.shared != 0,
		.wired = rec.wired,
		.inherit = (enum up_inherit)rec.inherit,
		.object = { .id = rec.object,
			    .size = rec.size,
			    .resident = rec.resident,
			    .swapped = rec.swapped,
			    .lost = rec.lost,
			    .pager = pager_name(rec.pager),
			    .refs = rec.refs },
	};
	memcpy(line->name, from + sizeof rec, rec.name);
	return all;
}

int
up_map_dump(struct up_runtime *rt, FILE *out)
{
	struct dump_line line = { .end = 0 };
	sigset_t old;
	bool more;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_dump(rt, out);
	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_map_dump");
	if (r < 0)
		return r;
	if (out == NULL)
		return bad(rt, "up_map_dump: out is NULL");
	dump_head(out);
	for (;;) {
		change_begin(&rt->p, &old);
		more = dump_next(&rt->p, NULL, &line);
		change_end(&rt->p, &old);
		if (!more)
			break;
		dump_print(out, &line);
	}
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}

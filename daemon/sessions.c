/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sessions.c: who is there, what they had done when they left, and how it went in the last two minutes.
 *
 * Counters that are shown to the outside never go back: what a session had counted when it left stays in `retired`.  What the daemon's own
 * runtime serves, native programs and memory that can be taken back, it counts itself: that is not added a second time.
 */
#include "sessions.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "runtime.h"

const char *const fault_names[UP_FAULT_KINDS] = {
	[UP_FAULT_MINOR] = "minor", [UP_FAULT_ZERO] = "zero", [UP_FAULT_SOFT] = "soft",
	[UP_FAULT_MAJOR] = "major", [UP_FAULT_WP] = "wp",
};

const char *const refusal_names[REFUSALS] = {
	[REFUSED_DRAINING] = "draining",       [REFUSED_CLIENTS] = "clients",
	[REFUSED_DESCRIPTORS] = "descriptors", [REFUSED_PERMISSION] = "permission",
	[REFUSED_FAILED] = "failed",
};

static struct {
	struct daemon *d;
	uint64_t refused[REFUSALS];
	unsigned taken_over;
	struct session *first;
	unsigned n, last_id, changes;
	struct session_counts
		retired; /* of those that are gone, counters only, without those of the runtime */
	struct sample ring[SAMPLES];
	unsigned nsamples; /* ever taken */
	struct {
		uint64_t time, faults, major, swap_read, swap_write;
		struct latency_steps latency[UP_FAULT_KINDS]; /* the runtime's */
	} before;
	struct up_latency recent[UP_FAULT_KINDS];
} reg;

uint64_t
monotonic_ns(void)
{
	return uv_hrtime();
}

void
sessions_init(struct daemon *d)
{
	reg.d = d;
}

void
session_counts(const struct session *s, struct session_counts *c)
{
	*c = (struct session_counts){ 0 };
	if (s->ops->counts != NULL)
		s->ops->counts(s, c);
}

static void
add_counters(struct session_counts *to, const struct session_counts *c)
{
	for (unsigned i = 0; i < UP_FAULT_KINDS; i++)
		to->faults[i] += c->faults[i] - c->ours.faults[i];
	to->prefetched += c->prefetched;
	to->lost += c->lost - c->ours.lost;
	to->again += c->again - c->ours.again;
	to->exists += c->exists - c->ours.exists;
	to->deferred += c->deferred - c->ours.deferred;
}

static uint64_t
all_faults(const uint64_t faults[UP_FAULT_KINDS])
{
	uint64_t n = 0;

	for (unsigned i = 0; i < UP_FAULT_KINDS; i++)
		n += faults[i];
	return n;
}

void
sessions_totals(struct session_counts *total)
{
	struct session_counts c;

	*total = reg.retired;
	for (const struct session *s = reg.first; s != NULL; s = s->next) {
		session_counts(s, &c);
		add_counters(total, &c);
		total->mapped += c.mapped;
		total->resident += c.resident;
		total->swapped += c.swapped;
	}
}

void
sessions_faults(const struct up_stats *st, uint64_t faults[UP_FAULT_KINDS])
{
	struct session_counts total;

	sessions_totals(&total);
	for (unsigned i = 0; i < UP_FAULT_KINDS; i++)
		faults[i] = st->faults[i] + total.faults[i];
}

/* ---- groups ---- */

static bool
user_is_in(const struct config_named *g, uid_t uid)
{
	const struct config_value *const users = config_named_value(g, KEY_GROUP_USERS);

	for (uint64_t i = 0; i < users->n; i++)
		if (users->uid[i] == uid)
			return true;
	return false;
}

/* The group that a user is in; "": none. */
static const char *
group_of(uid_t uid)
{
	/* Of a verb that serves one protocol alone there is no daemon, and no group. */
	for (const struct config_named *g = reg.d != NULL ? reg.d->cfg.named : NULL; g != NULL;
	     g = g->next)
		if (strcmp(g->kind, "group") == 0 && user_is_in(g, uid))
			return g->name;
	return "";
}

/* What its group is called is where its memory counts: one that can not be moved stays in both. */
static void
regroup(struct session *s, const char *group)
{
	const int r = s->ops->regroup != NULL ? s->ops->regroup(s, group) : 0;

	/* The other word for a client that is about to go. */
	if (r < 0 && r != -ENOENT) {
		log_session(LOG_ERROR, s, "client %u: %s: stays in group '%s', and not '%s': %s",
			    s->id, s->name, s->group, group, strerror(-r));
		return;
	}
	log_session(LOG_INFO, s, "client %u: %s: group '%s' now, was '%s'", s->id, s->name, group,
		    s->group);
	snprintf(s->group, sizeof(s->group), "%s", group);
}

void
sessions_reload(void)
{
	for (struct session *s = reg.first; s != NULL; s = s->next) {
		const char *group = s->group;

		if (!s->by_door || config_find(&reg.d->cfg, "group", group) == NULL)
			group = group_of(s->uid);
		if (strcmp(group, s->group) != 0)
			regroup(s, group);
	}
}

int
session_group(const char *group, uint64_t *limit, uint64_t *minimum)
{
	const struct config_named *const g = config_find(&reg.d->cfg, "group", group);

	if (g == NULL)
		return -ENOENT;
	*limit = config_bytes(config_named_value(g, KEY_GROUP_LIMIT), reg.d->budget);
	*minimum = config_bytes(config_named_value(g, KEY_GROUP_MINIMUM), reg.d->budget);
	return 0;
}

unsigned
sessions_of_group(const char *group, uint64_t *resident)
{
	struct session_counts c;
	unsigned n = 0;

	*resident = 0;
	for (const struct session *s = reg.first; s != NULL; s = s->next) {
		if (strcmp(s->group, group) != 0)
			continue;
		session_counts(s, &c);
		*resident += c.resident;
		n++;
	}
	return n;
}

/* ---- coming and going ---- */

void
session_refused(enum refusal why)
{
	reg.refused[why]++;
}

uint64_t
sessions_refused(enum refusal why)
{
	return reg.refused[why];
}

unsigned
sessions_taken_over(void)
{
	return reg.taken_over;
}

int
session_admit(const struct peer *peer, char *why, size_t len)
{
	const uint64_t most = config_n(&reg.d->cfg, KEY_LIMIT_CLIENTS);
	const uint64_t user = config_n(&reg.d->cfg, KEY_LIMIT_USER);
	unsigned same = 0;
	int r = 0;

	for (const struct session *s = reg.first; s != NULL; s = s->next)
		same += s->uid == peer->uid;
	if (reg.d->state != STATE_SERVING) {
		snprintf(why, len, "the daemon is %s, and takes no new clients",
			 reg.d->end_at == 0 ? "drained" : "ending");
		r = -EBUSY;
	} else if (reg.n >= most) {
		snprintf(why, len,
			 "there are %u clients, and %" PRIu64 " are allowed ([limits] clients)",
			 reg.n, most);
		r = -EUSERS;
	} else if (user != 0 && same >= user) {
		snprintf(why, len,
			 "user %u has %u clients, and %" PRIu64
			 " are allowed ([limits] clients_per_user)",
			 (unsigned)peer->uid, same, user);
		r = -EUSERS;
	}
	if (r < 0)
		session_refused(r == -EBUSY ? REFUSED_DRAINING : REFUSED_CLIENTS);
	if (r < 0)
		log_warning("client of process %d, user %u: refused: %s", (int)peer->pid,
			    (unsigned)peer->uid, why);
	return r;
}

bool
session_admit_or_close(const struct peer *peer, int fd)
{
	char why[256];

	if (session_admit(peer, why, sizeof(why)) == 0)
		return true;
	close(fd);
	return false;
}

static void
read_comm(pid_t pid, char *name, size_t len)
{
	char path[40];
	ssize_t n = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, name, len - 1);
		close(fd);
	}
	name[n > 0 ? n : 0] = '\0';
	name[strcspn(name, "\n")] = '\0';
	if (name[0] == '\0')
		snprintf(name, len, "%d", (int)pid);
}

/* It goes to terminals, JSON and labels. */
static void
make_printable(char *name)
{
	for (; *name != '\0'; name++)
		if ((unsigned char)*name < 0x20 || (unsigned char)*name > 0x7e)
			*name = '?';
}

void
session_come(struct session *s)
{
	s->id = ++reg.last_id;
	s->since = monotonic_ns();
	s->served = 0;
	s->rate = 0;
	memset(s->before, 0, sizeof(s->before));
	memset(s->recent, 0, sizeof(s->recent));
	memset(&s->all, 0, sizeof(s->all));
	if (s->name[0] == '\0')
		read_comm(s->pid, s->name, sizeof(s->name));
	s->name[sizeof(s->name) - 1] = '\0';
	make_printable(s->name);
	if (s->group[0] == '\0')
		snprintf(s->group, sizeof(s->group), "%s", group_of(s->uid));
	else
		/* One that comes back is not asked again where it had come. */
		s->by_door |= strcmp(s->group, group_of(s->uid)) != 0;
	s->next = NULL;
	struct session **p = &reg.first;
	while (*p != NULL)
		p = &(*p)->next;
	*p = s;
	reg.n++;
	reg.changes++;
	log_session(LOG_INFO, s, "client %u: %s, process %d, user %u: come (%s%s%s)", s->id,
		    s->name, (int)s->pid, (unsigned)s->uid, s->ops->kind,
		    s->group[0] != '\0' ? ", group " : "", s->group);
}

void
session_gone(struct session *s)
{
	struct session **p = &reg.first;
	struct session_counts c;

	while (*p != NULL && *p != s)
		p = &(*p)->next;
	if (*p == NULL)
		return;
	session_counts(s, &c);
	add_counters(&reg.retired, &c);
	*p = s->next;
	s->next = NULL;
	reg.n--;
	reg.changes++;
	log_session(LOG_INFO, s,
		    "client %u: %s, process %d: gone after %.1f s and %" PRIu64 " faults", s->id,
		    s->name, (int)s->pid, (double)(monotonic_ns() - s->since) / 1e9,
		    all_faults(c.faults));
	if (reg.d != NULL)
		daemon_client_left(reg.d);
}

struct session *
session_first(void)
{
	return reg.first;
}

unsigned
sessions_changes(void)
{
	return reg.changes;
}

unsigned
session_number(void)
{
	return reg.n;
}

int
session_find(const char *who, struct session **found)
{
	const bool by_id = who[0] == '#', by_number = isdigit((unsigned char)who[0]) || by_id;
	const unsigned long n = strtoul(who + by_id, NULL, 10);

	*found = NULL;
	for (struct session *s = reg.first; s != NULL; s = s->next) {
		if (by_number ? (by_id ? s->id == n : (unsigned long)s->pid == n)
			      : strcmp(s->name, who) == 0) {
			if (*found != NULL)
				return -ENOTUNIQ;
			*found = s;
		}
	}
	return *found == NULL ? -ESRCH : 0;
}

/* The first that came after that one; what is done with it may take it off the list, and others with it. */
static struct session *
session_after(unsigned id)
{
	struct session *s = reg.first;

	while (s != NULL && s->id <= id)
		s = s->next;
	return s;
}

void
sessions_leave(unsigned ms)
{
	struct session *s;

	for (unsigned last = 0; (s = session_after(last)) != NULL;) {
		last = s->id;
		if (s->ops->leave != NULL)
			s->ops->leave(s, ms);
	}
}

void
sessions_end(void)
{
	struct session *s;

	for (unsigned last = 0; (s = session_after(last)) != NULL;) {
		last = s->id;
		s->ops->end(s);
	}
}

/* ---- the last two minutes ---- */

static double
per_second(uint64_t now, uint64_t before, double seconds)
{
	return now > before && seconds > 0 ? (double)(now - before) / seconds : 0;
}

/* Those of `now` that are not in *before, which becomes `now`; of a session that began anew: all of them. */
static void
take_recent(struct latency_steps *now, struct latency_steps *before)
{
	const struct latency_steps all = *now;
	bool more = now->count >= before->count;

	for (unsigned i = 0; i < LATENCY_STEPS; i++)
		more = more && now->below[i] >= before->below[i];
	if (more)
		steps_since(now, before);
	*before = all;
}

/* How long its faults took since the last time; those that the runtime has not are added to `all`. */
static void
sample_latency(struct session *s, const struct session_counts *c,
	       struct latency_steps all[UP_FAULT_KINDS])
{
	struct latency_steps sum = { .count = 0 };

	for (unsigned k = 0; k < UP_FAULT_KINDS && s->ops->latency != NULL; k++) {
		struct latency_steps now = { .count = 0 };

		if (!s->ops->latency(s, k, &now))
			now = s->before[k];
		take_recent(&now, &s->before[k]);
		steps_sum(&now, &s->recent[k]);
		steps_add(&sum, &now);
		if (c->ours.faults[k] == 0)
			steps_add(&all[k], &now);
	}
	steps_sum(&sum, &s->all);
}

void
sessions_sample(void)
{
	struct latency_steps all[UP_FAULT_KINDS];
	struct sample *const s = &reg.ring[reg.nsamples % SAMPLES];
	const uint64_t now = monotonic_ns();
	const double seconds = (double)(now - reg.before.time) / 1e9;
	uint64_t faults[UP_FAULT_KINDS], sum;
	struct session_counts c;
	struct up_stats st;

	if (up_stats_get(reg.d->rt, &st, sizeof(st)) < 0)
		return;
	if (reg.before.time == 0)
		reg.taken_over = reg.n;
	sessions_faults(&st, faults);
	sum = all_faults(faults);
	if (reg.before.time != 0) {
		*s = (struct sample){
			.faults = per_second(sum, reg.before.faults, seconds),
			.major = per_second(faults[UP_FAULT_MAJOR], reg.before.major, seconds),
			.swap_read = per_second(st.swap_read_bytes, reg.before.swap_read, seconds),
			.swap_write =
				per_second(st.swap_write_bytes, reg.before.swap_write, seconds),
			.used = st.used,
			.swapped = st.swapped,
		};
	}
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		stats_latency(reg.d->rt, k, NULL, &all[k]);
		take_recent(&all[k], &reg.before.latency[k]);
	}
	for (struct session *i = reg.first; i != NULL; i = i->next) {
		session_counts(i, &c);
		sum = all_faults(c.faults);
		/* One that has come since: nothing to compare with. */
		i->rate = i->since < reg.before.time ? per_second(sum, i->served, seconds) : 0;
		i->served = sum;
		sample_latency(i, &c, all);
	}
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		steps_sum(&all[k], &reg.recent[k]);
		if (reg.before.time != 0 && reg.recent[k].p99 > s->p99_ns)
			s->p99_ns = reg.recent[k].p99;
	}
	reg.nsamples += reg.before.time != 0;
	reg.before.time = now;
	reg.before.faults = all_faults(faults);
	reg.before.major = faults[UP_FAULT_MAJOR];
	reg.before.swap_read = st.swap_read_bytes;
	reg.before.swap_write = st.swap_write_bytes;
}

const struct up_latency *
sessions_recent(void)
{
	return reg.recent;
}

unsigned
sessions_history(struct sample *s, unsigned n)
{
	const unsigned have = reg.nsamples < SAMPLES ? reg.nsamples : SAMPLES;

	n = n < have ? n : have;
	for (unsigned i = 0; i < n; i++)
		s[i] = reg.ring[(reg.nsamples - n + i) % SAMPLES];
	return n;
}

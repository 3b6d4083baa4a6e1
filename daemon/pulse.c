/* SPDX-License-Identifier: BSD-2-Clause */
#include "pulse.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/pulse.h"
#include "fill.h"
#include "guardian.h"
#include "log.h"
#include "notify.h"
#include "serve.h"
#include "swap/swap.h"

#define STACK ((size_t)128 << 10)
#define LOOKS 4u /* in hang_timeout */

static struct {
	struct daemon *d; /* (c) */
	uv_async_t wake;  /* asks the loop */
	struct pulse loop;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool stop;	   /* (lock) */
	uint64_t hang_ms;  /* (lock) 0: off */
	uint64_t watchdog; /* (c) ns; 0: it is the guardian's, or nobody's */
	char name[64];	   /* the thread's: who was silent last */
} pulse = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void
on_wake(uv_async_t *wake)
{
	(void)wake;
	pulse_answer(&pulse.loop);
}

static char
state_of(pid_t tid)
{
	char path[64], line[256], state = '?';
	const char *after;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
	f = fopen(path, "re");
	if (f == NULL)
		return state;
	/* NUMBER (NAME) STATE: whatever is in a name. */
	if (fgets(line, sizeof(line), f) != NULL && (after = strrchr(line, ')')) != NULL)
		(void)sscanf(after, ") %c", &state);
	fclose(f);
	return state;
}

static bool
is_stuck(const struct serve_thread *t, bool disk)
{
	const pid_t tid = atomic_load(&t->pulse->tid);

	return pulse_silent(t->pulse) && !(t->waits && disk) && (tid == 0 || state_of(tid) != 'D');
}

static bool
is_stuck_filler(const struct pulse *pl)
{
	const struct serve_thread t = { .pulse = pl };

	return is_stuck(&t, false);
}

/* Who has been asked and does not answer; "": nobody. */
static const char *
look(void)
{
	const bool disk = swap_io_lingers();
	const struct serve_thread loop = { "the loop", &pulse.loop, true };
	struct serve_thread t;

	/* Who waits for nobody first: it may be the one whom the others wait for. */
	for (unsigned i = 0; serve_thread(pulse.d->rt, i, &t); i++)
		if (is_stuck(&t, disk))
			return t.name;
	if (fill_any(is_stuck_filler))
		return "a filler";
	return is_stuck(&loop, disk) ? loop.name : "";
}

static void
ask(void)
{
	if (pulse_ask(&pulse.loop))
		uv_async_send(&pulse.wake);
	serve_ask(pulse.d->rt);
	fill_ask();
}

static void
tell(uint64_t hang_ms)
{
	const char *const who = look();

	if (strcmp(who, pulse.name) != 0 && *who != '\0')
		log_warning("%s does not answer", who);
	else if (strcmp(who, pulse.name) != 0)
		log_warning("%s answers again", pulse.name);
	snprintf(pulse.name, sizeof(pulse.name), "%s", who);
	if (kept_any())
		kept_lives(hang_ms, who);
	if (pulse.watchdog != 0 && *who == '\0')
		notify("WATCHDOG=1");
	ask();
}

/* Until the next look, or somebody wants something.  => the lock is held */
static void
sleep_locked(uint64_t ns)
{
	struct timespec until;

	if (ns == 0) {
		pthread_cond_wait(&pulse.cond, &pulse.lock);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &until);
	ns += (uint64_t)until.tv_nsec;
	until.tv_sec += (time_t)(ns / 1000000000);
	until.tv_nsec = (long)(ns % 1000000000);
	pthread_cond_timedwait(&pulse.cond, &pulse.lock, &until);
}

static void *
watch(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&pulse.lock);
	while (!pulse.stop) {
		const uint64_t hang_ms = pulse.hang_ms;
		uint64_t every = hang_ms * 1000000 / LOOKS;

		if (pulse.watchdog != 0 && (every == 0 || pulse.watchdog / 2 < every))
			every = pulse.watchdog / 2;
		pthread_mutex_unlock(&pulse.lock);
		if (every != 0)
			tell(hang_ms);
		else if (kept_any())
			kept_lives(0, "");
		pthread_mutex_lock(&pulse.lock);
		if (!pulse.stop && pulse.hang_ms == hang_ms)
			sleep_locked(every);
	}
	pthread_mutex_unlock(&pulse.lock);
	return NULL;
}

void
pulse_start(struct daemon *d)
{
	pthread_condattr_t cond;
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	pulse.d = d;
	pulse.hang_ms = config_n(&d->cfg, KEY_HANG_TIMEOUT);
	/* Of the main process, which is the guardian if there is one. */
	pulse.watchdog = notify_watchdog();
	r = -uv_async_init(&d->loop, &pulse.wake, on_wake);
	if (r == 0) {
		uv_unref((uv_handle_t *)&pulse.wake);
		pthread_condattr_init(&cond);
		pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
		pthread_cond_init(&pulse.cond, &cond);
		pthread_condattr_destroy(&cond);
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK);
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		r = pthread_create(&pulse.thread, &attr, watch, NULL);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		pthread_attr_destroy(&attr);
	}
	if (r != 0) {
		pulse.d = NULL;
		log_warning("nobody watches whether this daemon hangs: %s", strerror(r));
		return;
	}
	pthread_setname_np(pulse.thread, "uffd-pulse");
}

void
pulse_reload(void)
{
	if (pulse.d == NULL)
		return;
	pthread_mutex_lock(&pulse.lock);
	pulse.hang_ms = config_n(&pulse.d->cfg, KEY_HANG_TIMEOUT);
	/* At once: who hangs right after this is to be held to it. */
	if (kept_any())
		kept_lives(pulse.hang_ms, "");
	pthread_cond_signal(&pulse.cond);
	pthread_mutex_unlock(&pulse.lock);
}

void
pulse_stop(void)
{
	if (pulse.d == NULL)
		return;
	pthread_mutex_lock(&pulse.lock);
	pulse.stop = true;
	pthread_cond_signal(&pulse.cond);
	pthread_mutex_unlock(&pulse.lock);
	pthread_join(pulse.thread, NULL);
	if (kept_any())
		kept_lives(0, "");
	uv_close((uv_handle_t *)&pulse.wake, NULL);
	pthread_cond_destroy(&pulse.cond);
	pulse.d = NULL;
}

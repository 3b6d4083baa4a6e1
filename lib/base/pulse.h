/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pulse.h (private): whether a thread turns.
 *
 *	who looks           the thread
 *	pulse_ask()
 *	and a kick -------> begins a turn: pulse_answer()
 *	pulse_silent()?
 *
 * A thread that has nothing to do is woken by the kick, and answers: idle is not silent.  Nothing is asked of its clock, and as long as nobody
 * asks it costs two loads a turn.
 */
#ifndef UP_PULSE_H
#define UP_PULSE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>
#include <unistd.h>

struct pulse {
	atomic_uint asked, answered;
	_Atomic pid_t tid; /* who has answered last; 0: nobody has been asked yet */
};

/* False: it has been asked before, and has not answered.  By one thread; a kick has to follow. */
static inline bool
pulse_ask(struct pulse *pl)
{
	const unsigned asked = atomic_load_explicit(&pl->asked, memory_order_relaxed);

	if (atomic_load_explicit(&pl->answered, memory_order_relaxed) != asked)
		return false;
	atomic_store(&pl->asked, asked + 1);
	return true;
}

/* Its own thread, at a point to which it comes back whatever happens. */
static inline void
pulse_answer(struct pulse *pl)
{
	const unsigned asked = atomic_load(&pl->asked);

	if (atomic_load_explicit(&pl->answered, memory_order_relaxed) == asked)
		return;
	atomic_store_explicit(&pl->tid, gettid(), memory_order_relaxed);
	atomic_store(&pl->answered, asked);
}

static inline bool
pulse_silent(const struct pulse *pl)
{
	return atomic_load(&pl->answered) != atomic_load(&pl->asked);
}

#endif

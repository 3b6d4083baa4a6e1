/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sigbus.c: the process's SIGBUS.
 *
 *	thread touches a page that is not there
 *	   `--> on_sigbus(): all signals blocked, by the kernel
 *	           `--> serve(): each runtime in turn, whose address is it?
 *	                   served      return: the instruction is done again
 *	                   lost        \  chain(): what was installed before us
 *	                   nobody's    /
 *
 * The kernel gives BUS_ADRERR for a page that is not there (UFFD_FEATURE_SIGBUS) as it does behind the end of a file; one that
 * UFFDIO_POISON has marked is BUS_MCEERR_AR, and nothing of ours to serve.
 *
 * A thread may be anywhere when it gets here, in malloc() for instance: see worker.c for what may be called.  It leaves errno alone, and
 * the kernel keeps its registers; it is not cancelled meanwhile.  It runs on the stack that it was on (no SA_ONSTACK): those for signals
 * are often as small as is allowed.
 */
#include "sigbus.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "foreign.h"

#define RUNTIMES_MAX 64
#define NAP_NS 1000000

struct slot {
	_Atomic(struct pager *) pager;
	atomic_uint users; /* threads that may be looking at it */
};

static struct {
	pthread_mutex_t lock;
	unsigned n;		 /* (lock) slots in use */
	atomic_uint top;	 /* slots that were ever in use: the rest need not be looked at */
	struct sigaction before; /* (lock) to change, while `installed` is even */
	atomic_uint installed; /* (lock) to change; odd: on_sigbus() is, and `before` is what was */
	bool at_fork;	       /* (lock) */
	struct slot slot[RUNTIMES_MAX];
} bus = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* --- whose it is --- */

/*
 * Nothing is mapped there through this pager.  True if that will not change by itself: no call of ours that takes mappings away or
 * makes some is under way, nor, with UP_TRACK_FOREIGN, has the program done something that has not been put right yet.
 */
static bool
settled(struct pager *p)
{
	bool is = atomic_load(&p->moving) == 0;

	if (p->foreign != NULL) {
		const uint64_t token = p->pmap->ops->token(p->pmap);

		/* Whoever has it may be putting right what is not waiting any more. */
		if (!is || pthread_mutex_trylock(&p->map.change) != 0)
			return false;

		for (unsigned i = 0; i < p->nservices && is; i++)
			is = p->pmap->ops->settled(p->pmap, i, token);
		is = is && !foreign_waiting(p->foreign);
		pthread_mutex_unlock(&p->map.change);
	}
	return is;
}

/* The pagers in turn.  NOT_OURS: of none; *moving: but a mapping of one of them is being changed. */
static enum served
serve_once(uintptr_t va, bool write, bool *moving)
{
	const unsigned top = atomic_load(&bus.top);
	enum served r = SERVED_NOT_OURS;

	*moving = false;
	for (unsigned i = 0; i < top && r == SERVED_NOT_OURS; i++) {
		struct slot *sl = &bus.slot[i];
		struct pager *p;

		if (atomic_load_explicit(&sl->pager, memory_order_relaxed) == NULL)
			continue;
		/* Who removes it first takes the pointer away, and then waits until there are no users. */
		atomic_fetch_add(&sl->users, 1);
		p = atomic_load(&sl->pager);
		if (p != NULL)
			r = worker_serve(p, va, write);
		if (p != NULL && r == SERVED_NOT_OURS)
			*moving |= !settled(p);
		atomic_fetch_sub(&sl->users, 1);
	}
	return r;
}

/*
 * Nothing is mapped there at all by now: it was unmapped, and the pager destroyed perhaps, between the touch and the signal.  Who touches
 * it again gets what that deserves.
 */
static bool
unmapped(uintptr_t va)
{
	unsigned char there;

	return syscall(SYS_mincore, va, PAGE_SIZE, &there) < 0 && errno == ENOMEM;
}

/*
 * A thread that is cancelled asynchronously has SIGCANCEL blocked in here.  To let it be cancelled again is to cancel it on the spot
 * if that was asked for meanwhile: then with the signals blocked that it had blocked, for what it has to clean up.
 * => what is of use to others has been given back
 */
static void
cancel_again(int state, const sigset_t *mask)
{
	int type;

	/* In this order: pthread_setcancelstate() would have it end without PTHREAD_CANCELED as its result (glibc 2.36). */
	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
	pthread_setcancelstate(state, NULL);
	if (type != PTHREAD_CANCEL_ASYNCHRONOUS)
		return;
	pthread_sigmask(SIG_SETMASK, mask, NULL);
	pthread_setcanceltype(type, NULL);
}

/* `mask`: what is blocked where the thread was. */
static enum served
serve(uintptr_t va, bool write, const sigset_t *mask)
{
	const struct timespec ts = { .tv_nsec = NAP_NS };
	const int error = errno;
	const bool held = log_hold;
	enum served r;
	bool moving;
	int cancel;

	log_hold = true;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	while ((r = serve_once(va, write, &moving)) == SERVED_NOT_OURS && moving)
		syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
	if (r == SERVED_NOT_OURS && unmapped(va))
		r = SERVED;
	log_hold = held;
	cancel_again(cancel, mask);
	errno = error;
	return r;
}

/* True if the instruction was about to write.  It is no more than a hint. */
static bool
is_write(const ucontext_t *uc)
{
#if defined(__x86_64__)
	return uc != NULL && (uc->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#else
	(void)uc;
	return false;
#endif
}

/* --- the signal --- */

static void
send_again(int sig)
{
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), sig);
}

/* True if nobody will send it again by himself: it was sent, or it tells of memory that nobody has touched. */
static bool
is_sent(const siginfo_t *info)
{
	return info->si_code <= 0 || info->si_code == BUS_MCEERR_AO;
}

/* As if there had never been a handler. */
static void
default_action(int sig, const siginfo_t *info)
{
	const struct sigaction dfl = { .sa_handler = SIG_DFL };

	sigaction(sig, &dfl, NULL);
	/* What an instruction raised it will raise again; what somebody sent has to be sent again, as has what came by itself. */
	if (is_sent(info))
		send_again(sig);
}

/*
 * What a thread was last told to do again.  If nobody serves a fault, it may be that there was none by the time of the look: the page was
 * discarded, or something else mapped there.  So the thread tries again, once, before anything drastic is done.
 * Of the static TLS, see log_hold.
 */
static _Thread_local struct {
	uintptr_t va, pc;
} again __attribute__((tls_model("initial-exec")));

static bool
try_again(const siginfo_t *info, const ucontext_t *uc)
{
	const uintptr_t va = (uintptr_t)info->si_addr;
	uintptr_t pc = 0;

#if defined(__x86_64__)
	pc = uc != NULL ? (uintptr_t)uc->uc_mcontext.gregs[REG_RIP] : 0;
#elif defined(__aarch64__)
	pc = uc != NULL ? (uintptr_t)uc->uc_mcontext.pc : 0;
#else
	(void)uc;
#endif
	/* It stays said, for a handler may ask more than once. */
	if (again.va == va && again.pc == pc)
		return false;
	again.va = va;
	again.pc = pc;
	return true;
}

static void on_sigbus(int sig, siginfo_t *info, void *context);

static bool
handler_is_ours(void)
{
	struct sigaction now;

	return sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
	       now.sa_sigaction == on_sigbus;
}

static void
chain(int sig, siginfo_t *info, ucontext_t *uc)
{
	const unsigned number = atomic_load(&bus.installed);
	struct sigaction before = bus.before;
	sigset_t mask;

	/* Put back meanwhile: it is for who is there now.  (The program may have kept ours, and be who put it there.) */
	if (atomic_load(&bus.installed) != number || (number % 2 == 0 && !handler_is_ours())) {
		if (is_sent(info))
			send_again(sig);
		return;
	}
	if ((before.sa_flags & SA_SIGINFO) == 0 &&
	    (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) {
		/* The kernel does not let one ignore what an instruction raised. */
		if (before.sa_handler == SIG_DFL || !is_sent(info))
			default_action(sig, info);
		return;
	}
	/* With the signals blocked that he asked for; ours go with our return. */
	sigorset(&mask, &uc->uc_sigmask, &before.sa_mask);
	if ((before.sa_flags & SA_NODEFER) == 0)
		sigaddset(&mask, sig);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	if (before.sa_flags & SA_SIGINFO)
		before.sa_sigaction(sig, info, uc);
	else
		before.sa_handler(sig);
}

static bool
is_ours(const siginfo_t *info)
{
	return info->si_signo == SIGBUS && info->si_code == BUS_ADRERR;
}

static void
on_sigbus(int sig, siginfo_t *info, void *context)
{
	const uintptr_t va = (uintptr_t)info->si_addr & ~PAGE_MASK;
	ucontext_t *uc = context;

	if (is_ours(info) && serve(va, is_write(uc), &uc->uc_sigmask) == SERVED) {
		again.va = again.pc = 0;
		return;
	}
	if ((info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR) && try_again(info, uc))
		return;
	chain(sig, info, uc);
}

int
up_handle_sigbus(const void *siginfo, void *context)
{
	const siginfo_t *info = siginfo;
	sigset_t all, old;
	enum served r;

	if (info == NULL || info->si_signo != SIGBUS || atomic_load(&bus.top) == 0)
		return 0;
	if (info->si_code == BUS_MCEERR_AR)
		return try_again(info, context);
	if (!is_ours(info))
		return 0;
	/* Also those that are libc's own, which pthread_sigmask() would leave out; of `old` the kernel writes the first words only. */
	memset(&all, 0xff, sizeof all);
	sigemptyset(&old);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, _NSIG / 8);
	r = serve((uintptr_t)info->si_addr & ~PAGE_MASK, is_write(context), &old);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, _NSIG / 8);
	if (r == SERVED)
		again.va = again.pc = 0;
	return r == SERVED || try_again(info, context);
}

/* --- in and out --- */

/* The threads that were in here are not in the child, and neither are the pagers. */
static void
in_child(void)
{
	for (unsigned i = 0; i < RUNTIMES_MAX; i++) {
		atomic_store(&bus.slot[i].pager, NULL);
		atomic_store(&bus.slot[i].users, 0);
	}
	bus.n = 0;
	pthread_mutex_init(&bus.lock, NULL);
	log_hold = false;
}

/* => lock held, and nobody has been added */
static void
install(void)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	/* All, also those of libc's own: a cancelled thread would leave with our locks. */
	memset(&sa.sa_mask, 0xff, sizeof sa.sa_mask);
	/* Else the program has kept it and put it back: what was before is still the same. */
	if (!handler_is_ours())
		sigaction(SIGBUS, NULL, &bus.before);
	atomic_fetch_add(&bus.installed, 1);
	sigaction(SIGBUS, &sa, NULL);
}

int
sigbus_add(struct pager *p)
{
	unsigned i = 0;

	pthread_mutex_lock(&bus.lock);
	/* A slot that somebody still looks at he may have found empty: it has to stay so. */
	while (i < RUNTIMES_MAX &&
	       (atomic_load(&bus.slot[i].pager) != NULL || atomic_load(&bus.slot[i].users) > 0))
		i++;
	if (i == RUNTIMES_MAX) {
		pthread_mutex_unlock(&bus.lock);
		log_line(&p->log, UP_LOG_ERROR,
			 "there can be %d runtimes with UP_DELIVER_INLINE, and no more",
			 RUNTIMES_MAX);
		return -EUSERS;
	}
	if (bus.n++ == 0 && atomic_load(&bus.installed) % 2 == 0)
		install();
	else if (!handler_is_ours())
		log_line(&p->log, UP_LOG_WARNING,
			 "the program has a handler of its own for SIGBUS: it has to call "
			 "up_handle_sigbus()");
	if (!bus.at_fork)
		bus.at_fork = pthread_atfork(NULL, NULL, in_child) == 0;
	atomic_store(&bus.slot[i].pager, p);
	if (atomic_load(&bus.top) <= i)
		atomic_store(&bus.top, i + 1);
	pthread_mutex_unlock(&bus.lock);
	return 0;
}

void
sigbus_remove(struct pager *p)
{
	const struct timespec ts = { .tv_nsec = NAP_NS };

	pthread_mutex_lock(&bus.lock);
	for (unsigned i = 0; i < RUNTIMES_MAX; i++) {
		if (atomic_load(&bus.slot[i].pager) != p)
			continue;
		atomic_store(&bus.slot[i].pager, NULL);
		while (atomic_load(&bus.slot[i].users) > 0)
			clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
		bus.n--;
	}
	if (bus.n == 0 && handler_is_ours()) {
		sigaction(SIGBUS, &bus.before, NULL);
		atomic_fetch_add(&bus.installed, 1);
	}
	pthread_mutex_unlock(&bus.lock);
}

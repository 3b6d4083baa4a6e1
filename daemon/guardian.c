/* SPDX-License-Identifier: BSD-2-Clause */
#include "guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "candidate.h"
#include "daemon.h"
#include "descriptors.h"
#include "log.h"
#include "notify.h"

/* The daemon's end of the socket, in its environment. */
#define SOCKET_ENV "UFFD_PAGERD_GUARDIAN"
/* And when it was to end, of one that comes after that. */
#define ENDING_ENV "UFFD_PAGERD_ENDING"
#define BUCKETS 4096u
#define ASKED_MAX 4096u /* notes of fillers: they are all of one version */
#define CRASHES_MAX 5u	/* in a row, each */
#define CRASH_MS 10000u /* within so long of the one before */
#define NEXT_MS 200	/* between two that can not start */
#define TICKS 8u	/* of hang_timeout: how long the guardian sleeps at most */
#define QUEUE_MAX 4096u /* more messages than a socket holds */

enum kept_type {
	KEPT_KEEP = 1, /* a name and its descriptor, either way */
	KEPT_DROP,
	KEPT_ALL, /* to a daemon: that was all of them; the name is how many daemons there were before */
	KEPT_SERVES,  /* from a daemon */
	KEPT_LIVES,   /* from a daemon: "MS", hang_timeout; "MS WHO": somebody has not answered */
	KEPT_UPGRADE, /* from a daemon: it is asked for */
	KEPT_REFUSED, /* to a daemon: nothing has come of that, and why */
};

struct kept_msg {
	uint32_t type;
	char name[STORE_NAME_MAX];
};

/* A descriptor that is kept. */
struct kept {
	struct kept *next; /* of its bucket */
	int fd;
	char name[STORE_NAME_MAX];
};

/* --- names and descriptors, on either side --- */

struct table {
	struct kept *bucket[BUCKETS];
};

static struct kept **
find(struct table *t, const char *name)
{
	uint32_t h =
		2166136261u; /* FNV-1a: there is nobody to guard against, names are the daemon's */
	struct kept **link;

	for (const char *c = name; *c != '\0'; c++)
		h = (h ^ (unsigned char)*c) * 16777619u;
	for (link = &t->bucket[h % BUCKETS]; *link != NULL && strcmp((*link)->name, name) != 0;
	     link = &(*link)->next)
		;
	return link;
}

/* What was there is closed.  The descriptor is the table's. */
static int
put(struct table *t, const char *name, int fd)
{
	struct kept **const link = find(t, name), *k = *link;

	if (k == NULL) {
		k = calloc(1, sizeof(*k));
		if (k == NULL) {
			close(fd);
			return -ENOMEM;
		}
		snprintf(k->name, sizeof(k->name), "%s", name);
		*link = k;
	} else {
		close(k->fd);
	}
	k->fd = fd;
	return 0;
}

/* -1: there is none.  The caller's. */
static int
cut(struct table *t, const char *name)
{
	struct kept **const link = find(t, name), *const k = *link;
	int fd;

	if (k == NULL)
		return -1;
	fd = k->fd;
	*link = k->next;
	free(k);
	return fd;
}

/* --- messages --- */

static int
tell(int sock, enum kept_type type, const char *name, int fd)
{
	struct kept_msg m = { .type = type };

	snprintf(m.name, sizeof(m.name), "%s", name);
	return descriptors_send(sock, &m, sizeof(m), fd);
}

/* 0; -ENOTCONN: that was all; *fd: the caller's, or -1. */
static int
hear(int sock, struct kept_msg *m, int *fd, int flags)
{
	struct iovec iov = { m, sizeof(*m) };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr h = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.bytes,
			    .msg_controllen = sizeof(control.bytes) };
	ssize_t n;

	*fd = -1;
	do {
		n = recvmsg(sock, &h, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (CMSG_FIRSTHDR(&h) != NULL && CMSG_FIRSTHDR(&h)->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&h)), sizeof(*fd));
	if (n == 0)
		return -ENOTCONN;
	if (n != (ssize_t)sizeof(*m) || (h.msg_flags & MSG_CTRUNC)) {
		if (*fd >= 0)
			close(*fd);
		*fd = -1;
		return -EPROTO;
	}
	m->name[sizeof(m->name) - 1] = '\0';
	return 0;
}

/* --- the guardian --- */

static struct {
	struct table table;
	char path[PATH_MAX]; /* where the next program is */
	int exe,
		before; /* O_PATH: the one that serves, or is to; and the last that did, until this one does, or -1 */
	struct candidate next;
	char refused[STORE_NAME_MAX]; /* what the next daemon is to hear */
	char **argv;
	sigset_t before_us; /* the signals that were blocked */
	pid_t self, child;
	int sock, signal; /* signal: of which the last one died */
	bool serves, drains;
	unsigned ending;    /* how often it has been told to end */
	uint64_t told;	    /* when, the first time; ns */
	uint64_t since;	    /* when there was a daemon last, ns */
	unsigned before_it; /* daemons that were started */
	uint64_t away;	    /* how long there may be none, ns */
	struct {
		uint64_t limit;	   /* hang_timeout, ns; 0: it is not watched */
		uint64_t silence;  /* for how long it has not proved that it lives, ns */
		uint64_t looked;   /* at the clock last, ns */
		bool traced, hung; /* hung: that is what it was killed for */
		char who[STORE_NAME_MAX];
	} life;
	struct {
		uint64_t every, last; /* ns; 0: nobody wants to hear of us */
	} watchdog;
} guard = { .sock = -1, .before = -1, .next = { .answer = -1 } };

/* poll(), but that systemd hears of us meanwhile. */
static int
wait_for(struct pollfd pf[], nfds_t n, int ms)
{
	const uint64_t begin = monotonic_ns(),
		       end = ms < 0 ? UINT64_MAX : begin + (uint64_t)ms * 1000000;

	for (uint64_t now = begin;; now = monotonic_ns()) {
		uint64_t next = end;
		int r;

		if (guard.watchdog.every != 0 &&
		    now - guard.watchdog.last >= guard.watchdog.every) {
			guard.watchdog.last = now;
			notify("WATCHDOG=1");
		}
		if (guard.watchdog.every != 0 && guard.watchdog.last + guard.watchdog.every < next)
			next = guard.watchdog.last + guard.watchdog.every;
		r = poll(pf, n,
			 next == UINT64_MAX ? -1
			 : next > now	    ? (int)((next - now) / 1000000) + 1
					    : 0);
		if (r > 0 || (r == 0 && monotonic_ns() >= end))
			return r;
	}
}

/* In the child: it is a daemon. */
static void
become_daemon(int sock)
{
	char text[24];

	/* Whoever is told that the guardian is gone must not find somebody who serves. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != guard.self) /* it went before that */
		_exit(EXIT_FAILURE);
	/* A terminal's ^C is for the guardian, who hands it on. */
	setpgid(0, 0);
	fcntl(sock, F_SETFD, 0);
	snprintf(text, sizeof(text), "%d", sock);
	setenv(SOCKET_ENV, text, 1);
	if (guard.ending > 0) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)guard.told);
		setenv(ENDING_ENV, text, 1);
	}
	/* What systemd said to us is meant for the daemon, but that it wants to hear of us. */
	snprintf(text, sizeof(text), "%d", (int)getpid());
	if (getenv("LISTEN_PID") != NULL)
		setenv("LISTEN_PID", text, 1);
	unsetenv("WATCHDOG_PID");
	unsetenv("WATCHDOG_USEC");
	sigprocmask(SIG_SETMASK, &guard.before_us, NULL);
	/* The file that has been asked, and no other that its name may mean by now. */
	fprintf(stderr, "uffd-pagerd: %s: %s\n", guard.path,
		strerror(-candidate_exec(guard.exe, guard.argv)));
	_exit(EXIT_FAILURE);
}

/* The same to a daemon that may not be reading.  If that takes too long it is killed, which is no error. */
static int
tell_daemon(enum kept_type type, const char *name, int fd)
{
	int r;

	while ((r = tell(guard.sock, type, name, fd)) == -EAGAIN) {
		struct pollfd pf = { .fd = guard.sock, .events = POLLOUT };

		wait_for(&pf, 1, NEXT_MS);
		if (guard.since != 0 && monotonic_ns() >= guard.since + guard.away) {
			kill(guard.child, SIGKILL);
			return -EPIPE;
		}
	}
	return r;
}

/* A daemon, and all that is kept to it.  0 or -errno. */
static int
start(void)
{
	int pair[2], r = 0;
	char before[16];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	snprintf(before, sizeof(before), "%u", guard.before_it);
	guard.serves = false;
	guard.life.limit = 0;
	guard.life.hung = guard.life.traced = false;
	guard.child = fork();
	if (guard.child == 0)
		become_daemon(pair[1]);
	if (guard.child < 0)
		r = -errno;
	close(pair[1]);
	guard.sock = pair[0];
	fcntl(guard.sock, F_SETFL, O_NONBLOCK);
	for (unsigned b = 0; b < BUCKETS && r == 0; b++)
		for (const struct kept *k = guard.table.bucket[b]; k != NULL && r == 0; k = k->next)
			r = tell_daemon(KEPT_KEEP, k->name, k->fd);
	if (r == 0)
		r = tell_daemon(KEPT_ALL, before, -1);
	if (r == 0 && guard.refused[0] != '\0')
		r = tell_daemon(KEPT_REFUSED, guard.refused, -1);
	guard.refused[0] = '\0';
	guard.before_it++;
	/* It has died of something meanwhile: that is seen in due time. */
	return r == -EPIPE || r == -ECONNRESET ? 0 : r;
}

/* It says that it lives, or who in it does not answer, and what is to be thought of silence. */
static void
lives(const char *text)
{
	char *who;
	const uint64_t ms = strtoull(text, &who, 10);

	guard.life.limit = ms * 1000000;
	snprintf(guard.life.who, sizeof(guard.life.who), "%s", *who != '\0' ? who + 1 : "");
	if (*who == '\0')
		guard.life.silence = 0;
}

/* Nothing has come of an upgrade. */
static void
refuse(const char *why)
{
	log_error("guardian: %s is not started, and the daemon goes on: %s", guard.path, why);
	/* If it does not hear that, whoever has asked it hears nothing, which is the truth as well. */
	(void)tell(guard.sock, KEPT_REFUSED, why, -1);
}

/* Is there something that can take over? */
static void
ask_next(void)
{
	static int fd[ASKED_MAX];
	unsigned n = 0;
	int r;

	if (guard.next.pid != 0)
		return;
	for (unsigned b = 0; b < BUCKETS; b++) {
		for (const struct kept *k = guard.table.bucket[b]; k != NULL; k = k->next) {
			const size_t len = strlen(k->name);

			if (n < ASKED_MAX && (strcmp(k->name, "store") == 0 ||
					      (strncmp(k->name, "fill/", 5) == 0 && len > 5 &&
					       strcmp(k->name + len - 5, "/note") == 0)))
				fd[n++] = k->fd;
		}
	}
	r = candidate_start(&guard.next, guard.path, guard.argv, &guard.before_us, fd, n);
	if (r < 0)
		refuse(strerror(-r));
}

/* False: there is nothing more to hear, or now. */
static bool
listen_to(int flags)
{
	struct kept_msg m = { 0 };
	int fd, r = hear(guard.sock, &m, &fd, flags);

	if (r < 0) {
		if (r == -EPROTO)
			log_error("guardian: the daemon says what it may not");
		return r == -EPROTO;
	}
	if (m.type == KEPT_KEEP && fd >= 0) {
		if (put(&guard.table, m.name, fd) < 0)
			log_error("guardian: out of memory: %s is not kept", m.name);
		return true;
	}
	if (m.type == KEPT_DROP) {
		const int old = cut(&guard.table, m.name);

		if (old >= 0)
			close(old);
	}
	if (m.type == KEPT_SERVES) {
		guard.serves = true;
		if (guard.before >= 0)
			close(guard.before);
		guard.before = -1;
	}
	if (m.type == KEPT_LIVES)
		lives(m.name);
	if (m.type == KEPT_UPGRADE)
		ask_next();
	if (fd >= 0)
		close(fd);
	return true;
}

/* What a daemon of ours that has ended had still to say, and what it ended with.  -1: it was killed. */
static int
bury(void)
{
	int status;

	while (waitpid(guard.child, &status, 0) < 0 && errno == EINTR)
		;
	while (listen_to(MSG_DONTWAIT))
		;
	close(guard.sock);
	guard.sock = -1;
	guard.child = -1;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	guard.signal = WTERMSIG(status);
	log_error("guardian: the daemon was killed: %s", strsignal(guard.signal));
	return -1;
}

/* Where this is the process that orphans come to: a holder's (holder.h), say. */
static void
bury_others(void)
{
	siginfo_t si = { .si_pid = 0 };

	while (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) == 0 && si.si_pid != 0 &&
	       si.si_pid != guard.child && si.si_pid != guard.next.pid) {
		waitpid(si.si_pid, NULL, 0);
		si.si_pid = 0;
	}
}

/* It has said whether it can. */
static void
hear_next(void)
{
	char why[CANDIDATE_WHY];

	if (!candidate_end(&guard.next, why)) {
		refuse(why);
	} else {
		log_info("guardian: starting %s anew", guard.path);
		/* If this is the second that comes to nothing, the one that has served is still the one to go back to. */
		if (guard.before < 0)
			guard.before = guard.exe;
		else
			close(guard.exe);
		guard.exe = guard.next.exe;
		kill(guard.child, SIGKILL);
	}
	bury_others();
}

/* True if a daemon that was killed has clients that are to be served on. */
static bool
goes_on(void)
{
	return guard.ending == 0 ||
	       (guard.ending == 1 && guard.drains && (guard.serves || guard.since != 0));
}

/* The new program has ended before it served: the last one is it again.  False: there is none. */
static bool
go_back(void)
{
	if (guard.serves || guard.before < 0 || !goes_on())
		return false;
	close(guard.exe);
	guard.exe = guard.before;
	guard.before = -1;
	guard.since = monotonic_ns();
	log_error("guardian: %s does not come to serve: starting the last one again", guard.path);
	snprintf(guard.refused, sizeof(guard.refused), "it does not come to serve: see the log");
	return true;
}

/* What is handed on, or done with it, when a signal has come. */
static void
on_signal(int sig)
{
	if (sig == SIGUSR2) {
		ask_next();
	} else if (sig == SIGCHLD) {
		bury_others();
	} else {
		if ((sig == SIGTERM || sig == SIGINT) && guard.ending++ == 0)
			guard.told = monotonic_ns();
		kill(guard.child, sig);
	}
}

/* Somebody looks at it with a debugger. */
static bool
is_traced(void)
{
	char path[64], line[128];
	int tracer = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)guard.child);
	f = fopen(path, "re");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL && tracer == 0)
		(void)sscanf(line, "TracerPid: %d", &tracer);
	if (f != NULL)
		fclose(f);
	return tracer != 0;
}

/* Whether it is to be looked after: it has said so, and is not about to end; one that takes leave of its clients serves them still. */
static bool
is_watched(void)
{
	return guard.serves && goes_on() && guard.life.limit != 0 && !guard.life.hung;
}

/*
 * Time has passed.  Silence is counted in looks of our own: if we, or the machine, have been stopped, the daemon has been as well, and that counts as no
 * more than two of them.
 */
static void
count_silence(void)
{
	const uint64_t now = monotonic_ns(), passed = now - guard.life.looked,
		       most = guard.life.limit / TICKS * 2;

	guard.life.looked = now;
	if (is_watched())
		guard.life.silence += passed < most ? passed : most;
}

/* It has been silent for too long, unless its proof is in what it has said and we have not heard: kill it. */
static void
end_hang(void)
{
	bool traced;

	for (unsigned n = 0; n < QUEUE_MAX && listen_to(MSG_DONTWAIT); n++)
		;
	if (!is_watched() || guard.life.silence <= guard.life.limit)
		return;
	traced = is_traced();
	if (traced && !guard.life.traced)
		log_warning("guardian: the daemon hangs, and is left to who is tracing it");
	guard.life.traced = traced;
	if (traced)
		return;
	log_error("guardian: the daemon hangs: %s has not answered for %llu ms; killed",
		  guard.life.who[0] != '\0' ? guard.life.who : "all of it",
		  (unsigned long long)(guard.life.silence / 1000000));
	guard.life.hung = true;
	kill(guard.child, SIGKILL);
}

/* Wait until the daemon ends: with what, or -1. */
static int
watch(int signals)
{
	const int pidfd = (int)syscall(SYS_pidfd_open, guard.child, 0);

	guard.life.looked = monotonic_ns();
	guard.life.silence = 0;
	for (;;) {
		struct pollfd pf[4] = { { .fd = pidfd, .events = POLLIN },
					{ .fd = signals, .events = POLLIN },
					{ .fd = guard.sock, .events = POLLIN },
					{ .fd = guard.next.answer, .events = POLLIN } };
		struct signalfd_siginfo si;
		int ms = -1;

		if (!guard.serves && guard.since != 0) {
			const uint64_t now = monotonic_ns();

			ms = now < guard.since + guard.away
				     ? (int)((guard.since + guard.away - now) / 1000000) + 1
				     : 0;
		}
		/* Meanwhile, the time of others. */
		int look = is_watched() ? (int)(guard.life.limit / TICKS / 1000000) + 1 : -1;

		if (guard.next.pid != 0 && (look < 0 || look > NEXT_MS))
			look = NEXT_MS;
		if (wait_for(pf, 4, look < 0 || (ms >= 0 && ms < look) ? ms : look) == 0 &&
		    ms >= 0 && monotonic_ns() >= guard.since + guard.away) {
			log_error("guardian: nobody has served for away_timeout");
			kill(guard.child, SIGKILL);
			bury();
			if (pidfd >= 0)
				close(pidfd);
			return EXIT_FAILURE;
		}
		if (pf[1].revents != 0 && read(signals, &si, sizeof(si)) == (ssize_t)sizeof(si))
			on_signal((int)si.ssi_signo);
		if (pf[2].revents != 0 && !listen_to(MSG_DONTWAIT) && (pf[2].revents & POLLHUP))
			pf[0].revents = POLLIN; /* it has closed it, so it ends */
		if (guard.next.pid != 0 &&
		    (pf[3].revents != 0 || monotonic_ns() >= guard.next.until))
			hear_next();
		if (guard.serves)
			guard.since = 0;
		count_silence();
		if (is_watched() && guard.life.silence > guard.life.limit)
			end_hang();
		if (pf[0].revents != 0) {
			const int status = bury();

			if (pidfd >= 0)
				close(pidfd);
			return status;
		}
	}
}

/* Some time, in which signals are heard.  False: it is over. */
static bool
wait_before_next(int signals)
{
	struct pollfd pf = { .fd = signals, .events = POLLIN };
	struct signalfd_siginfo si;

	if (wait_for(&pf, 1, NEXT_MS) > 0 &&
	    read(signals, &si, sizeof(si)) == (ssize_t)sizeof(si) &&
	    (si.ssi_signo == SIGTERM || si.ssi_signo == SIGINT))
		return false;
	if (monotonic_ns() < guard.since + guard.away)
		return true;
	log_error("guardian: nobody has served for away_timeout");
	return false;
}

int
guardian_run(char **argv, uint64_t away_ms, bool drains)
{
	unsigned crashes = 0;
	uint64_t last = 0, crash;
	struct rlimit lim;
	sigset_t set;
	int signals, status;
	ssize_t n;

	n = readlink("/proc/self/exe", guard.path, sizeof(guard.path) - 1);
	guard.exe = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	if (n <= 0 || guard.exe < 0)
		return -1;
	guard.path[n] = '\0';
	guard.argv = argv;
	guard.drains = drains;
	guard.self = getpid();
	guard.away = away_ms * 1000000;
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = lim.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &lim);
	}
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, &guard.before_us);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0) {
		sigprocmask(SIG_SETMASK, &guard.before_us, NULL);
		return -1;
	}
	prctl(PR_SET_NAME, "uffd-guardian");
	guard.watchdog.every = notify_watchdog() / 2;
	for (;;) {
		const int r = start();

		if (r < 0) {
			log_error("guardian: no daemon can be started: %s", strerror(-r));
			exit(EXIT_FAILURE);
		}
		status = watch(signals);
		if (go_back())
			continue;
		/* One that comes after another, and can not start, is tried again: clients wait, and the file may be put right. */
		if (status > 0 && guard.since != 0 && !guard.serves && guard.ending == 0) {
			log_error("guardian: the daemon has not started (exit status %d)", status);
			if (!wait_before_next(signals))
				exit(status);
			continue;
		}
		if (status >= 0)
			exit(status);
		if (!goes_on())
			exit(EXIT_FAILURE);
		guard.since = monotonic_ns();
		/* One that is killed while it serves may be as often as somebody likes. */
		if (guard.serves && guard.signal == SIGKILL && !guard.life.hung)
			continue;
		/* One that has been killed for its silence crashed when that began. */
		crash = guard.since - (guard.life.hung ? guard.life.silence : 0);
		crashes =
			last != 0 && crash < last + CRASH_MS * UINT64_C(1000000) ? crashes + 1 : 1;
		last = guard.since;
		if (crashes >= CRASHES_MAX) {
			log_error("guardian: %u crashes in a row, each within %u s: giving up",
				  crashes, CRASH_MS / 1000);
			exit(EXIT_FAILURE);
		}
	}
}

/* --- in a daemon --- */

static struct {
	int sock, pidfd;
	pthread_mutex_t lock; /* one message at a time */
	struct table before;  /* of a predecessor; the loop's thread */
	uint64_t ending;
	unsigned daemons; /* before this one */
} kept = { .sock = -1, .pidfd = -1, .lock = PTHREAD_MUTEX_INITIALIZER };

bool
kept_open(void)
{
	const char *const text = getenv(SOCKET_ENV), *const ending = getenv(ENDING_ENV);
	struct kept_msg m = { 0 };
	int fd, r;

	if (text == NULL)
		return false;
	kept.sock = atoi(text);
	unsetenv(SOCKET_ENV);
	kept.ending = ending != NULL ? strtoull(ending, NULL, 10) : 0;
	unsetenv(ENDING_ENV);
	/* Started by a descriptor it is called as that, before Linux 6.14. */
	prctl(PR_SET_NAME, program_invocation_short_name);
	fcntl(kept.sock, F_SETFD, FD_CLOEXEC);
	kept.pidfd = (int)syscall(SYS_pidfd_open, getppid(), 0);
	while ((r = hear(kept.sock, &m, &fd, 0)) == 0 && m.type == KEPT_KEEP) {
		if (fd >= 0 && put(&kept.before, m.name, fd) < 0) {
			r = -ENOMEM;
			break;
		}
	}
	if (r == 0 && m.type == KEPT_ALL && kept.pidfd >= 0) {
		kept.daemons = (unsigned)strtoul(m.name, NULL, 10);
		return true;
	}
	log_error("the guardian does not say what it keeps: %s", strerror(r < 0 ? -r : EPROTO));
	_exit(EXIT_FAILURE);
}

bool
kept_any(void)
{
	return kept.sock >= 0;
}

uint64_t
kept_ending(void)
{
	return kept.ending;
}

unsigned
kept_before(void)
{
	return kept.daemons;
}

int
kept_pidfd(void)
{
	return kept.pidfd;
}

int
kept_take(void *unused, const char *name)
{
	(void)unused;
	return cut(&kept.before, name);
}

bool
kept_some(const char *begin, const char *end, char name[STORE_NAME_MAX])
{
	for (unsigned b = 0; b < BUCKETS; b++) {
		for (const struct kept *k = kept.before.bucket[b]; k != NULL; k = k->next) {
			const size_t n = strlen(k->name), tail = strlen(end);

			if (strncmp(k->name, begin, strlen(begin)) == 0 && n >= tail &&
			    strcmp(k->name + n - tail, end) == 0) {
				memcpy(name, k->name, STORE_NAME_MAX);
				return true;
			}
		}
	}
	return false;
}

static void
say(enum kept_type type, const char *name, int fd)
{
	int r;

	pthread_mutex_lock(&kept.lock);
	/* The loop looks at it (upgrade.c), for which libuv has made it one that does not block. */
	while ((r = tell(kept.sock, type, name, fd)) == -EAGAIN)
		(void)poll(&(struct pollfd){ .fd = kept.sock, .events = POLLOUT }, 1, -1);
	pthread_mutex_unlock(&kept.lock);
	/* If it is gone, so are we in a moment. */
	if (r < 0 && r != -EPIPE)
		log_error("the guardian does not take %s: %s", name, strerror(-r));
}

static void
keep(void *unused, const char *name, int fd)
{
	(void)unused;
	say(KEPT_KEEP, name, fd);
}

static void
drop(void *unused, const char *name)
{
	(void)unused;
	say(KEPT_DROP, name, -1);
}

const struct store_keeper *
kept_keeper(void)
{
	static const struct store_keeper k = { .keep = keep, .drop = drop };

	return &k;
}

void
kept_settle(void)
{
	for (unsigned b = 0; b < BUCKETS; b++) {
		struct kept *k;

		while ((k = kept.before.bucket[b]) != NULL) {
			kept.before.bucket[b] = k->next;
			drop(NULL, k->name);
			close(k->fd);
			free(k);
		}
	}
}

void
kept_upgrade(void)
{
	say(KEPT_UPGRADE, "", -1);
}

bool
kept_refused(char why[STORE_NAME_MAX])
{
	struct kept_msg m = { 0 };
	int fd;

	if (hear(kept.sock, &m, &fd, MSG_DONTWAIT) < 0)
		return false;
	if (fd >= 0)
		close(fd);
	memcpy(why, m.type == KEPT_REFUSED ? m.name : "",
	       m.type == KEPT_REFUSED ? sizeof(m.name) : 1);
	return m.type == KEPT_REFUSED;
}

int
kept_socket(void)
{
	return kept.sock;
}

void
kept_lives(uint64_t hang_ms, const char *silent)
{
	char text[STORE_NAME_MAX];

	snprintf(text, sizeof(text), "%" PRIu64 "%s%s", hang_ms, *silent != '\0' ? " " : "",
		 silent);
	say(KEPT_LIVES, text, -1);
}

void
kept_serves(void)
{
	kept_settle();
	say(KEPT_SERVES, "", -1);
}

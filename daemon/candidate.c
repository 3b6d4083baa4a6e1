/* SPDX-License-Identifier: BSD-2-Clause */
#include "candidate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "adopt.h"
#include "daemon.h"
#include "fill.h"
#include "guardian.h"

#define ANSWER_NS UINT64_C(5000000000)
#define YES "adopts"
#define FDS_BYTES 65536u /* of the option: what does not fit is of the same version as the rest */

#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

int
candidate_exec(int exe, char **argv)
{
	(void)syscall(SYS_execveat, exe, "", argv, environ, AT_EMPTY_PATH);
	return -errno;
}

/* In the child. */
static void __attribute__((noreturn))
be_asked(int exe, char **argv, pid_t parent, const sigset_t *mask, int answer, const int fd[],
	 unsigned n)
{
	static char option[FDS_BYTES];
	size_t len = (size_t)snprintf(option, sizeof(option), CANDIDATE_OPTION "%d", answer);
	unsigned argc = 0;
	char **args;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_FAILURE);
	setpgid(0, 0);
	fcntl(answer, F_SETFD, 0);
	for (unsigned i = 0; i < n && len + 16 < sizeof(option); i++) {
		len += (size_t)snprintf(option + len, sizeof(option) - len, ",%d", fd[i]);
		fcntl(fd[i], F_SETFD, 0);
	}
	/* It is nobody's service. */
	unsetenv("NOTIFY_SOCKET");
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("WATCHDOG_USEC");
	while (argv[argc] != NULL)
		argc++;
	args = calloc(argc + 2, sizeof(*args));
	if (args == NULL)
		_exit(EXIT_FAILURE);
	args[0] = argv[0];
	args[1] = option;
	memcpy(args + 2, argv + 1, argc * sizeof(*args));
	sigprocmask(SIG_SETMASK, mask, NULL);
	dprintf(answer, "%s", strerror(-candidate_exec(exe, args)));
	_exit(EXIT_FAILURE);
}

int
candidate_start(struct candidate *c, const char *path, char **argv, const sigset_t *mask,
		const int fd[], unsigned n)
{
	const pid_t self = getpid();
	int pair[2], r = 0;

	*c = (struct candidate){ .exe = open(path, O_PATH | O_CLOEXEC), .answer = -1 };
	if (c->exe < 0)
		return -errno;
	if (pipe2(pair, O_CLOEXEC) < 0) {
		r = -errno;
		close(c->exe);
		return r;
	}
	c->pid = fork();
	if (c->pid == 0)
		be_asked(c->exe, argv, self, mask, pair[1], fd, n);
	close(pair[1]);
	if (c->pid < 0) {
		r = -errno;
		close(pair[0]);
		close(c->exe);
		*c = (struct candidate){ .pid = 0 };
		return r;
	}
	c->answer = pair[0];
	c->until = monotonic_ns() + ANSWER_NS;
	return 0;
}

bool
candidate_end(struct candidate *c, char why[CANDIDATE_WHY])
{
	const bool late = monotonic_ns() >= c->until;
	ssize_t n = 0;
	int status = 0;
	bool can;

	/* All that it says is one write. */
	if (!late)
		n = read(c->answer, why, CANDIDATE_WHY - 1);
	why[n > 0 ? n : 0] = '\0';
	can = strcmp(why, YES) == 0;
	kill(c->pid, SIGKILL);
	while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR)
		;
	if (late)
		snprintf(why, CANDIDATE_WHY, "it does not answer");
	else if (n <= 0 && WIFEXITED(status))
		snprintf(why, CANDIDATE_WHY, "exit status %d", WEXITSTATUS(status));
	else if (n <= 0)
		snprintf(why, CANDIDATE_WHY, "%s", strsignal(WTERMSIG(status)));
	close(c->answer);
	if (!can)
		close(c->exe);
	c->pid = 0;
	c->answer = -1;
	return can;
}

/* --- the one that is asked --- */

static int
look_at(int fd)
{
	const int r = adopt_look(fd);

	return r == -EINVAL ? fill_heir_look(fd) : r;
}

void
candidate_answer(const char *fds, const char *no)
{
	char *end;
	const int answer = (int)strtol(fds, &end, 10);

	while (no == NULL && *end == ',') {
		const int fd = (int)strtol(end + 1, &end, 10);

		if (look_at(fd) < 0)
			no = "it is another version, which can not take clients over";
	}
	if (no == NULL)
		no = YES;
	_exit(write(answer, no, strlen(no)) == (ssize_t)strlen(no) && strcmp(no, YES) == 0
		      ? EXIT_SUCCESS
		      : EXIT_FAILURE);
}

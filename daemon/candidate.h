/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * candidate.h (private): whether a program can be the next daemon, before the one that there is is killed for it.
 *
 *	guardian                          the program, as a process of its own
 *	candidate_start() --------------> ... --adopts=ANSWER,STORE,NOTE...  and its other arguments
 *	                                  its configuration, and the versions of what it would take over: candidate_answer()
 *	candidate_end() <--- "adopts" --- ends
 *	   it dies, says something else, or nothing in time: then it can not
 *
 * A program that does not know the question ends with an error, or says nothing; so does one that is none.
 */
#ifndef UP_DAEMON_CANDIDATE_H
#define UP_DAEMON_CANDIDATE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CANDIDATE_OPTION "--adopts="
#define CANDIDATE_WHY 64u

struct candidate {
	pid_t pid;	/* 0: there is none */
	int exe;	/* O_PATH: which file it is, whatever its path means later */
	int answer;	/* readable: candidate_end() */
	uint64_t until; /* monotonic, ns: the same */
};

/*
 * Ask the program that lies at that path now.  argv: as it will be started; mask: its signal mask; fd: what it would take over, which stays the caller's.  0 or
 * -errno: nobody is asked.
 */
int candidate_start(struct candidate *c, const char *path, char **argv, const sigset_t *mask,
		    const int fd[], unsigned n);
/* What it has said.  True: it can, and c->exe is the caller's.  Else why not.  There is none any more. */
bool candidate_end(struct candidate *c, char why[CANDIDATE_WHY]);

/* Execute such a file as `argv`.  -errno. */
int candidate_exec(int exe, char **argv);

/* In the process that is asked, with what followed CANDIDATE_OPTION.  no: it can not in any case, and why; NULL. */
void candidate_answer(const char *fds, const char *no) __attribute__((noreturn));

#endif

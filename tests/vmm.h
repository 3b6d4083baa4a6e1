/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vmm.h: a process with memory behind a userfaultfd, that does as it is told; and the file that its memory is to come from.
 *
 *	test				vmm, a child
 *	vmm_start() ------------------>	memory, userfaultfd, registered: [uffd] or [uffd, memfd] and an address come back
 *	vmm_do(VMM_VERIFY, 0, n) ----->	touches, compares
 *	            <------------------	how many pages were wrong, and how many were SIGBUS
 *
 * vmm_ask() and vmm_answer() are its two halves, for what is to happen meanwhile.  Every wait has a deadline, and calls vmm_pump if that is set.
 */
#ifndef UP_TESTS_VMM_H
#define UP_TESTS_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VMM_PAGE ((size_t)4096)
#define VMM_DEADLINE_MS 30000
#define VMM_TEXT_MAX ((size_t)2 << 20)

enum vmm_op {
	VMM_VERIFY,  /* pages [first, first + n): how many are wrong | how many are SIGBUS << 32 */
	VMM_ZEROS,   /* how many are not zeros */
	VMM_THREADS, /* VERIFY by `arg` threads at once, each all of it, in an order of its own */
	VMM_REMOVE,  /* madvise(DONTNEED) */
	VMM_WRITE,   /* all bytes of the pages are `arg` */
	VMM_WRITTEN, /* how many have a byte that is not `arg` */
	VMM_UNMAP,
	VMM_MOVE, /* mremap() to where there is nothing; from now on that is where its memory is */
	VMM_FORK, /* VERIFY by a child of its own; with `arg` ZEROS */
	VMM_WIPE, /* madvise(WIPEONFORK) */
	VMM_BECOME_CHILD, /* a child does from now on what it is told, and the process ends: vmm.pid is its number */
	VMM_REGISTER, /* see vmm_config.late */
	VMM_STORM, /* VERIFY of the first half by threads, while the second half is removed over and over, and looked at; `arg` rounds */
	VMM_SHUFFLE, /* VERIFY of the first half by threads, while pieces of the second half are moved away and back, and children look at it; `arg` rounds */
	VMM_CONNECT, /* to the text that follows */
	VMM_SEND, /* the text that follows (n bytes), `arg` at a time, with descriptors: `first` */
	VMM_HANG_UP,
	VMM_CLOSE_UFFD, /* its own copy */
	VMM_TIME, /* a touch of each of the pages: the median, and the 99th percentile << 32, ns */
	VMM_RANDOM, /* `n` times each of `arg` threads looks at a page of its own, and may write it; `first` is the seed: how many were wrong | SIGBUS << 32 */
	VMM_CHECK, /* how many pages of [first, first + n) are not as VMM_RANDOM has left them | SIGBUS << 32 */
	VMM_PUNCH, /* madvise(REMOVE) */
	VMM_AGAIN, /* another mapping of its memfd; 0 or -errno */
	VMM_MORE, /* `n` pages more, behind a memfd of their own if `arg`, registered: their address, and from now on that is where its memory is */
	VMM_ANSWER, /* one byte of the connection, within `arg` ms: it, -ENODATA: the end, -ETIMEDOUT */
	VMM_KVM, /* a guest reads all pages: the sum; -errno: there is no KVM */
};

#define VMM_REMOVING 256u /* for VMM_RANDOM, with `arg`: and may remove another */

/* For VMM_SEND: which descriptors go along. */
#define VMM_UFFD 1u
#define VMM_MEMFD 2u
#define VMM_THIRD 4u
#define VMM_NOT_UFFD 8u

struct vmm_config {
	uint64_t npages; /* of 4 KiB */
	uint64_t features;
	bool huge, memfd;
	bool late;	/* its memory is registered by VMM_REGISTER */
	bool unguarded; /* with memfd: registered without write-protection */
	uint64_t
		before; /* with memfd: pages that are there before it is registered, as the file of vmm_make_file() has them */
};

struct vmm {
	pid_t pid;
	int control, uffd, memfd;
	uint64_t address, npages;
};

struct vmm_command {
	uint32_t op;
	uint64_t first, n, arg;
};

extern void (*vmm_pump)(void);

/* A file whose pages all differ, as the memory of a machine that was snapshotted. */
void vmm_make_file(const char *path, uint64_t npages);
uint64_t vmm_word(uint64_t page, unsigned i);

/* Skips the test if there is no userfaultfd, or are no huge pages. */
void vmm_start(struct vmm *v, const struct vmm_config *cfg);
void vmm_stop(struct vmm *v); /* SIGKILL, and wait */

void vmm_ask(struct vmm *v, enum vmm_op op, uint64_t first, uint64_t n, uint64_t arg);
int64_t vmm_answer(struct vmm *v);
int64_t vmm_do(struct vmm *v, enum vmm_op op, uint64_t first, uint64_t n, uint64_t arg);
int64_t vmm_text(struct vmm *v, enum vmm_op op, const char *text, size_t len, uint64_t first,
		 uint64_t arg);

/* Until it is so; fails with the text otherwise. */
void vmm_until(bool (*is)(void *), void *arg, unsigned ms, const char *what);

/* Threads and descriptors of this process. */
unsigned vmm_threads(void);
unsigned vmm_descriptors(void);

#endif

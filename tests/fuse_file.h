/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuse_file.h: a file that a process answers for (FUSE), and who asks it.  Each page of it is made of its number and one.
 */
#ifndef UP_TESTS_FUSE_FILE_H
#define UP_TESTS_FUSE_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FUSE_FILE_PAGES 16u
#define FUSE_FILE_PAGE 4096u

struct fuse_file {
	char path[64];
	pid_t server;
	atomic_uint
		*others; /* requests that were made by another process than that which mounted it */
};

static inline void
fuse_file_answer(int fd, uint64_t unique, int error, const void *what, size_t n)
{
	static char buf[sizeof(struct fuse_out_header) + FUSE_FILE_PAGES * FUSE_FILE_PAGE];
	struct fuse_out_header h = { .len = (uint32_t)(sizeof h + n),
				     .error = error,
				     .unique = unique };

	memcpy(buf, &h, sizeof h);
	if (n > 0)
		memcpy(buf + sizeof h, what, n);
	/* ENOENT: it was interrupted. */
	if (write(fd, buf, h.len) < 0)
		return;
}

static inline void
fuse_file_read(int fd, uint64_t unique, const struct fuse_read_in *in)
{
	static unsigned char data[FUSE_FILE_PAGES * FUSE_FILE_PAGE];
	const size_t size = sizeof data;
	size_t n = in->offset < size ? size - (size_t)in->offset : 0;

	for (unsigned i = 0; i < FUSE_FILE_PAGES; i++)
		memset(data + (size_t)i * FUSE_FILE_PAGE, (int)i + 1, FUSE_FILE_PAGE);
	if (n > in->size)
		n = in->size;
	fuse_file_answer(fd, unique, 0, data + (n > 0 ? in->offset : 0), n);
}

static inline void
fuse_file_serve(int fd, pid_t mounter, const struct fuse_file *f)
{
	static _Alignas(8) char buf[1 << 18];
	const struct fuse_in_header *const h = (const void *)buf;
	const struct fuse_attr_out attr = { .attr = { .ino = 1,
						      .size = FUSE_FILE_PAGES * FUSE_FILE_PAGE,
						      .blocks = FUSE_FILE_PAGES * 8,
						      .mode = S_IFREG | 0644,
						      .nlink = 1,
						      .blksize = FUSE_FILE_PAGE } };
	const struct fuse_open_out open_out = { .fh = 1 };
	const struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION,
					    .minor = 31,
					    .max_write = FUSE_FILE_PAGE,
					    .max_readahead = FUSE_FILE_PAGE,
					    .time_gran = 1 };

	while (read(fd, buf, sizeof buf) >= (ssize_t)sizeof *h) {
		/* The kernel's own have no process; RELEASE is nobody's call. */
		if (h->pid != 0 && (pid_t)h->pid != mounter && h->opcode != FUSE_RELEASE)
			atomic_fetch_add(f->others, 1);
		switch (h->opcode) {
		case FUSE_INIT:
			fuse_file_answer(fd, h->unique, 0, &init, sizeof init);
			break;
		case FUSE_GETATTR:
			fuse_file_answer(fd, h->unique, 0, &attr, sizeof attr);
			break;
		case FUSE_OPEN:
			fuse_file_answer(fd, h->unique, 0, &open_out, sizeof open_out);
			break;
		case FUSE_READ:
			fuse_file_read(fd, h->unique, (const void *)(h + 1));
			break;
		case FUSE_FLUSH: /* of each close() */
		case FUSE_RELEASE:
			fuse_file_answer(fd, h->unique, 0, NULL, 0);
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			fuse_file_answer(fd, h->unique, -ENOSYS, NULL, 0);
			break;
		}
	}
}

/* False: not here.  The caller is who mounts it. */
static inline bool
fuse_file_start(struct fuse_file *f)
{
	const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[80];
	int at;

	if (fd < 0)
		return false;
	snprintf(f->path, sizeof f->path, "/tmp/fuse_file.%d", (int)getpid());
	at = open(f->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	f->others = mmap(NULL, FUSE_FILE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			 -1, 0);
	snprintf(options, sizeof options, "fd=%d,rootmode=100644,user_id=0,group_id=0", fd);
	if (at < 0 || f->others == MAP_FAILED || close(at) < 0 ||
	    mount("fuse_file", f->path, "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
		close(fd);
		unlink(f->path);
		return false;
	}
	f->server = fork();
	if (f->server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fuse_file_serve(fd, getppid(), f);
		_exit(0);
	}
	close(fd);
	return true;
}

/* It answers nothing from here on; or goes on where it was. */
static inline void
fuse_file_mute(const struct fuse_file *f, bool mute)
{
	int status;

	kill(f->server, mute ? SIGSTOP : SIGCONT);
	if (mute)
		waitpid(f->server, &status, WUNTRACED);
}

static inline void
fuse_file_end(struct fuse_file *f)
{
	umount2(f->path, MNT_DETACH);
	kill(f->server, SIGKILL);
	waitpid(f->server, NULL, 0);
	unlink(f->path);
	munmap(f->others, FUSE_FILE_PAGE);
}

#endif

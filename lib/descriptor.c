/* SPDX-License-Identifier: BSD-2-Clause */
#include "descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Lines of a file, one at a time; longer ones are cut. */
struct lines {
	int fd;
	size_t n, at;
	char buf[4096];
	char line[2048];
};

static bool
next_char(struct lines *l, char *c)
{
	if (l->at == l->n) {
		const ssize_t n = read(l->fd, l->buf, sizeof l->buf);

		if (n <= 0)
			return false;
		l->n = (size_t)n;
		l->at = 0;
	}
	*c = l->buf[l->at++];
	return true;
}

static bool
next_line(struct lines *l)
{
	size_t n = 0;
	bool any = false;
	char c;

	while (next_char(l, &c)) {
		any = true;
		if (c == '\n')
			break;
		if (n + 1 < sizeof l->line)
			l->line[n++] = c;
	}
	l->line[n] = '\0';
	return any;
}

/* 0: opened. */
static int
lines_of(struct lines *l, const char *path)
{
	l->n = l->at = 0;
	l->fd = open(path, O_RDONLY | O_CLOEXEC);
	return l->fd < 0 ? -errno : 0;
}

/* proc(5): "mnt_id:\t42".  -errno */
static long
mount_of(int fd)
{
	static const char key[] = "mnt_id:";
	struct lines l;
	char path[64];
	long id = -ENOENT;
	int r;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	r = lines_of(&l, path);
	if (r < 0)
		return r;
	while (id < 0 && next_line(&l)) {
		if (strncmp(l.line, key, sizeof key - 1) == 0)
			id = strtol(l.line + sizeof key - 1, NULL, 10);
	}
	close(l.fd);
	return id;
}

/* "42 36 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw".  0 or -ENOTSUP, as above; -EXDEV: it is not among them. */
static int
look_among(const char *path, long id)
{
	struct lines l;
	int r = lines_of(&l, path);

	if (r < 0)
		return r;
	r = -EXDEV;
	while (r == -EXDEV && next_line(&l)) {
		const char *type;

		if (strtol(l.line, NULL, 10) != id)
			continue;
		type = strstr(l.line, " - "); /* in paths spaces are escaped */
		if (type != NULL)
			r = strncmp(type + 3, "fuse", 4) == 0 ? -ENOTSUP : 0;
	}
	close(l.fd);
	return r;
}

/* Those that nobody answers stay open until their process ends; as many at a time, the others for good. */
#define CLOSING_MAX 64
static atomic_uint closing;

static void *
close_it(void *fd)
{
	close((int)(intptr_t)fd);
	atomic_fetch_sub(&closing, 1);
	return NULL;
}

void
descriptor_drop(int fd)
{
	pthread_t thread;

	if (atomic_fetch_add(&closing, 1) < CLOSING_MAX &&
	    pthread_create(&thread, NULL, close_it, (void *)(intptr_t)fd) == 0)
		pthread_detach(thread);
	else
		atomic_fetch_sub(&closing, 1);
}

int
descriptor_vet(int fd, pid_t pid)
{
	char path[64], name[16];
	int domain;
	socklen_t len = sizeof domain;
	long id;
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0)
		return domain == AF_UNIX ? 0 : -EPROTOTYPE;
	/* "pipe:[1]", "anon_inode:[userfaultfd]"; files have paths, or are "(unreachable)". */
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (readlink(path, name, sizeof name) > 0 && name[0] != '/' && name[0] != '(')
		return 0;
	/* Of memory only. */
	if (fcntl(fd, F_GET_SEALS) >= 0)
		return 0;
	id = mount_of(fd);
	if (id < 0)
		return (int)id;
	r = look_among("/proc/self/mountinfo", id);
	if (r != -EXDEV)
		return r;
	snprintf(path, sizeof path, "/proc/%d/mountinfo", (int)pid);
	r = look_among(path, id);
	return r == 0 || r == -ENOTSUP ? r : -EXDEV;
}

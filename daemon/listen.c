/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * listen.c: see listen.h.
 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guardian.h"
#include "log.h"
#include "notify.h"
#include "sessions.h"

/* Linux 6.5; older C library headers lack it. */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define BACKLOG 128
#define ENDING_MS 5000 /* a daemon that was killed is gone within that */
#define ACCEPTS 64     /* at a turn of the loop: others want theirs */

static struct listener *listeners;
static int reserve = -1; /* given up for a moment when there are no descriptors left */

/* ---- names ---- */

static int
number(const char *text, unsigned long *n)
{
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	*n = strtoul(text, &end, 10);
	return errno != 0 || *end != '\0' || *n >= UINT32_MAX ? -EINVAL : 0;
}

int
group_by_name(const char *name, gid_t *gid)
{
	const struct group *const g = getgrnam(name);
	unsigned long n;

	if (g != NULL)
		*gid = g->gr_gid;
	else if (number(name, &n) == 0)
		*gid = (gid_t)n;
	else
		return -ENOENT;
	return 0;
}

int
user_by_name(const char *name, uid_t *uid)
{
	const struct passwd *const p = getpwnam(name);
	unsigned long n;

	if (p != NULL)
		*uid = p->pw_uid;
	else if (number(name, &n) == 0)
		*uid = (uid_t)n;
	else
		return -ENOENT;
	return 0;
}

/* ---- peers ---- */

int
peer_get(int fd, struct peer *p)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	*p = (struct peer){ .pid = cred.pid, .uid = cred.uid, .gid = cred.gid, .pidfd = -1 };
	len = sizeof(p->pidfd);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &p->pidfd, &len) < 0)
		p->pidfd = -1;
	return 0;
}

bool
peer_in_group(int fd, const struct peer *p, gid_t gid)
{
	gid_t groups[256];
	socklen_t len = sizeof(groups);

	if (p->gid == gid)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return false;
	for (size_t i = 0; i < len / sizeof(groups[0]); i++)
		if (groups[i] == gid)
			return true;
	return false;
}

/* ---- files ---- */

static int
address(const char *path, struct sockaddr_un *sun)
{
	*sun = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(sun->sun_path)) {
		log_error("%s: longer than a socket's path can be, %zu bytes", path,
			  sizeof(sun->sun_path) - 1);
		return -ENAMETOOLONG;
	}
	memcpy(sun->sun_path, path, strlen(path));
	return 0;
}

/* Remove a socket that nobody listens on.  0: the path is free. */
static int
clear_path(const char *path, const struct sockaddr_un *sun, int socktype)
{
	struct stat st;
	int fd, r;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode)) {
		log_error("%s: is there already, and is no socket", path);
		return -EEXIST;
	}
	fd = socket(AF_UNIX, socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) < 0 ? errno : 0;
	close(fd);
	/* EPROTOTYPE: a living one of another type.  EAGAIN: its queue is full. */
	if (r != ECONNREFUSED && r != ENOENT) {
		log_error("%s: another program listens there", path);
		return -EADDRINUSE;
	}
	if (unlink(path) < 0 && errno != ENOENT) {
		r = -errno;
		log_error("%s: left behind by a daemon that was killed, and can not be removed: %s",
			  path, strerror(-r));
		return r;
	}
	log_info("%s: removed, left behind by a daemon that was killed", path);
	return 0;
}

int
listen_unix(const char *path, int socktype, mode_t mode, const char *group, dev_t *dev, ino_t *ino)
{
	struct sockaddr_un sun;
	struct stat st;
	mode_t old;
	gid_t gid = 0;
	int fd, r;

	r = address(path, &sun);
	if (r < 0)
		return r;
	if (group != NULL && group_by_name(group, &gid) < 0) {
		log_error("%s: there is no group '%s'", path, group);
		return -ENOENT;
	}
	r = clear_path(path, &sun, socktype);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* Nobody else's until its group is right; only then its mode. */
	old = umask(0777);
	r = bind(fd, (const struct sockaddr *)&sun, sizeof(sun)) < 0 ? -errno : 0;
	umask(old);
	if (r < 0) {
		log_error("%s: %s", path, strerror(-r));
		close(fd);
		return r;
	}
	if ((group != NULL && lchown(path, (uid_t)-1, gid) < 0) || chmod(path, mode) < 0 ||
	    listen(fd, BACKLOG) < 0 || stat(path, &st) < 0) {
		r = -errno;
		log_error("%s: %s", path, strerror(-r));
		unlink(path);
		close(fd);
		return r;
	}
	*dev = st.st_dev;
	*ino = st.st_ino;
	return fd;
}

void
listen_unlink(const char *path, dev_t dev, ino_t ino)
{
	struct stat st;

	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_dev == dev && st.st_ino == ino)
		unlink(path);
}

/*
 * The file is removed at the end, by who holds the lock: who has locked a file that is not there any more tries again.
 */
int
listen_lock(const char *path)
{
	char file[PATH_MAX], pid[24];
	struct stat held, there;
	unsigned tries = 0;
	ssize_t n;
	int fd, r;

	snprintf(file, sizeof(file), "%s.pid", path);
	for (;;) {
		fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0644);
		if (fd < 0) {
			r = -errno;
			log_error("%s: %s", file, strerror(-r));
			return r;
		}
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			r = -errno;
			n = pread(fd, pid, sizeof(pid) - 1, 0);
			pid[n > 0 ? n : 0] = '\0';
			pid[strcspn(pid, "\n")] = '\0';
			/* A guardian was killed, and its daemon is ending. */
			if (r == -EWOULDBLOCK && tries++ < ENDING_MS && n > 0 &&
			    kill((pid_t)atoi(pid), 0) < 0 && errno == ESRCH) {
				close(fd);
				usleep(1000);
				continue;
			}
			if (r == -EWOULDBLOCK)
				log_error("%s: another uffd-pagerd serves there%s%s", path,
					  n > 0 ? ", process " : "", pid);
			else
				log_error("%s: %s", file, strerror(-r));
			close(fd);
			return r;
		}
		if (fstat(fd, &held) == 0 && lstat(file, &there) == 0 &&
		    held.st_ino == there.st_ino && held.st_dev == there.st_dev)
			break;
		close(fd);
	}
	/* Whom to send a signal. */
	n = snprintf(pid, sizeof(pid), "%d\n", (int)(kept_any() ? getppid() : getpid()));
	if (ftruncate(fd, 0) < 0 || pwrite(fd, pid, (size_t)n, 0) != n) {
		r = errno == 0 ? -EIO : -errno;
		log_error("%s: %s", file, strerror(-r));
		unlink(file);
		close(fd);
		return r;
	}
	return fd;
}

void
listen_unlock(const char *path, int fd)
{
	char file[PATH_MAX];

	if (fd < 0)
		return;
	snprintf(file, sizeof(file), "%s.pid", path);
	unlink(file);
	close(fd);
}

/* ---- accepting ---- */

/* No descriptor left: take the connection with the one in reserve, say why not, and hang up, or the loop would turn for it for ever. */
static bool
shed(const struct listener *l, int error)
{
	static uint64_t said;
	int fd = -1;

	if (error != EMFILE && error != ENFILE)
		return false;
	if (said == 0 || monotonic_ns() - said > UINT64_C(10000000000)) {
		said = monotonic_ns();
		log_error("%s: a connection was refused: %s", l->path, strerror(error));
	}
	if (reserve >= 0) {
		close(reserve);
		fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0 && l->refuse != NULL)
			l->refuse(fd, -error, "the daemon has no file descriptors left");
		else if (fd >= 0)
			close(fd);
		if (fd >= 0)
			session_refused(REFUSED_DESCRIPTORS);
		reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
	}
	return fd >= 0;
}

static void
on_knock(uv_poll_t *poll, int status, int events)
{
	struct listener *const l = poll->data;

	(void)status;
	(void)events;
	for (int i = 0; i < ACCEPTS && l->fd >= 0; i++) {
		const int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		struct peer peer;

		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED || shed(l, errno))
				continue;
			return;
		}
		if (peer_get(fd, &peer) < 0) {
			close(fd);
			continue;
		}
		l->accept(l->d, l, fd, &peer);
		if (peer.pidfd >= 0)
			close(peer.pidfd);
	}
}

/* A predecessor's socket: who connects while there is no daemon waits in its queue.  -1: there is none, or nobody would find it. */
static int
take_kept(struct listener *l)
{
	char name[STORE_NAME_MAX];
	struct stat st;
	int fd;

	if (!kept_any())
		return -1;
	snprintf(name, sizeof(name), "listen/%s", l->name);
	fd = kept_take(NULL, name);
	if (fd >= 0 && stat(l->path, &st) == 0 && S_ISSOCK(st.st_mode)) {
		l->dev = st.st_dev;
		l->ino = st.st_ino;
		return fd;
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

static void
keep(const struct listener *l)
{
	char name[STORE_NAME_MAX];

	if (!kept_any() || l->inherited)
		return;
	snprintf(name, sizeof(name), "listen/%s", l->name);
	kept_keeper()->keep(NULL, name, l->fd);
}

int
listen_add(struct daemon *d, const struct listener *like)
{
	struct listener *const l = malloc(sizeof(*l));
	int r;

	if (l == NULL)
		return -ENOMEM;
	*l = *like;
	l->d = d;
	if (reserve < 0)
		reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
	l->fd = notify_take(l->name, l->socktype);
	l->inherited = l->fd >= 0;
	if (!l->inherited)
		l->fd = take_kept(l);
	if (l->fd < 0) {
		l->fd = listen_unix(l->path, l->socktype, l->mode, l->group_of_file, &l->dev,
				    &l->ino);
		if (l->fd < 0) {
			r = l->fd;
			free(l);
			return r;
		}
	}
	keep(l);
	r = uv_poll_init(&d->loop, &l->poll, l->fd);
	if (r == 0)
		r = uv_poll_start(&l->poll, UV_READABLE, on_knock);
	if (r < 0) {
		log_error("%s: %s", l->path, uv_strerror(r));
		/* The handle may be known to the loop: the end is near, and it is not freed. */
		close(l->fd);
		if (!l->inherited)
			listen_unlink(l->path, l->dev, l->ino);
		return r;
	}
	l->poll.data = l;
	l->next = listeners;
	listeners = l;
	log_info("%s: listening (%s%s)", l->inherited ? l->name : l->path, l->type,
		 l->inherited ? ", handed over" : "");
	return 0;
}

static struct listener *
find(const char *name)
{
	struct listener *l = listeners;

	while (l != NULL && strcmp(l->name, name) != 0)
		l = l->next;
	return l;
}

struct listener *
listen_first(void)
{
	return listeners;
}

static void
on_closed(uv_handle_t *handle)
{
	struct listener *const l = handle->data;

	close(l->fd);
	free(l);
}

void
listen_remove(struct listener *l)
{
	struct listener **p = &listeners;
	char name[STORE_NAME_MAX];

	while (*p != l)
		p = &(*p)->next;
	*p = l->next;
	if (!l->inherited)
		listen_unlink(l->path, l->dev, l->ino);
	/* Another one of its name is kept in its place already. */
	if (kept_any() && !l->inherited && find(l->name) == NULL) {
		snprintf(name, sizeof(name), "listen/%s", l->name);
		kept_keeper()->drop(NULL, name);
	}
	uv_poll_stop(&l->poll);
	uv_close((uv_handle_t *)&l->poll, on_closed);
}

/* What needs no other socket. */
static void
adapt(struct listener *l, const struct listener *like)
{
	/* systemd's has the mode that its unit says. */
	if (l->mode != like->mode && !l->inherited && chmod(l->path, like->mode) < 0)
		log_error("%s: %s", l->path, strerror(errno));
	l->mode = like->mode;
	memcpy(l->source, like->source, sizeof(l->source));
	memcpy(l->group, like->group, sizeof(l->group));
}

int
listen_change(struct listener *l, const struct listener *like)
{
	const bool moved = strcmp(l->path, like->path) != 0 && !l->inherited;
	struct listener before = *l;
	int r;

	if (strcmp(l->type, like->type) == 0 && !moved) {
		if (l->mode == like->mode && strcmp(l->source, like->source) == 0 &&
		    strcmp(l->group, like->group) == 0)
			return 0;
		adapt(l, like);
		log_info("%s: changed", l->inherited ? l->name : l->path);
		return 0;
	}
	if (l->inherited) {
		log_error("[listen %s]: it was handed over as %s, and stays so", l->name, l->type);
		return -EBUSY;
	}
	if (moved) {
		r = listen_add(l->d, like);
		if (r == 0)
			listen_remove(l);
		return r;
	}
	listen_remove(l);
	r = listen_add(before.d, like);
	if (r < 0)
		(void)listen_add(before.d, &before);
	return r;
}

void
listen_close(void)
{
	while (listeners != NULL)
		listen_remove(listeners);
	if (reserve >= 0) {
		close(reserve);
		reserve = -1;
	}
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * area.c: swap space: a file or block device, and who has which slot of it.
 *
 *	open: find the file --> ours alone? --> try O_DIRECT, fallocate() --> empty, or fixed size
 *	grow: allocate on disk (slow, grow_lock) --> hand the slots over (lock)
 *
 * Space is allocated, not only promised: a sparse file that meets a full disk fails the write
 * of a page whose slot was reserved long ago.  What can not be allocated is refused at
 * swap_area_grow(), where a caller is there to hear it.
 *
 * Rejected: one file for each growth step.  Steps can then be given back one by one, but a slot
 * needs a file number, the rings a table of descriptors, and nobody asks for swap to shrink.
 *
 * Whether O_DIRECT works is found out by doing it: the open and fcntl() succeed on file systems
 * (FUSE, stacked ones, devices with larger sectors) where the first write fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "swap/swap.h"

/* Slots that a slot_t can name, less SLOT_NONE and one so that first + n does not wrap. */
#define SLOTS_MAX ((size_t)UINT32_MAX - 1)

/* A growing area has whole words of the map. */
#define WORD ((size_t)64)
#define GROW_MAX (SLOTS_MAX / WORD * WORD)

#define NAP_NS 5000000
#define KEPT_TRIES 1000u  /* 5 s */
#define SHARED_TRIES 200u /* 1 s */
/* The least that a file grows by: 16 MiB, so that a fallocate() is rare. */
#define GROW_STEP (((size_t)16 << 20) >> PAGE_SHIFT)

/* What is being opened, and how it was come by. */
struct source {
	const char *name; /* for the log */
	bool temporary;	  /* ours, and has no name */
	bool created;	  /* by this open, at `name` */
	bool borrowed;	  /* the open file description is the caller's too */
	bool device;
	bool kept;	/* with what a predecessor has written */
	unsigned tries; /* that are left, while somebody else has it */
	uint64_t bytes; /* of the device */
};

/* Who has it is perhaps about to go: true after a moment, false if that was long enough.  errno stays as it is if false. */
static bool
try_again(struct source *src)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };

	if (src->tries == 0)
		return false;
	src->tries--;
	nanosleep(&nap, NULL);
	return true;
}

static off_t
slot_offset(size_t slot)
{
	return (off_t)slot << PAGE_SHIFT;
}

static bool
in_memory(const struct statfs *fs)
{
	/* f_type is signed or not, and of another width, on each architecture. */
	return (uint32_t)fs->f_type == TMPFS_MAGIC || (uint32_t)fs->f_type == RAMFS_MAGIC;
}

/* --- finding the file --- */

static const char *
mode_name(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFLNK:
		return "a symbolic link (give what it points to)";
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a fifo";
	case S_IFCHR:
		return "a character device";
	case S_IFSOCK:
		return "a socket";
	default:
		return "something else";
	}
}

/* 0, or -EINVAL with a log line if it can not hold swap. */
static int
source_type(struct source *src, mode_t mode, const struct logger *log)
{
	if (!S_ISREG(mode) && !S_ISBLK(mode)) {
		log_line(log, UP_LOG_ERROR, "swap: %s is %s, not a file or block device", src->name,
			 mode_name(mode));
		return -EINVAL;
	}
	src->device = S_ISBLK(mode);
	return 0;
}

/* A nameless file in `dir`.  A descriptor or -errno. */
static int
open_nameless(const char *dir)
{
	char name[4096];
	int fd, n;

	fd = open(dir, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	/* Not on this file system; EISDIR: not in this kernel. */
	if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
		return -errno;
	n = snprintf(name, sizeof name, "%s/uffd-pager-XXXXXX", dir);
	if (n < 0 || (size_t)n >= sizeof name)
		return -ENAMETOOLONG;
	fd = mkostemp(name, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (unlink(name) < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

/* The default file: the first directory that has room on a disk. */
static int
open_temporary(struct source *src, const struct logger *log)
{
	const char *const dirs[] = { secure_getenv("TMPDIR"), "/var/tmp", "." };
	int r = -ENOSPC;

	src->temporary = true;
	for (unsigned i = 0; i < ARRAY_SIZE(dirs); i++) {
		struct statfs fs;
		int fd;

		if (dirs[i] == NULL || dirs[i][0] == '\0')
			continue;
		if (statfs(dirs[i], &fs) == 0 && in_memory(&fs)) {
			log_line(log, UP_LOG_INFO, "swap: passing over %s, which is in memory",
				 dirs[i]);
			continue;
		}
		fd = open_nameless(dirs[i]);
		if (fd >= 0) {
			src->name = dirs[i];
			return fd;
		}
		r = fd;
		log_line(log, UP_LOG_INFO, "swap: passing over %s: %s", dirs[i], strerror(-r));
	}
	log_line(log, UP_LOG_ERROR,
		 "swap: no directory on a disk to put it in: set swap_path, or TMPDIR");
	return r;
}

static int
open_path(struct source *src, const struct logger *log)
{
	/* O_EXCL without O_CREAT: of a block device, be the only user, or EBUSY. */
	const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_EXCL;
	struct stat st;
	int fd, r;

	/* Before it is opened: to open some devices is to start them. */
	if (lstat(src->name, &st) == 0) {
		r = source_type(src, st.st_mode, log);
		if (r < 0)
			return r;
	}
	do {
		fd = open(src->name, flags);
		if (fd < 0 && errno == ENOENT) {
			fd = open(src->name, flags | O_CREAT, 0600);
			src->created = fd >= 0;
		}
		/* Somebody else has just created it; or its io_urings have the device still. */
	} while (fd < 0 && (errno == EEXIST || (errno == EBUSY && try_again(src))));
	if (fd < 0) {
		r = -errno;
		log_line(log, UP_LOG_ERROR, "swap: %s: %s%s", src->name,
			 r == -EBUSY ? "the device is in use (mounted, or held by a program): "
				     : "",
			 strerror(-r));
		return r;
	}
	return fd;
}

/*
 * A description of our own of the caller's file, so that O_DIRECT, the lock and the rest are
 * nobody else's business; if there is no way to one, a duplicate.
 */
static int
open_descriptor(struct source *src, int given, const struct logger *log)
{
	char proc[sizeof "/proc/self/fd/" + 11];
	struct stat st;
	int fd, flags, r;

	if (fstat(given, &st) < 0) {
		r = -errno;
		log_line(log, UP_LOG_ERROR, "swap: %s: %s", src->name, strerror(-r));
		return r;
	}
	r = source_type(src, st.st_mode, log);
	if (r < 0)
		return r;
	flags = fcntl(given, F_GETFL);
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR) {
		log_line(log, UP_LOG_ERROR, "swap: %s is not open for reading and writing",
			 src->name);
		return -EINVAL;
	}
	snprintf(proc, sizeof proc, "/proc/self/fd/%d", given);
	fd = open(proc, O_RDWR | O_CLOEXEC | (src->device ? O_EXCL : 0));
	if (fd >= 0)
		return fd;
	if (errno == EBUSY) {
		log_line(log, UP_LOG_ERROR,
			 "swap: %s: the device is in use (mounted, or held with O_EXCL, "
			 "maybe by the descriptor itself)",
			 src->name);
		return -EBUSY;
	}
	/* Appending writes go elsewhere than they say; O_NONBLOCK makes io_uring give up early. */
	if (flags & (O_APPEND | O_NONBLOCK)) {
		log_line(log, UP_LOG_ERROR,
			 "swap: %s has O_APPEND or O_NONBLOCK and can not be reopened: %s",
			 src->name, strerror(errno));
		return -EINVAL;
	}
	src->borrowed = true;
	fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
	if (fd < 0) {
		r = -errno;
		log_line(log, UP_LOG_ERROR, "swap: %s: %s", src->name, strerror(-r));
		return r;
	}
	return fd;
}

/* --- taking possession of it --- */

/*
 * One user at a time: two areas in one file would write each other's slots.  The kernel does it
 * for devices (O_EXCL), and nobody else can open a nameless file.
 */
static int
area_lock(struct swap_area *s, struct source *src)
{
	if (src->temporary || src->device)
		return 0;
	/* The caller's own lock would be ours, and dropped by us. */
	do
		s->locked = !src->borrowed && flock(s->fd, LOCK_EX | LOCK_NB) == 0;
	while (!src->borrowed && !s->locked && errno == EWOULDBLOCK && try_again(src));
	if (s->locked)
		return 0;
	if (!src->borrowed && errno == EWOULDBLOCK) {
		log_line(s->log, UP_LOG_ERROR,
			 "swap: %s is locked: another swap area, or a program, uses it", src->name);
		return -EBUSY;
	}
	log_line(s->log, UP_LOG_WARNING,
		 "swap: %s can not be locked: see that nothing else uses it", src->name);
	return 0;
}

static int
device_size(struct swap_area *s, struct source *src)
{
	if (ioctl(s->fd, BLKGETSIZE64, &src->bytes) < 0) {
		int r = -errno;

		log_line(s->log, UP_LOG_ERROR, "swap: %s: BLKGETSIZE64: %s", src->name,
			 strerror(-r));
		return r;
	}
	if (src->bytes < PAGE_SIZE) {
		log_line(s->log, UP_LOG_ERROR, "swap: %s is smaller than a page", src->name);
		return -ENOSPC;
	}
	return 0;
}

/* What a visible file should hear about; none of it stops us. */
static void
file_warnings(struct swap_area *s, const struct source *src)
{
	struct statfs fs;
	struct stat st;

	if (src->temporary)
		return;
	if (fstatfs(s->fd, &fs) == 0 && in_memory(&fs))
		log_line(s->log, UP_LOG_WARNING,
			 "swap: %s is in memory (tmpfs): pages written there still use it up",
			 src->name);
	if (src->kept || fstat(s->fd, &st) < 0)
		return;
	if ((st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		log_line(s->log, UP_LOG_WARNING,
			 "swap: %s has mode %03o: others may read what is written there", src->name,
			 (unsigned)st.st_mode & 0777);
	if (st.st_size > 0)
		log_line(s->log, UP_LOG_WARNING, "swap: the %llu bytes that were in %s are gone",
			 (unsigned long long)st.st_size, src->name);
}

/* Bytes that a file may have.  Beyond RLIMIT_FSIZE there is a signal, not only an error. */
static uint64_t
file_limit(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_FSIZE, &lim) < 0 || lim.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	return lim.rlim_cur;
}

/* Empty the file (if it is not kept), then see whether space can be allocated in it.  Leaves one page. */
static int
file_first_page(struct swap_area *s, const struct source *src)
{
	int r;

	if (!src->kept && ftruncate(s->fd, 0) < 0)
		goto fail;
	errno = ENOSPC;
	if (file_limit() < PAGE_SIZE)
		goto fail;
	do
		r = fallocate(s->fd, 0, 0, (off_t)PAGE_SIZE);
	while (r < 0 && errno == EINTR);
	if (r < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
		s->unreserved = true;
		log_line(s->log, UP_LOG_WARNING,
			 "swap: %s: its file system can not allocate space ahead: "
			 "when it runs full, writes fail",
			 src->name);
		r = src->kept ? 0 : ftruncate(s->fd, (off_t)PAGE_SIZE);
	}
	if (r == 0)
		return 0;
fail:
	r = -errno;
	log_line(s->log, UP_LOG_ERROR, "swap: %s: %s", src->name, strerror(-r));
	return r;
}

/* Write and read `len` bytes of the first page, the way that the descriptor is set to now; what is kept is read only. */
static bool
first_page_works(int fd, size_t len, bool kept)
{
	static const char mark[] = "uffd-pager swap";
	_Alignas(4096) char out[PAGE_SIZE] = { 0 }, in[PAGE_SIZE];

	if (kept)
		return pread(fd, in, len, 0) == (ssize_t)len;
	memcpy(out, mark, sizeof mark);
	return pwrite(fd, out, len, 0) == (ssize_t)len && pread(fd, in, len, 0) == (ssize_t)len &&
	       memcmp(in, out, len) == 0;
}

/* Try O_DIRECT.  On failure the descriptor is as before. */
static bool
odirect_works(int fd, const struct source *src)
{
	const int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return false;
	/* A borrowed description has the flags that it has. */
	if (src->borrowed && (flags & O_DIRECT) == 0)
		return false;
	if (!src->borrowed && fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
		return false;
	if (first_page_works(fd, PAGE_SIZE, src->kept))
		return true;
	if (!src->borrowed)
		(void)fcntl(fd, F_SETFL, flags);
	return false;
}

/* --- size --- */

/*
 * file_size: change the size of the file from `old` slots to `new`, with the space for them.
 *
 * => -ENOSPC or another error: the file is as it was.
 */
static int
file_size(struct swap_area *s, size_t old, size_t new)
{
	int r;

	if (file_limit() < (uint64_t)slot_offset(new))
		return -ENOSPC;
	do
		r = s->unreserved ? ftruncate(s->fd, slot_offset(new))
				  : fallocate(s->fd, 0, slot_offset(old), slot_offset(new - old));
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return 0;
	r = errno == EFBIG || errno == EDQUOT ? -ENOSPC : -errno;
	/* Part of it may have been allocated, inside or beyond the size. */
	if (ftruncate(s->fd, slot_offset(old)) < 0)
		log_line(s->log, UP_LOG_WARNING, "swap: can not give space back: %s",
			 strerror(errno));
	return r;
}

/* Slots [s->nslots, n) are there; n is a multiple of WORD unless it is the final size. */
static int
slots_add(struct swap_area *s, size_t n)
{
	const size_t words = n / WORD * WORD;
	int r = 0;

	pthread_mutex_lock(&s->lock);
	if (words > s->slots.n)
		r = runmap_grow(&s->slots, words, true);
	if (r == 0 && n > words) {
		r = runmap_grow(&s->slots, words + WORD, false);
		if (r == 0)
			runmap_give(&s->slots, words, n - words);
	}
	if (r == 0)
		s->nslots = n;
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* Grow from `old` slots to `new`; grow_lock is held. */
static int
area_extend(struct swap_area *s, size_t old, size_t new)
{
	int r = file_size(s, old, new);

	if (r < 0)
		return r;
	r = slots_add(s, new);
	if (r < 0 && ftruncate(s->fd, slot_offset(old)) < 0)
		log_line(s->log, UP_LOG_WARNING, "swap: can not give space back: %s",
			 strerror(errno));
	return r;
}

int
swap_area_grow(struct swap_area *s, size_t nslots)
{
	size_t old, least, step;
	int r = 0;

	if (nslots <= s->nslots)
		return 0;
	if (s->fixed || nslots > GROW_MAX)
		return -ENOSPC;
	pthread_mutex_lock(&s->grow_lock);
	old = s->nslots;
	if (nslots > old) {
		least = round_up(nslots, WORD);
		step = MIN(MAX(least, old + GROW_STEP), GROW_MAX);
		r = area_extend(s, old, step);
		if (r < 0 && least < step)
			r = area_extend(s, old, least);
	}
	pthread_mutex_unlock(&s->grow_lock);
	return r;
}

size_t
swap_area_max(struct swap_area *s)
{
	uint64_t have = s->nslots, room = GROW_MAX;
	struct statfs fs;
	struct stat st;

	if (s->fixed)
		return have;
	/* Of a file with holes only what is written takes part of the disk. */
	if (s->unreserved && fstat(s->fd, &st) == 0)
		have = MIN(have, (uint64_t)st.st_blocks * 512 >> PAGE_SHIFT);
	if (fstatfs(s->fd, &fs) == 0)
		room = have + ((uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize >> PAGE_SHIFT);
	room = MIN(room, file_limit() >> PAGE_SHIFT);
	room = MIN(room, GROW_MAX) / WORD * WORD;
	return MAX(room, s->nslots);
}

/* How many slots an area of fixed size has.  0, or an error that has been logged. */
static int
fixed_size(const struct swap_area *s, const struct source *src, uint64_t size, size_t *nslots)
{
	if (size == 0) {
		*nslots = (size_t)MIN(src->bytes >> PAGE_SHIFT, SLOTS_MAX);
		if (src->bytes >> PAGE_SHIFT > SLOTS_MAX)
			log_line(s->log, UP_LOG_WARNING,
				 "swap: only the first 16 TiB of %s are used", src->name);
		return 0;
	}
	if (size < PAGE_SIZE || size >> PAGE_SHIFT > SLOTS_MAX) {
		log_line(s->log, UP_LOG_ERROR,
			 "swap: a size of %llu bytes is not in 1 page..16 TiB",
			 (unsigned long long)size);
		return -EINVAL;
	}
	if (src->device && size > src->bytes) {
		log_line(s->log, UP_LOG_ERROR,
			 "swap: %s has %llu bytes, less than the %llu asked for", src->name,
			 (unsigned long long)src->bytes, (unsigned long long)size);
		return -ENOSPC;
	}
	*nslots = (size_t)(size >> PAGE_SHIFT);
	return 0;
}

/* What a file that is kept has grown to. */
static size_t
kept_slots(const struct swap_area *s)
{
	struct stat st;

	if (fstat(s->fd, &st) < 0)
		return 0;
	return (size_t)MIN((uint64_t)st.st_size >> PAGE_SHIFT, (uint64_t)GROW_MAX) / WORD * WORD;
}

static void
area_report(const struct swap_area *s, const struct source *src, uint64_t mask)
{
	char size[48] = "grows as needed";
	const char *how;

	if (src->kept) {
		log_line(s->log, UP_LOG_INFO, "swap: as the last process has left it");
		return;
	}
	if (s->fixed)
		snprintf(size, sizeof size, "%zu KiB", (size_t)s->nslots << (PAGE_SHIFT - 10));
	if (s->odirect)
		how = "O_DIRECT";
	else if (mask & UP_MASK_ODIRECT)
		how = "buffered (O_DIRECT is masked)";
	else if (src->borrowed)
		how = "buffered (the descriptor can not be reopened with O_DIRECT)";
	else
		how = "buffered (O_DIRECT does not work there)";
	log_line(s->log, UP_LOG_INFO, "swap: %s%s, %s, %s",
		 src->temporary ? "an unlinked file in " : "", src->name, size, how);
}

/* --- open and close --- */

/* Make the open file ours, find out what it can do, and give it its slots. */
static int
area_take(struct swap_area *s, struct arena *arena, struct source *src, uint64_t size,
	  uint64_t mask)
{
	size_t nslots = 0;
	int r;

	r = src->device ? device_size(s, src) : 0;
	if (r < 0)
		return r;
	s->fixed = src->device || size != 0;
	r = s->fixed ? fixed_size(s, src, size, &nslots) : 0;
	if (r < 0)
		return r;
	r = area_lock(s, src); /* before anything is lost */
	if (r < 0)
		return r;
	if (!src->device) {
		s->truncate = !src->temporary;
		file_warnings(s, src);
		r = file_first_page(s, src);
		if (r < 0)
			return r;
	}
	if ((mask & UP_MASK_ODIRECT) == 0)
		s->odirect = odirect_works(s->fd, src);
	if (!s->odirect && !first_page_works(s->fd, 512, src->kept)) {
		log_line(s->log, UP_LOG_ERROR, "swap: %s does not keep what is written to it",
			 src->name);
		return -EINVAL;
	}
	if (!src->device && !src->kept && ftruncate(s->fd, 0) < 0)
		return -errno;

	r = runmap_init(&s->slots, arena, s->fixed ? round_up(nslots, WORD) : GROW_MAX);
	if (r < 0) {
		log_line(s->log, UP_LOG_ERROR, "swap: no address space for its map");
		return r;
	}
	if (src->kept && !s->fixed)
		nslots = kept_slots(s);
	if (s->fixed || src->kept) {
		r = src->device || src->kept ? 0 : file_size(s, 0, nslots);
		if (r == 0)
			r = slots_add(s, nslots);
		if (r < 0) {
			log_line(s->log, UP_LOG_ERROR, "swap: %s: %zu KiB: %s", src->name,
				 nslots << (PAGE_SHIFT - 10), strerror(-r));
			runmap_fini(&s->slots);
			return r;
		}
	}
	return 0;
}

/* Leave the file empty, and unlocked even if a child has inherited the descriptor. */
static void
area_drop(struct swap_area *s)
{
	if (s->truncate && ftruncate(s->fd, 0) < 0)
		log_line(s->log, UP_LOG_WARNING, "swap: can not empty the file: %s",
			 strerror(errno));
	if (s->locked)
		(void)flock(s->fd, LOCK_UN);
	close(s->fd);
	s->fd = -1;
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->grow_lock);
}

static int
area_open(struct swap_area *s, struct arena *arena, const char *path, int fd, uint64_t size,
	  uint64_t mask, bool kept, unsigned tries, const struct logger *log)
{
	char number[sizeof "descriptor " + 11];
	struct source src = { .name = path, .kept = kept, .tries = tries };
	struct stat st;
	int r;

	*s = (struct swap_area){ .fd = -1, .log = log };
	if (path != NULL) {
		r = open_path(&src, log);
	} else if (fd > 0) {
		snprintf(number, sizeof number, "descriptor %d", fd);
		src.name = number;
		r = open_descriptor(&src, fd, log);
	} else {
		r = open_temporary(&src, log);
	}
	if (r < 0)
		return r;
	s->fd = r;
	pthread_mutex_init(&s->grow_lock, NULL);
	pthread_mutex_init(&s->lock, NULL);

	/* The name may lead elsewhere than it did a moment ago. */
	r = fstat(s->fd, &st) < 0 ? -errno : source_type(&src, st.st_mode, log);
	if (r == 0)
		r = area_take(s, arena, &src, size, mask);
	if (r < 0) {
		/* EBUSY: somebody has found it and taken it. */
		if (src.created && r != -EBUSY)
			(void)unlink(src.name);
		area_drop(s);
		return r;
	}
	area_report(s, &src, mask);
	return 0;
}

int
swap_area_open(struct swap_area *s, struct arena *arena, const char *path, int fd, uint64_t size,
	       uint64_t mask, const struct logger *log)
{
	return area_open(s, arena, path, fd, size, mask, false, 0, log);
}

/*
 * The io_urings of a process that was killed outlive it for a moment, until what was under way has ended, and have the file open until then.  So to have it
 * for ourselves is also to know that nothing of that is written any more, here or to a file of an object.
 */
int
swap_area_open_shared(struct swap_area *s, struct arena *arena, const char *path, int fd,
		      uint64_t size, uint64_t mask, bool kept, const struct logger *log)
{
	const int r = area_open(s, arena, path, fd, size, mask, kept,
				kept ? KEPT_TRIES : SHARED_TRIES, log);

	s->shared = r == 0;
	return r;
}

bool
swap_area_nameless(const struct swap_area *s)
{
	struct stat st;

	return fstat(s->fd, &st) == 0 && st.st_nlink == 0;
}

void
swap_area_close(struct swap_area *s)
{
	if (s->fd < 0)
		return;
	swap_area_check(s);
	runmap_fini(&s->slots);
	area_drop(s);
}

/* --- slots --- */

size_t
swap_alloc(struct swap_area *s, size_t want, slot_t *first)
{
	size_t i = 0, n;

	assert(want >= 1 && want <= CLUSTER_MAX);
	pthread_mutex_lock(&s->lock);
	n = runmap_take(&s->slots, want, &i);
	s->nused += n;
	pthread_mutex_unlock(&s->lock);
	if (n > 0)
		*first = (slot_t)i;
	return n;
}

void
swap_free(struct swap_area *s, slot_t first, size_t n)
{
	pthread_mutex_lock(&s->lock);
	assert((size_t)first + n <= s->nslots && n <= s->nused);
	runmap_give(&s->slots, first, n);
	s->nused -= n;
	pthread_mutex_unlock(&s->lock);
}

bool
swap_claim(struct swap_area *s, slot_t slot)
{
	bool was;

	pthread_mutex_lock(&s->lock);
	was = slot < s->nslots && runmap_claim(&s->slots, slot);
	s->nused += was;
	pthread_mutex_unlock(&s->lock);
	return was;
}

void
swap_retire(struct swap_area *s, slot_t slot)
{
	pthread_mutex_lock(&s->lock);
	assert(slot < s->nslots && s->nused > 0 && !runmap_is_free(&s->slots, slot));
	(void)slot; /* it stays taken: nothing in the map changes */
	s->nused--;
	s->nbad++;
	pthread_mutex_unlock(&s->lock);
}

void
swap_area_check(struct swap_area *s)
{
	pthread_mutex_lock(&s->lock);
	runmap_check(&s->slots);
	assert(s->slots.n == round_up(s->nslots, WORD));
	assert(runmap_nfree(&s->slots) == s->nslots - s->nused - s->nbad);
	pthread_mutex_unlock(&s->lock);
}

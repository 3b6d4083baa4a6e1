/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * encrypted_store.c: memory whose file holds nothing but ciphertext.
 *
 *	encrypted_store FILE [--size 16M] [--memory 4M]
 *
 * A store is mapped shared and used as plain memory.  A page is encrypted with AES-256-GCM when it is thrown out
 * or synced, with a fresh nonce each time and its number as associated data, and authenticated when it is touched again.  The
 * program shows it: fill, sync, change at random, read back; no plaintext in the file; opened again with the same key everything is
 * there; one flipped bit is SIGBUS on that page, two exchanged pages are on both, and all the others are well; with another key nothing can be read.
 *
 *	ciphertext of page 0 | ... of page n - 1 | table: nonce and tag of page 0 | ... of page n - 1
 *
 * What this does not do: a crash between the two writes of a page loses it (a journal would not), and who can write to the
 * file can put an old state of a page back together with its tag (a tree of hashes would tell).  Pages written under one key
 * should stay well below 2^32, since nonces are random.  FILE is left behind; the key dies with the program.
 *
 * Exit status: 0 all as it should be, 1 not so or the pager could not be started, 2 bad usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd_pager.h>
#include <unistd.h>

#define PAGE ((size_t)UP_PAGE_SIZE)
#define NONCE 12
#define TAG 16
#define SEAL (NONCE + TAG)
#define MARK "what nobody else may read: page "

static const char usage[] = "usage: encrypted_store FILE [--size BYTES] [--memory BYTES]\n"
			    "  FILE      is created, or overwritten\n"
			    "  --size    of the store (16M)\n"
			    "  --memory  that may be used (4M)\n"
			    "  BYTES may end in K, M or G.\n";

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs("encrypted_store: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static void
check(const char *what, int r)
{
	if (r < 0)
		die("%s: %s", what, strerror(-r));
}

/* --- one page --- */

struct store {
	int fd;
	size_t npages;
	unsigned char key[32];
	EVP_CIPHER_CTX *cipher; /* the worker's, once that runs; like `sealed` */
	unsigned char sealed[UP_PAGE_SIZE];
	int queue[2]; /* a pipe of jobs */
	pthread_t thread;
	struct up_runtime *rt;
	char *memory; /* the store as the program sees it */
};

static int
transfer(const struct store *s, bool write, void *buffer, size_t n, uint64_t at)
{
	for (size_t done = 0; done < n;) {
		char *p = (char *)buffer + done;
		const off_t offset = (off_t)(at + done);
		const ssize_t r = write ? pwrite(s->fd, p, n - done, offset)
					: pread(s->fd, p, n - done, offset);

		if (r < 0 && errno != EINTR)
			return -errno;
		if (r == 0)
			return -EIO;
		if (r > 0)
			done += (size_t)r;
	}
	return 0;
}

static uint64_t
seal_at(const struct store *s, uint64_t page)
{
	return s->npages * PAGE + page * SEAL;
}

/* Encrypt and write one page.  0 or -errno. */
static int
put_page(struct store *s, uint64_t page, const void *from)
{
	unsigned char seal[SEAL];
	int n, r;

	if (RAND_bytes(seal, NONCE) != 1 ||
	    !EVP_EncryptInit_ex(s->cipher, EVP_aes_256_gcm(), NULL, s->key, seal) ||
	    !EVP_EncryptUpdate(s->cipher, NULL, &n, (const unsigned char *)&page, sizeof page) ||
	    !EVP_EncryptUpdate(s->cipher, s->sealed, &n, from, (int)PAGE) || n != (int)PAGE ||
	    !EVP_EncryptFinal_ex(s->cipher, s->sealed + n, &n) ||
	    !EVP_CIPHER_CTX_ctrl(s->cipher, EVP_CTRL_GCM_GET_TAG, TAG, seal + NONCE))
		return -EIO;
	r = transfer(s, true, s->sealed, PAGE, page * PAGE);
	return r < 0 ? r : transfer(s, true, seal, SEAL, seal_at(s, page));
}

/* Read, decrypt and authenticate one page.  -EBADMSG: it is not what was written there. */
static int
get_page(struct store *s, uint64_t page, void *to)
{
	unsigned char seal[SEAL];
	int n, r;

	r = transfer(s, false, s->sealed, PAGE, page * PAGE);
	if (r == 0)
		r = transfer(s, false, seal, SEAL, seal_at(s, page));
	if (r < 0)
		return r;
	if (!EVP_DecryptInit_ex(s->cipher, EVP_aes_256_gcm(), NULL, s->key, seal) ||
	    !EVP_DecryptUpdate(s->cipher, NULL, &n, (const unsigned char *)&page, sizeof page) ||
	    !EVP_DecryptUpdate(s->cipher, to, &n, s->sealed, (int)PAGE) || n != (int)PAGE ||
	    !EVP_CIPHER_CTX_ctrl(s->cipher, EVP_CTRL_GCM_SET_TAG, TAG, seal + NONCE))
		return -EIO;
	return EVP_DecryptFinal_ex(s->cipher, (unsigned char *)to + PAGE, &n) == 1 ? 0 : -EBADMSG;
}

/* --- the pager --- */

struct job {
	struct up_request *req;
	uint64_t out;
};

static void *
worker(void *arg)
{
	struct store *s = arg;
	struct job j;

	/* What is this small goes through a pipe in one piece. */
	while (read(s->queue[0], &j, sizeof j) == sizeof j) {
		const uint64_t first = up_request_offset(j.req) / PAGE;
		const size_t n = up_request_length(j.req) / PAGE;
		char *buffer = up_request_buffer(j.req);
		int r = 0;

		for (size_t i = 0; r == 0 && i < n; i++)
			r = j.out ? put_page(s, first + i, buffer + i * PAGE)
				  : get_page(s, first + i, buffer + i * PAGE);
		up_request_complete(j.req, r);
	}
	return NULL;
}

/* On the library's thread: it only hands the request on.  The pipe has room for more than there can be under way. */
static int
hand_over(struct store *s, struct up_request *req, bool out)
{
	const struct job j = { .req = req, .out = out };

	return write(s->queue[1], &j, sizeof j) == sizeof j ? 0 : -EIO;
}

static int
page_in(void *ctx, struct up_request *req)
{
	return hand_over(ctx, req, false);
}

static int
page_out(void *ctx, struct up_request *req)
{
	return hand_over(ctx, req, true);
}

static const struct up_pager_ops ops = { .size = sizeof ops,
					 .page_in = page_in,
					 .page_out = page_out };

static bool quiet; /* lost pages are expected */

static void
complain(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING && !quiet)
		fprintf(stderr, "uffd-pager: %s\n", line);
}

static void
attach(struct store *s, size_t memory)
{
	const struct up_config cfg = { .memory_limit = memory, .log = complain };
	struct up_object *obj;
	void *p;

	s->cipher = EVP_CIPHER_CTX_new();
	if (s->cipher == NULL || pipe2(s->queue, O_CLOEXEC) < 0)
		die("no cipher context or no pipe");
	check("pthread_create", -pthread_create(&s->thread, NULL, worker, s));
	check("up_runtime_create", up_runtime_create(&s->rt, &cfg));
	check("up_object_create_custom",
	      up_object_create_custom(s->rt, s->npages * PAGE, &ops, s, &obj));
	check("up_map",
	      up_map(s->rt, NULL, s->npages * PAGE, PROT_READ | PROT_WRITE, UP_SHARED, obj, 0, &p));
	s->memory = p;
}

static void
detach(struct store *s)
{
	/* What up_sync() has not written is written by this at the latest; but only up_sync() can say that it failed. */
	check("up_sync", up_sync(s->rt, s->memory, s->npages * PAGE, 0));
	if (fsync(s->fd) < 0)
		die("fsync: %s", strerror(errno));
	up_runtime_destroy(s->rt);
	close(s->queue[1]);
	pthread_join(s->thread, NULL);
	close(s->queue[0]);
	EVP_CIPHER_CTX_free(s->cipher);
}

/* Every page exists from the beginning, sealed: a page without a seal would be one that anybody can make zeros. */
static void
create(struct store *s)
{
	static const char zeros[UP_PAGE_SIZE];

	s->cipher = EVP_CIPHER_CTX_new();
	if (s->cipher == NULL || RAND_bytes(s->key, sizeof s->key) != 1)
		die("no cipher context or no random bytes");
	for (uint64_t i = 0; i < s->npages; i++)
		check("writing the file", put_page(s, i, zeros));
	EVP_CIPHER_CTX_free(s->cipher);
}

/* --- what is done with it --- */

static void
write_page(struct store *s, size_t page, unsigned version)
{
	char *p = s->memory + page * PAGE;

	memset(p, (int)(page + version), PAGE);
	snprintf(p, PAGE, MARK "%zu, version %u", page, version);
}

static bool
is_page(const char *p, size_t page, unsigned version)
{
	char want[UP_PAGE_SIZE];

	memset(want, (int)(page + version), PAGE);
	snprintf(want, PAGE, MARK "%zu, version %u", page, version);
	return memcmp(p, want, PAGE) == 0;
}

static sigjmp_buf lost;
static const char *lost_low, *lost_high; /* only there SIGBUS is a page that can not be had */

static void
on_sigbus(int sig, siginfo_t *info, void *context)
{
	const char *at = info->si_addr;

	(void)context;
	if (at >= lost_low && at < lost_high)
		siglongjmp(lost, 1);
	signal(sig, SIG_DFL);
}

/* 0 right, 1 SIGBUS, 2 wrong: the last must never be. */
static int
look(const struct store *s, size_t page, unsigned version)
{
	if (sigsetjmp(lost, 1))
		return 1;
	return is_page(s->memory + page * PAGE, page, version) ? 0 : 2;
}

/* The pages that can not be had; a wrong one ends the program. */
static size_t
count_lost(const struct store *s, const unsigned *version, size_t *last)
{
	volatile size_t n = 0;

	lost_low = s->memory;
	lost_high = s->memory + s->npages * PAGE;
	for (volatile size_t i = 0; i < s->npages; i++) {
		const int how = look(s, i, version[i]);

		if (how == 2)
			die("page %zu is wrong, and nobody noticed", i);
		if (how == 1) {
			n++;
			*last = i;
		}
	}
	return n;
}

static size_t
count_plain(const struct store *s)
{
	static char buffer[1 << 16];
	const size_t keep = strlen(MARK), size = s->npages * (PAGE + SEAL);
	size_t n = 0;

	/* The pieces overlap, so that a mark across two of them is found. */
	for (size_t at = 0; at + keep < size; at += sizeof buffer - keep) {
		const size_t part = size - at < sizeof buffer ? size - at : sizeof buffer;

		check("reading the file", transfer(s, false, buffer, part, at));
		n += memmem(buffer, part, MARK, keep) != NULL;
	}
	return n;
}

static bool ok = true;

static void __attribute__((format(printf, 2, 3))) tell(bool good, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	puts(good ? "" : "  WRONG");
	ok &= good;
}

static void
demonstrate(struct store *s, size_t memory)
{
	unsigned *version = calloc(s->npages, sizeof *version);
	const size_t victim = s->npages / 2, other = s->npages / 3;
	unsigned char a[UP_PAGE_SIZE], b[UP_PAGE_SIZE], sa[SEAL], sb[SEAL];
	size_t n, last = 0;
	uint64_t state = 1;
	struct up_stats st;

	if (version == NULL)
		die("out of memory");
	create(s);
	attach(s, memory);
	for (size_t i = 0; i < s->npages; i++)
		write_page(s, i, version[i] = 1);
	check("up_sync", up_sync(s->rt, s->memory, s->npages * PAGE, 0));
	for (size_t i = 0; i < s->npages; i++) {
		state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
		const size_t page = (state >> 20) % s->npages;

		write_page(s, page, ++version[page]);
	}
	n = count_lost(s, version, &last);
	check("up_stats_get", up_stats_get(s->rt, &st, sizeof st));
	tell(n == 0, "%zu pages written, changed and read back, %zu lost", s->npages, n);
	tell(st.used_max <= memory && st.swap_write_bytes == 0,
	     "never more than %.1f MiB in memory, %" PRIu64 " bytes in the swap",
	     (double)st.used_max / (1 << 20), st.swap_write_bytes);
	detach(s);
	n = count_plain(s);
	tell(n == 0, "%zu pieces of plaintext in the file", n);

	attach(s, memory);
	n = count_lost(s, version, &last);
	tell(n == 0, "opened again with the same key: %zu pages lost", n);
	detach(s);

	quiet = true;
	check("reading the file", transfer(s, false, a, 1, victim * PAGE + 77));
	a[0] ^= 4;
	check("writing the file", transfer(s, true, a, 1, victim * PAGE + 77));
	attach(s, memory);
	n = count_lost(s, version, &last);
	tell(n == 1 && last == victim, "one bit of page %zu flipped: %zu pages lost, page %zu",
	     victim, n, last);
	/* The page is empty as far as the program is concerned: discard it, and it is read again, once it is well. */
	a[0] ^= 4;
	check("writing the file", transfer(s, true, a, 1, victim * PAGE + 77));
	check("up_advise", up_advise(s->rt, s->memory + victim * PAGE, PAGE, UP_ADVICE_DONTNEED));
	n = count_lost(s, version, &last);
	tell(n == 0, "the bit put back and the page discarded: %zu pages lost", n);
	detach(s);

	check("reading the file", transfer(s, false, a, PAGE, victim * PAGE));
	check("reading the file", transfer(s, false, b, PAGE, other * PAGE));
	check("reading the file", transfer(s, false, sa, SEAL, seal_at(s, victim)));
	check("reading the file", transfer(s, false, sb, SEAL, seal_at(s, other)));
	check("writing the file", transfer(s, true, b, PAGE, victim * PAGE));
	check("writing the file", transfer(s, true, a, PAGE, other * PAGE));
	check("writing the file", transfer(s, true, sb, SEAL, seal_at(s, victim)));
	check("writing the file", transfer(s, true, sa, SEAL, seal_at(s, other)));
	attach(s, memory);
	n = count_lost(s, version, &last);
	tell(n == 2, "two pages exchanged, with their tags: %zu pages lost", n);
	detach(s);

	s->key[0] ^= 1;
	attach(s, memory);
	n = count_lost(s, version, &last);
	tell(n == s->npages, "another key: %zu of %zu pages lost", n, s->npages);
	detach(s);
	free(version);
}

static size_t
number(const char *option, const char *s, size_t least)
{
	static const char units[] = "KMG";
	char *end = NULL;
	unsigned long long n = s != NULL && *s >= '0' && *s <= '9' ? strtoull(s, &end, 10) : 0;

	if (end != NULL && *end != '\0') {
		const char *unit = strchr(units, *end++);

		n = unit != NULL && *end == '\0' && n < 1u << 20 ? n << 10 * (unit - units + 1) : 0;
	}
	if (n < least || n > 1ull << 40) {
		fprintf(stderr, "encrypted_store: %s is a number from %zu on; see --help\n", option,
			least);
		exit(2);
	}
	return n;
}

int
main(int argc, char **argv)
{
	static struct store s = { .npages = ((size_t)16 << 20) / PAGE };
	const struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	size_t memory = (size_t)4 << 20;
	const char *file = NULL;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--help") == 0) {
			fputs(usage, stdout);
			return 0;
		} else if (strcmp(argv[i], "--size") == 0) {
			s.npages = number("--size", argv[i + 1], 16 * PAGE) / PAGE;
			i++;
		} else if (strcmp(argv[i], "--memory") == 0) {
			memory = number("--memory", argv[i + 1], UP_MEMORY_LIMIT_MIN);
			i++;
		} else if (argv[i][0] != '-' && file == NULL) {
			file = argv[i];
		} else {
			fprintf(stderr, "encrypted_store: unknown argument %s; see --help\n",
				argv[i]);
			return 2;
		}
	}
	if (file == NULL) {
		fputs(usage, stderr);
		fputs("see --help\n", stderr);
		return 2;
	}
	s.fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (s.fd < 0)
		die("%s: %s", file, strerror(errno));
	sigaction(SIGBUS, &action, NULL);
	demonstrate(&s, memory);
	close(s.fd);
	puts(ok ? "PASS" : "FAIL");
	return !ok;
}

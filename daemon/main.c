/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * main.c: uffd-pagerd, from its flags to its end.
 *
 *	flags, file ---> directories, lock, sockets ---> the runtime ---> the loop ---> all of it back
 *
 * The loop (libuv) has signals, sockets and timers; faults are served by the runtime's own threads, and by those of sessions.  The
 * sockets are there before the runtime is: who connects meanwhile waits in their queues instead of being refused.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "budget.h"
#include "candidate.h"
#include "control.h"
#include "daemon.h"
#include "guardian.h"
#include "heirs.h"
#include "http.h"
#include "listen.h"
#include "log.h"
#include "notify.h"
#include "pulse.h"
#include "quotas.h"
#include "sessions.h"
#include "upgrade.h"
#include "verb.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

#define END_MS 30000	    /* from the last client's end, or drain_timeout, to ours: at most */
#define DRAINING "draining" /* what the guardian keeps, so that a successor of ours drains on */

enum { OPT_CONFIG = 'c', OPT_CHECK = 256, OPT_PRINT };

/* A flag of the command line, kept: a reload reads the file, and puts them over it again. */
struct flag {
	unsigned key;
	const char *text;
};

static struct {
	const char *file; /* NULL: CONFIG_FILE, if it is there */
	bool check, print;
	struct flag flag[256];
	unsigned nflags;
} arg;

static struct daemon the;
static int lock_fd = -1;
static char lock_path[PATH_MAX];
static uv_signal_t on_term, on_int, on_hup;
static uv_timer_t second, drain;
static bool swap_is_ours;
static struct config_value memory_before; /* a reload has changed it, and it is on its way */

/* ---- configuration ---- */

const char *argp_program_version = "uffd-pagerd " VERSION;
const char *argp_program_bug_address = NULL;

static error_t
parse_option(int key, char *text, struct argp_state *state)
{
	struct config probe;
	char why[240];

	switch (key) {
	case OPT_CONFIG:
		arg.file = text;
		return 0;
	case OPT_CHECK:
		arg.check = true;
		return 0;
	case OPT_PRINT:
		arg.print = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "%s: there is no such verb; there are 'firecracker' and 'criu'",
			   text);
		return 0;
	default:
		break;
	}
	if (key < CONFIG_FLAG || key >= CONFIG_FLAG + CONFIG_ALL_KEYS)
		return ARGP_ERR_UNKNOWN;
	if (arg.nflags == sizeof(arg.flag) / sizeof(arg.flag[0]))
		argp_error(state, "more than %u flags", arg.nflags);
	config_init(&probe);
	if (config_flag(&probe, (unsigned)key - CONFIG_FLAG, text, why, sizeof(why)) < 0)
		argp_error(state, "--%s: %s", config_flag_name((unsigned)key - CONFIG_FLAG), why);
	config_finish(&probe);
	arg.flag[arg.nflags++] = (struct flag){ (unsigned)key - CONFIG_FLAG, text };
	return 0;
}

/* The table of keys as argp wants it. */
static const struct argp_option *
options(void)
{
	static struct argp_option o[CONFIG_ALL_KEYS + 16];
	static char headings[8][48];
	const char *section = "";
	unsigned n = 0, group = 0;

	o[n++] = (struct argp_option){ "config",
				       OPT_CONFIG,
				       "FILE",
				       0,
				       "Read FILE (default: " CONFIG_FILE ", if it is there)",
				       0 };
	o[n++] = (struct argp_option){ "check-config",
				       OPT_CHECK,
				       NULL,
				       0,
				       "Say what is wrong with the configuration, and end",
				       0 };
	o[n++] = (struct argp_option){
		"print-config", OPT_PRINT, NULL, 0, "Print it, complete, and end", 0
	};
	for (unsigned k = 0; k < CONFIG_ALL_KEYS; k++) {
		if (strcmp(section, config_section(k)) != 0) {
			section = config_section(k);
			snprintf(headings[group], sizeof(headings[0]),
				 "As in [%s%s] of the file:", section,
				 k >= CONFIG_KEYS ? " NAME" : "");
			o[n++] = (struct argp_option){ NULL,	      0, NULL, 0, headings[group],
						       (int)group + 1 };
			group++;
		}
		o[n++] = (struct argp_option){ config_flag_name(k), CONFIG_FLAG + (int)k,
					       config_flag_arg(k),  0,
					       config_key_help(k),  (int)group };
	}
	return o;
}

static const struct {
	const char *type;
	int socktype;
	accept_fn *accept;
} doors[] = {
	{ "native", SOCK_SEQPACKET, native_accept },
	{ "firecracker", SOCK_STREAM, firecracker_accept },
	{ "criu", SOCK_STREAM, criu_accept },
	{ "handoff", SOCK_STREAM, handoff_accept },
	{ "test", SOCK_STREAM, test_accept },
};

static accept_fn *
door_of(const struct config_named *n, const char **type, int *socktype)
{
	for (size_t i = 0; i < sizeof(doors) / sizeof(doors[0]); i++)
		if (strcmp(doors[i].type, config_named_value(n, KEY_LISTEN_TYPE)->s) == 0) {
			/* The table's word, not the configuration's, which a reload replaces. */
			*type = doors[i].type;
			*socktype = doors[i].socktype;
			return doors[i].accept;
		}
	return NULL;
}

/* Protocols that this build does not speak.  The number of errors. */
static int
check_doors(const struct config *c, const char *where, FILE *err)
{
	const char *type = "";
	int errors = 0, socktype;

	for (const struct config_named *n = c->named; n != NULL; n = n->next) {
		if (strcmp(n->kind, "listen") != 0 || door_of(n, &type, &socktype) != NULL)
			continue;
		config_complain(err, where, config_named_value(n, KEY_LISTEN_TYPE)->line,
				"[listen %s]: this build does not speak the %s protocol", n->name,
				type);
		errors++;
	}
	return errors;
}

/* Defaults, file, flags.  The number of errors, told to `err`. */
static int
load(struct config *c, FILE *err)
{
	const char *const file = arg.file != NULL ? arg.file : CONFIG_FILE;
	char why[240];
	int errors = 0;

	config_init(c);
	if (arg.file != NULL || access(file, F_OK) == 0)
		errors = config_read(c, file, err);
	for (unsigned i = 0; i < arg.nflags; i++)
		/* A user may have gone since the start. */
		if (config_flag(c, arg.flag[i].key, arg.flag[i].text, why, sizeof(why)) < 0) {
			fprintf(err, "--%s: %s\n", config_flag_name(arg.flag[i].key), why);
			errors = errors != 0 ? errors : 1;
		}
	if (errors == 0)
		errors = config_check(c, file, err) + check_doors(c, file, err) +
			 quotas_check(c, file, err);
	return errors;
}

/* ---- places ---- */

static int
make_dirs(const char *path, mode_t mode)
{
	char part[PATH_MAX];
	int r;

	snprintf(part, sizeof(part), "%s", path);
	for (char *p = part + 1;; p++) {
		const char ch = *p;

		if (ch != '/' && ch != '\0')
			continue;
		*p = '\0';
		if (mkdir(part, ch == '\0' ? mode : 0755) < 0 && errno != EEXIST) {
			r = -errno;
			log_error("%s: %s", part, strerror(-r));
			return r;
		}
		if (ch == '\0')
			return 0;
		*p = ch;
	}
}

static const char *
non_empty(const char *name)
{
	const char *const value = getenv(name);

	return value != NULL && value[0] == '/' ? value : NULL;
}

static int
places(struct daemon *d)
{
	const char *s = config_s(&d->cfg, KEY_RUN_DIR);
	int r;

	/* systemd's may be several, with colons between: the first is meant. */
	if (s != NULL)
		snprintf(d->run_dir, sizeof(d->run_dir), "%s", s);
	else if ((s = non_empty("RUNTIME_DIRECTORY")) != NULL)
		snprintf(d->run_dir, sizeof(d->run_dir), "%.*s", (int)strcspn(s, ":"), s);
	else if ((s = non_empty("XDG_RUNTIME_DIR")) != NULL)
		snprintf(d->run_dir, sizeof(d->run_dir), "%s/uffd-pagerd", s);
	else
		snprintf(d->run_dir, sizeof(d->run_dir), "/run/uffd-pagerd");

	s = config_s(&d->cfg, KEY_STATE_DIR);
	if (s != NULL)
		snprintf(d->state_dir, sizeof(d->state_dir), "%s", s);
	else if ((s = non_empty("STATE_DIRECTORY")) != NULL)
		snprintf(d->state_dir, sizeof(d->state_dir), "%.*s", (int)strcspn(s, ":"), s);
	else if (geteuid() == 0)
		snprintf(d->state_dir, sizeof(d->state_dir), "/var/lib/uffd-pagerd");
	else if ((s = non_empty("XDG_STATE_HOME")) != NULL)
		snprintf(d->state_dir, sizeof(d->state_dir), "%s/uffd-pagerd", s);
	else if ((s = non_empty("HOME")) != NULL)
		snprintf(d->state_dir, sizeof(d->state_dir), "%s/.local/state/uffd-pagerd", s);
	else {
		log_error(
			"there is neither $STATE_DIRECTORY nor $HOME: say where the swap is to be, with state_dir");
		return -ENOENT;
	}
	r = make_dirs(d->run_dir, 0755);
	if (r == 0)
		r = make_dirs(d->state_dir, 0700);
	s = config_s(&d->cfg, KEY_SWAP);
	if (s != NULL)
		snprintf(d->swap, sizeof(d->swap), "%s", s);
	else
		snprintf(d->swap, sizeof(d->swap), "%.4080s/swap", d->state_dir);
	swap_is_ours = s == NULL;
	return r;
}

static int
socket_path(const struct daemon *d, const char *set, const char *name, char *path, size_t len)
{
	const int n = set != NULL && set[0] == '/'
			      ? snprintf(path, len, "%s", set)
			      : snprintf(path, len, "%s/%s", d->run_dir, set != NULL ? set : name);

	if ((size_t)n < len)
		return 0;
	log_error("%s: longer than a socket's path can be, %zu bytes",
		  set != NULL ? set : d->run_dir, len - 1);
	return -ENAMETOOLONG;
}

/* ---- sockets ---- */

/* Until the native protocol is built in: so that the socket is there, and who connects is told in the log. */
static void
nobody_home(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	(void)d;
	log_warning("%s: process %d, user %u: refused: this build does not speak the %s protocol",
		    l->path, (int)peer->pid, (unsigned)peer->uid, l->type);
	close(fd);
}

static int
add_native(struct daemon *d)
{
	struct listener l = { .name = "native",
			      .type = "native",
			      .socktype = SOCK_SEQPACKET,
			      .mode = (mode_t)config_n(&d->cfg, KEY_SOCKET_MODE),
			      .group_of_file = config_s(&d->cfg, KEY_SOCKET_GROUP),
			      .accept = native_accept != NULL ? native_accept : nobody_home,
			      .refuse = native_refuse };
	const int r =
		socket_path(d, config_s(&d->cfg, KEY_SOCKET), "pager.sock", l.path, sizeof(l.path));

	if (r < 0)
		return r;
	snprintf(lock_path, sizeof(lock_path), "%s", l.path);
	lock_fd = listen_lock(l.path);
	return lock_fd < 0 ? lock_fd : listen_add(d, &l);
}

static int
add_control(struct daemon *d)
{
	const char *const group = config_s(&d->cfg, KEY_CONTROL_GROUP);
	const mode_t mode = (mode_t)config_n(&d->cfg, KEY_CONTROL_MODE);
	struct listener l = { .name = "control",
			      .type = "control",
			      .socktype = SOCK_STREAM,
			      .mode = mode != 0	      ? mode
				      : group != NULL ? 0660
						      : 0600,
			      .group_of_file = group,
			      .accept = control_accept,
			      .refuse = control_refuse };
	const int r = socket_path(d, config_s(&d->cfg, KEY_CONTROL), "control.sock", l.path,
				  sizeof(l.path));

	return r < 0 ? r : listen_add(d, &l);
}

/* What a [listen NAME] wants.  0, or -errno with a log line. */
static int
describe_named(const struct daemon *d, const struct config_named *n, struct listener *l)
{
	const char *const source = config_named_value(n, KEY_LISTEN_SOURCE)->s,
			  *const group = config_named_value(n, KEY_LISTEN_GROUP)->s;

	*l = (struct listener){ .named = true,
				.mode = (mode_t)config_named_value(n, KEY_LISTEN_MODE)->n };
	/* It is there, as load() has looked. */
	l->accept = door_of(n, &l->type, &l->socktype);
	l->refuse = l->accept == native_accept ? native_refuse : NULL;
	snprintf(l->name, sizeof(l->name), "%s", n->name);
	snprintf(l->source, sizeof(l->source), "%s", source != NULL ? source : "");
	snprintf(l->group, sizeof(l->group), "%s", group != NULL ? group : "");
	return socket_path(d, config_named_value(n, KEY_LISTEN_PATH)->s, n->name, l->path,
			   sizeof(l->path));
}

static int
add_named(struct daemon *d, const struct config_named *n)
{
	struct listener l;
	const int r = describe_named(d, n, &l);

	return r < 0 ? r : listen_add(d, &l);
}

static struct listener *
find_named(const char *name)
{
	struct listener *l = listen_first();

	while (l != NULL && (!l->named || strcmp(l->name, name) != 0))
		l = l->next;
	return l;
}

/*
 * Open what is new, close what is no more, and change what has changed.  What can not be is logged; what was there for it stays, and the next reload tries
 * again.
 */
static void
reload_named(struct daemon *d)
{
	/* First: others may have their paths now. */
	for (struct listener *l = listen_first(), *next; l != NULL; l = next) {
		next = l->next;
		if (!l->named || config_find(&d->cfg, "listen", l->name) != NULL)
			continue;
		log_info("reload: [listen %s] is closed; who came there stays", l->name);
		listen_remove(l);
	}
	for (const struct config_named *n = d->cfg.named; n != NULL; n = n->next) {
		struct listener like, *l;

		if (strcmp(n->kind, "listen") != 0)
			continue;
		l = find_named(n->name);
		if (describe_named(d, n, &like) < 0 ||
		    (l == NULL ? listen_add(d, &like) : listen_change(l, &like)) < 0)
			log_error("reload: [listen %s] is %s", n->name,
				  find_named(n->name) != NULL ? "as it was" : "not there");
	}
	/* Whoever is accepted from here on is not forgotten. */
	heirs_listening();
}

static int
open_sockets(struct daemon *d)
{
	int r = add_native(d);

	if (r == 0)
		r = add_control(d);
	for (const struct config_named *n = d->cfg.named; r == 0 && n != NULL; n = n->next)
		if (strcmp(n->kind, "listen") == 0)
			r = add_named(d, n);
	if (r == 0)
		r = http_open(d);
	if (r == 0)
		notify_close_rest();
	return r;
}

/* ---- the runtime ---- */

static int
create_runtime(struct daemon *d)
{
	static const enum up_compression how[] = { UP_COMPRESS_NONE, UP_COMPRESS_LZ4,
						   UP_COMPRESS_ZSTD };
	const struct config *const c = &d->cfg;
	struct up_config uc = {
		.memory_limit = budget_wanted(c),
		.memory_limit_max = budget_most(c),
		.swap_path = d->swap,
		.service_threads = (unsigned)config_n(c, KEY_SERVICE_THREADS),
		.fault_timeout_ms = (unsigned)config_n(c, KEY_FAULT_TIMEOUT),
		.compression = how[config_n(c, KEY_COMPRESSION)],
		.flags = config_n(c, KEY_OVERCOMMIT) != 0 ? UP_OVERCOMMIT : 0,
		.log = log_library,
	};
	struct up_stats st = { 0 };
	int r;

	uc.compress_limit = config_bytes(&c->v[KEY_COMPRESS_LIMIT], uc.memory_limit);
	uc.swap_size = config_bytes(&c->v[KEY_SWAP_SIZE], 0) / UP_PAGE_SIZE * UP_PAGE_SIZE;
	r = kept_any() && native_create != NULL ? native_create(d, &uc)
						: up_runtime_create(&d->rt, &uc);
	if (r == 0)
		r = up_stats_get(d->rt, &st, sizeof(st));
	if (r < 0) {
		log_error("the pager can not be started: %s", strerror(-r));
		return r;
	}
	d->budget = st.limit;
	if (native_quotas != NULL)
		native_quotas(d, true);
	return 0;
}

/* ---- running ---- */

static void
stop(void)
{
	if (the.state == STATE_ENDING)
		return;
	the.state = STATE_ENDING;
	uv_stop(&the.loop);
}

static unsigned
children(void)
{
	return native_children != NULL ? native_children(&the) : 0;
}

static void
end_if_nobody_is_left(void)
{
	if (the.state == STATE_DRAINING && session_number() == 0 && children() == 0)
		stop();
}

void
daemon_client_left(struct daemon *d)
{
	(void)d;
	end_if_nobody_is_left();
}

/* For a successor. */
static void
keep_draining(bool on)
{
	int fd;

	if (!kept_any())
		return;
	if (!on) {
		kept_keeper()->drop(NULL, DRAINING);
		return;
	}
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	kept_keeper()->keep(NULL, DRAINING, fd);
	close(fd);
}

int
daemon_drain(struct daemon *d, bool on)
{
	const enum daemon_state state = on ? STATE_DRAINING : STATE_SERVING;

	if (d->end_at != 0 || d->state == STATE_ENDING)
		return -EBUSY;
	if (d->state == state)
		return 0;
	d->state = state;
	keep_draining(on);
	log_info(on ? "draining: no new clients; %u are left" : "serving again; %u clients",
		 session_number());
	notify("STATUS=%s, %u clients", on ? "draining" : "serving", session_number());
	/* It ends in a later turn: who asked is answered first. */
	if (on)
		sessions_leave(0);
	return 0;
}

static void
on_drain_over(uv_timer_t *timer)
{
	(void)timer;
	for (const struct session *s = session_first(); s != NULL; s = s->next)
		log_session(LOG_WARNING, s,
			    "client %u: %s, process %d: still there after drain_timeout", s->id,
			    s->name, (int)s->pid);
	if (children() > 0)
		log_warning("%u forked children of clients are still there after drain_timeout",
			    children());
	stop();
}

/* Drain, until then at most, monotonic_ns(). */
static void
end_by(uint64_t at)
{
	const uint64_t now = monotonic_ns(), ms = at > now ? (at - now + 999999) / 1000000 : 0;

	the.end_at = at;
	the.state = STATE_DRAINING;
	notify("STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64 "\nSTATUS=draining, %u clients",
	       (ms + END_MS) * 1000, session_number());
	uv_update_time(&the.loop);
	uv_timer_start(&drain, on_drain_over, ms, 0);
	if (ms > 0)
		sessions_leave((unsigned)ms);
	end_if_nobody_is_left();
}

static void
remove_files(void)
{
	struct stat st;

	if (swap_is_ours && lstat(the.swap, &st) == 0 && S_ISREG(st.st_mode))
		unlink(the.swap);
}

static void
on_stop_signal(uv_signal_t *handle, int sig)
{
	(void)handle;
	if (the.end_at != 0) {
		log_warning("%s once more: ending at once", strsignal(sig));
		listen_close();
		http_close();
		remove_files();
		listen_unlock(lock_path, lock_fd);
		_exit(EXIT_FAILED);
	}
	log_info("%s: ending: no new clients; %u have %.1f s to leave", strsignal(sig),
		 session_number(), (double)config_n(&the.cfg, KEY_DRAIN_TIMEOUT) / 1000);
	end_by(monotonic_ns() + config_n(&the.cfg, KEY_DRAIN_TIMEOUT) * 1000000);
}

/* What a predecessor that was killed had been told.  => its clients are back */
static void
drain_on(void)
{
	if (kept_any() && kept_ending() != 0) {
		end_by(kept_ending() + config_n(&the.cfg, KEY_DRAIN_TIMEOUT) * 1000000);
		log_info("ending, as the last daemon did: no new clients; %u are left",
			 session_number());
	} else if (the.state == STATE_DRAINING) {
		log_info("draining, as the last daemon did: no new clients; %u are left",
			 session_number());
	}
}

/* The budget that was wanted can not be had: then that is not what is in force, and the next reload tries again. */
static void
on_budget(void *ctx, int r, uint64_t bytes)
{
	(void)ctx;
	(void)bytes;
	if (r < 0)
		the.cfg.v[KEY_MEMORY] = memory_before;
}

/* Move what may change into force, and say what may not. */
static void
adopt(struct config *new)
{
	const struct config_value memory = the.cfg.v[KEY_MEMORY];
	char was[128], is[128];
	int r;

	for (unsigned k = 0; k < CONFIG_KEYS; k++) {
		struct config_value *const a = &the.cfg.v[k], *const b = &new->v[k];
		const struct config_value old = *a;

		if (config_same(k, a, b))
			continue;
		config_text(k, a, was, sizeof(was));
		config_text(k, b, is, sizeof(is));
		if (!config_reloadable(k)) {
			log_warning("reload: %s.%s stays %s: %s takes a restart", config_section(k),
				    config_key_name(k), was, is);
			continue;
		}
		log_info("reload: %s.%s is %s now, was %s", config_section(k), config_key_name(k),
			 is, was);
		*a = *b;
		*b = old;
	}
	struct config_named *const named = the.cfg.named;
	the.cfg.named = new->named;
	new->named = named;
	log_set_level((enum log_level)config_n(&the.cfg, KEY_LOG_LEVEL));
	reload_named(&the);
	sessions_reload();
	pulse_reload();
	if (!config_same(KEY_MEMORY, &the.cfg.v[KEY_MEMORY], &memory)) {
		memory_before = memory;
		r = budget_set(&the, budget_wanted(&the.cfg), on_budget, NULL);
		if (r < 0) {
			log_error("reload: the budget: %s", strerror(-r));
			the.cfg.v[KEY_MEMORY] = memory;
		}
	}
	if (native_quotas != NULL)
		native_quotas(&the, true);
}

static void
on_reload(uv_signal_t *handle, int sig)
{
	struct config new;
	char *text = NULL, *line, *save;
	size_t len;
	FILE *const err = open_memstream(&text, &len);
	int errors;

	(void)handle;
	(void)sig;
	if (err == NULL)
		return;
	notify_reloading();
	errors = load(&new, err);
	fclose(err);
	for (line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save))
		daemon_log(errors != 0 ? LOG_ERROR : LOG_WARNING, "reload: %s", line);
	free(text);
	if (errors == 0)
		adopt(&new);
	config_finish(&new);
	log_info(errors == 0 ? "reload: done" : "reload: refused, nothing has changed");
	notify("READY=1");
}

static void
on_second(uv_timer_t *timer)
{
	static unsigned clients = UINT32_MAX;

	(void)timer;
	sessions_sample();
	control_tick();
	log_tick();
	if (native_audit != NULL)
		native_audit(&the);
	if (clients != session_number()) {
		clients = session_number();
		notify("STATUS=%s, %u clients", the.state == STATE_SERVING ? "serving" : "draining",
		       clients);
	}
	/* A drain that finds nobody ends here, when its asker has its answer; and one that waits for forked children, whose end nobody tells. */
	end_if_nobody_is_left();
}

static void
close_any(uv_handle_t *handle, void *ctx)
{
	(void)ctx;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

static void
signals(void)
{
	signal(SIGPIPE, SIG_IGN);
	uv_signal_init(&the.loop, &on_term);
	uv_signal_init(&the.loop, &on_int);
	uv_signal_init(&the.loop, &on_hup);
	uv_signal_start(&on_term, on_stop_signal, SIGTERM);
	uv_signal_start(&on_int, on_stop_signal, SIGINT);
	uv_signal_start(&on_hup, on_reload, SIGHUP);
}

/* Clients bring descriptors along: as many as may be. */
static void
raise_limits(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &lim);
	}
}

static int
run(void)
{
	struct daemon *const d = &the;
	int r;

	d->since = monotonic_ns();
	raise_limits();
	r = uv_loop_init(&d->loop);
	if (r < 0) {
		log_error("libuv: %s", uv_strerror(r));
		return EXIT_FAILED;
	}
	signals();
	uv_timer_init(&d->loop, &second);
	uv_timer_init(&d->loop, &drain);
	sessions_init(d);
	heirs_begin();
	r = places(d);
	if (r == 0 && kept_any()) {
		const int fd = kept_take(NULL, DRAINING);

		if (fd >= 0) {
			d->state = STATE_DRAINING;
			close(fd);
		}
	}
	if (r == 0)
		r = open_sockets(d);
	/* Some of them have nobody else who could make them wait. */
	if (r == 0)
		heirs_come(&d->loop, NULL, NULL);
	if (r == 0)
		r = create_runtime(d);
	if (r == 0) {
		sessions_sample();
		uv_timer_start(&second, on_second, 1000, 1000);
		log_info("serving: a budget of %" PRIu64 " MiB, swap in %s", d->budget >> 20,
			 d->swap);
		if (kept_any())
			kept_serves();
		pulse_start(d);
		upgrade_open(d);
		heirs_knock(d);
		notify("READY=1\nSTATUS=serving, %u clients", session_number());
		drain_on();
		uv_run(&d->loop, UV_RUN_DEFAULT);
		upgrade_close();
		pulse_stop();
		notify("STOPPING=1");
	}
	/* Whatever the way here: last what was first. */
	sessions_end();
	control_close();
	http_close();
	listen_close();
	uv_walk(&d->loop, close_any, NULL);
	uv_run(&d->loop, UV_RUN_DEFAULT);
	uv_loop_close(&d->loop);
	up_runtime_destroy(d->rt);
	if (d->store != NULL)
		store_destroy(d->store);
	if (d->rt != NULL)
		remove_files();
	listen_unlock(lock_path, lock_fd);
	if (r == 0)
		log_info("ended");
	return r == 0 ? EXIT_OK : EXIT_FAILED;
}

/* One protocol, and nothing else. */
static const struct {
	const char *name;
	int (*main)(int argc, char **argv);
} verbs[] = {
	{ "firecracker", firecracker_main },
	{ "criu", criu_main },
};

/* What a verb serves outlives it as what the daemon does. */
static void
guard_verb(char **argv)
{
	static const struct verb_heirs heirs = { .begin = heirs_begin,
						 .come = heirs_come,
						 .keeper = heirs_keeper,
						 .serves = kept_serves,
						 .take = kept_take,
						 .connection = heirs_connection };

	log_init("auto", LOG_INFO);
	if (kept_open())
		verb_heirs = &heirs;
	else if (guardian_run(argv, VERB_AWAY_MS, false) < 0)
		log_warning("there can be no guardian: %s", strerror(errno));
}

int
main(int argc, char **argv)
{
	const struct argp argp = {
		.options = options(),
		.parser = parse_option,
		.args_doc = "\nfirecracker SOCK MEMFILE\ncriu --images-dir=DIR [--work-dir=DIR]",
		.doc = "Page the memory of many processes within one budget.\v"
		       "Without arguments all of it has a default.  SIGTERM: ask clients to leave, and end when they have, or after drain_timeout; once more: end at once.  "
		       "SIGHUP: read the file again, and take over its limits.  The exit status is 0 if it ended as it was told to, 1 "
		       "if it could not start, 2 for bad usage.",
	};
	const char *adopts = NULL;
	int errors, status;

	if (argc > 1 && strncmp(argv[1], CANDIDATE_OPTION, strlen(CANDIDATE_OPTION)) == 0) {
		adopts = argv[1] + strlen(CANDIDATE_OPTION);
		argv[1] = argv[0];
		argv++;
		argc--;
	}
	for (size_t i = 0; argc > 1 && i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		if (strcmp(argv[1], verbs[i].name) != 0)
			continue;
		if (verbs[i].main != NULL && adopts != NULL)
			candidate_answer(adopts, NULL);
		if (verbs[i].main != NULL) {
			guard_verb(argv);
			return verbs[i].main(argc - 1, argv + 1);
		}
		fprintf(stderr, "uffd-pagerd: this build does not speak the %s protocol\n",
			argv[1]);
		return EXIT_FAILED;
	}
	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	errors = load(&the.cfg, stderr);
	if (adopts != NULL)
		candidate_answer(adopts, errors != 0 ? "its configuration has errors" : NULL);
	if (errors == 0 && arg.print)
		config_print(&the.cfg, stdout);
	else if (errors == 0 && arg.check)
		printf("%s: as it should be\n", arg.file != NULL		 ? arg.file
						: access(CONFIG_FILE, F_OK) == 0 ? CONFIG_FILE
										 : "the defaults");
	status = errors != 0 ? EXIT_FAILED : EXIT_OK;
	if (errors == 0 && !arg.print && !arg.check) {
		log_init(config_s(&the.cfg, KEY_LOG_TO),
			 (enum log_level)config_n(&the.cfg, KEY_LOG_LEVEL));
		/* It comes back from there in a daemon only, or if there can be none. */
		if (!kept_open() && config_n(&the.cfg, KEY_GUARDIAN) != 0 &&
		    guardian_run(argv, config_n(&the.cfg, KEY_AWAY_TIMEOUT), true) < 0)
			log_warning("there can be no guardian: %s", strerror(errno));
		status = run();
	}
	config_finish(&the.cfg);
	return status;
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * top.c: the live view, and the picture of a map, in plain ANSI: no curses, whose library would be the largest part of the program.
 *
 * The screen is the alternate one, drawn from its corner in one write, each line cleared behind its end: nothing flickers, and what was
 * there before comes back at the end, however that comes.
 */
#include "top.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t resized, stopped;
static struct termios before;

/* ---- words ---- */

double
get_number(const json_t *j, const char *path)
{
	char key[32];

	while (j != NULL && *path != '\0') {
		const size_t len = strcspn(path, ".");

		snprintf(key, sizeof(key), "%.*s", (int)len, path);
		j = json_object_get(j, key);
		path += len;
		path += *path == '.';
	}
	return json_number_value(j);
}

const char *
get_text(const json_t *j, const char *key)
{
	const char *const s = json_string_value(json_object_get(j, key));

	return s != NULL ? s : "";
}

static char *
slot(void)
{
	static char ring[8][24];
	static unsigned next;

	return ring[next++ % 8];
}

const char *
bytes_text(double n)
{
	static const char units[] = " KMGTPE";
	char *const s = slot();
	unsigned i = 0;

	while (n >= 999.5 && i < 6) {
		n /= 1024;
		i++;
	}
	if (i == 0)
		snprintf(s, 24, "%.0f", n);
	else
		snprintf(s, 24, n < 9.95 ? "%.1f%c" : "%.0f%c", n, units[i]);
	return s;
}

const char *
time_text(double ns)
{
	char *const s = slot();

	if (ns <= 0)
		snprintf(s, 24, "-");
	else if (ns < 1e6)
		snprintf(s, 24, ns < 99950 ? "%.1fus" : "%.0fus", ns / 1e3);
	else if (ns < 1e9)
		snprintf(s, 24, ns < 99.95e6 ? "%.1fms" : "%.0fms", ns / 1e6);
	else
		snprintf(s, 24, "%.1fs", ns / 1e9);
	return s;
}

static const char *
count_text(double n)
{
	char *const s = slot();

	if (n < 99999.5)
		snprintf(s, 24, "%.0f", n);
	else if (n < 99.95e6)
		snprintf(s, 24, "%.1fM", n / 1e6);
	else
		snprintf(s, 24, "%.0fM", n / 1e6);
	return s;
}

static const char *
age_text(double s)
{
	char *const t = slot();

	if (s < 120)
		snprintf(t, 24, "%.0fs", s);
	else if (s < 7200)
		snprintf(t, 24, "%.0fm", s / 60);
	else if (s < 172800)
		snprintf(t, 24, "%.0fh", s / 3600);
	else
		snprintf(t, 24, "%.0fd", s / 86400);
	return t;
}

/* ---- pictures ---- */

void
look_init(struct look *l, int pipe_columns)
{
	struct winsize ws;
	const char *const term = getenv("TERM");
	const bool tty = isatty(STDOUT_FILENO) != 0;

	setlocale(LC_CTYPE, "");
	l->utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
	l->color = tty && getenv("NO_COLOR") == NULL && term != NULL && strcmp(term, "dumb") != 0;
	l->columns = pipe_columns;
	l->rows = 0;
	if (tty && ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0) {
		l->columns = ws.ws_col;
		l->rows = ws.ws_row;
	}
}

static const char *
ink(const struct look *l, const char *code)
{
	return l->color ? code : "";
}

#define BOLD "\x1b[1m"
#define DIM "\x1b[2m"
#define RED "\x1b[31m"
#define GREEN "\x1b[32m"
#define YELLOW "\x1b[33m"
#define BLUE "\x1b[34m"
#define CYAN "\x1b[36m"
#define REVERSE "\x1b[7m"
#define PLAIN "\x1b[0m"

/* One cell, filled by 0 to 8 eighths from below. */
static const char *
eighths(const struct look *l, unsigned n)
{
	static const char *const block[] = { " ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" };
	static const char *const ascii[] = { " ", ".", ".", ":", "-", "=", "+", "*", "#" };

	return l->utf8 ? block[n] : ascii[n];
}

/* The last `width` numbers of an array; the highest of all is full. */
static void
sparkline(const struct look *l, FILE *out, const json_t *data, size_t width)
{
	const size_t n = json_array_size(data), first = n > width ? n - width : 0;
	double most = 0;

	for (size_t i = first; i < n; i++) {
		const double v = json_number_value(json_array_get(data, i));

		most = v > most ? v : most;
	}
	fprintf(out, "%*s", (int)(width - (n - first)), "");
	for (size_t i = first; i < n; i++) {
		const double v = json_number_value(json_array_get(data, i));

		fputs(eighths(l, most <= 0 || v <= 0 ? 0 : 1 + (unsigned)(v / most * 7)), out);
	}
}

/* How full something is. */
static void
gauge(const struct look *l, FILE *out, double part, double whole, size_t width, const char *color)
{
	const double share = whole > 0 ? part / whole : 0;
	const size_t full = share >= 1 ? width : (size_t)(share * (double)width + 0.5);

	fputc('[', out);
	fputs(ink(l, color), out);
	for (size_t i = 0; i < width; i++)
		fputs(i < full ? (l->utf8 ? "■" : "#") : (l->utf8 ? "·" : "."), out);
	fputs(ink(l, PLAIN), out);
	fputc(']', out);
}

/* What else is known of a range: of those of a client whose memory can be taken back. */
static void
map_about(FILE *out, const json_t *r)
{
	static const struct {
		const char *key, *what;
	} rest[] = { { "staged", "out of reach" },
		     { "compressed", "compressed" },
		     { "swapped", "in swap" },
		     { "lost", "LOST" } };

	for (size_t i = 0; i < sizeof(rest) / sizeof(rest[0]); i++)
		if (get_number(r, rest[i].key) > 0)
			fprintf(out, ", %s %s", bytes_text(get_number(r, rest[i].key)),
				rest[i].what);
	if (json_object_get(r, "object") != NULL) {
		const char *const prot = get_text(r, "prot");

		fprintf(out, "\n%12s %6s  %s %s, object %.0f (%s)", "", "",
			prot[0] != '\0' ? prot : "none",
			json_is_true(json_object_get(r, "shared")) ? "shared" : "private",
			get_number(r, "object"), get_text(r, "pager"));
		if (get_number(r, "offset") > 0)
			fprintf(out, " from %s on", bytes_text(get_number(r, "offset")));
		if (get_number(r, "depth") > 0)
			fprintf(out, " over %.0f", get_number(r, "depth"));
		if (json_is_true(json_object_get(r, "wired")))
			fputs(", wired", out);
	}
	fputc('\n', out);
}

void
map_draw(const struct look *l, FILE *out, const json_t *client)
{
	/* Of light and dark, as a heat map: a bar chart suggests that height is something else. */
	static const char *const shade[] = { "·", "░", "▒", "▓", "█" };
	static const char *const ascii[] = { ".", ":", "+", "*", "#" };
	const json_t *const map = json_object_get(client, "map");
	const json_t *r;
	size_t i;

	fprintf(out, "%s%s%s  %s, process %.0f%s%s  %s of %s in memory, %s in swap\n", ink(l, BOLD),
		get_text(client, "name"), ink(l, PLAIN), get_text(client, "kind"),
		get_number(client, "pid"), get_text(client, "group")[0] != '\0' ? ", group " : "",
		get_text(client, "group"), bytes_text(get_number(client, "resident")),
		bytes_text(get_number(client, "mapped")),
		bytes_text(get_number(client, "swapped")));
	if (json_array_size(map) == 0)
		fputs("  nothing is mapped\n", out);
	json_array_foreach(map, i, r)
	{
		const double start = get_number(r, "start"), length = get_number(r, "length");
		const double page = get_number(r, "page_size");

		fprintf(out, "%12llx %6s%s ", (unsigned long long)start, bytes_text(length),
			page > 4096 ? "H" : " ");
		fputs(ink(l, CYAN), out);
		const char *rest = get_text(r, "rest");

		for (const char *p = get_text(r, "strip"); *p != '\0'; p++) {
			const unsigned d = *p >= '0' && *p <= '9' ? (unsigned)(*p - '0') : 0;

			if (*rest != '\0' && (*rest == '!' || (d == 0 && *rest != '.')))
				fprintf(out, "%s%c%s", ink(l, *rest == '!' ? RED : BLUE), *rest,
					ink(l, CYAN));
			else
				fputs((l->utf8 ? shade : ascii)[d == 0	 ? 0
								: d == 9 ? 4
									 : 1 + (d - 1) * 3 / 8],
				      out);
			rest += *rest != '\0';
		}
		if (json_object_get(r, "strip") == NULL)
			fputs("(no time to look)", out);
		fprintf(out, "%s %6s in memory", ink(l, PLAIN),
			bytes_text(get_number(r, "resident")));
		map_about(out, r);
	}
	if (get_number(client, "more") > 0)
		fprintf(out, "  and %.0f ranges more\n", get_number(client, "more"));
	if (json_array_size(map) > 0)
		fprintf(out,
			"%s  each mark is 1/64 of its range: %s nothing of it is in memory ... %s all of it; or, of what is not, most is "
			"in swap (w), compressed (c), in memory but out of reach (s); some is lost (!)%s\n",
			ink(l, DIM), l->utf8 ? shade[0] : ascii[0], l->utf8 ? shade[4] : ascii[4],
			ink(l, PLAIN));
}

static int
by_rate(const void *a, const void *b)
{
	const json_t *const x = *(json_t *const *)a, *const y = *(json_t *const *)b;
	const double rx = get_number(x, "rate"), ry = get_number(y, "rate");
	const double mx = get_number(x, "resident"), my = get_number(y, "resident");

	if (rx != ry)
		return rx < ry ? 1 : -1;
	return mx < my ? 1 : mx > my ? -1 : 0;
}

static double
sum_of_faults(const json_t *client)
{
	const char *key;
	json_t *v;
	double n = 0;

	json_object_foreach(json_object_get(client, "faults"), key, v) n += json_number_value(v);
	return n;
}

/* Of those that take time. */
static const char *const kind_name[] = { "zero", "soft", "major", "wp" };
#define NKINDS 4

static void
draw_clients(const struct look *l, FILE *out, json_t *clients, const char *eol, int rows)
{
	const size_t n = json_array_size(clients);
	const int bar = l->columns >= 110 ? 16 : l->columns >= 96 ? 8 : 0;
	/* Where there is room for it, 99 % of each kind of fault. */
	const bool kinds = l->columns >= 130;
	const int fixed = 71 + (bar > 0 ? bar + 3 : 0) + (kinds ? 8 * NKINDS : 0),
		  width = l->columns - fixed > 10 ? l->columns - fixed : 10;
	json_t **const sorted = calloc(n + 1, sizeof(json_t *));
	int shown = 0;

	if (sorted == NULL)
		return;
	for (size_t i = 0; i < n; i++)
		sorted[i] = json_array_get(clients, i);
	qsort(sorted, n, sizeof(json_t *), by_rate);
	fprintf(out, "%s%8s %-*.*s %-8.8s %6s %6s %*s%6s %8s %7s %7s", ink(l, REVERSE), "PROCESS",
		width, width, "NAME", "KIND", "MEMORY", "MAPPED", bar > 0 ? bar + 3 : 0, "", "SWAP",
		"FAULTS/s", "50%", "99%");
	for (size_t k = 0; kinds && k < NKINDS; k++)
		fprintf(out, " %7s", kind_name[k]);
	fprintf(out, " %4s%s%s", "AGE", ink(l, PLAIN), eol);
	for (size_t i = 0; i < n; i++) {
		const json_t *const c = sorted[i];
		const bool lost = get_number(c, "lost") > 0;
		const double rate = get_number(c, "rate");

		if (rows > 0 && shown == rows - (i + 1 < n)) {
			fprintf(out, "%s%8s and %zu more%s%s", ink(l, DIM), "", n - i,
				ink(l, PLAIN), eol);
			break;
		}
		shown++;
		fprintf(out, "%8.0f %s%-*.*s%s %-8.8s %6s %6s ", get_number(c, "pid"),
			ink(l, lost ? RED : BOLD), width, width, get_text(c, "name"), ink(l, PLAIN),
			get_text(c, "kind"), bytes_text(get_number(c, "resident")),
			bytes_text(get_number(c, "mapped")));
		if (bar > 0) {
			gauge(l, out, get_number(c, "resident"), get_number(c, "mapped"),
			      (size_t)bar, CYAN);
			fputc(' ', out);
		}
		fprintf(out, "%6s %8s %7s %7s", bytes_text(get_number(c, "swapped")),
			rate > 0 || sum_of_faults(c) > 0 ? count_text(rate) : "-",
			time_text(get_number(c, "recent.all.p50_ns")),
			time_text(get_number(c, "recent.all.p99_ns")));
		for (size_t k = 0; kinds && k < NKINDS; k++)
			fprintf(out, " %7s",
				time_text(get_number(json_object_get(json_object_get(c, "recent"),
								     kind_name[k]),
						     "p99_ns")));
		fprintf(out, " %4s%s", age_text(get_number(c, "age")), eol);
	}
	if (n == 0)
		fprintf(out, "%s%8s no clients at present%s%s", ink(l, DIM), "", ink(l, PLAIN),
			eol);
	free(sorted);
}

void
top_draw(const struct look *l, FILE *out, const json_t *answer, const char *eol)
{
	const json_t *const st = json_object_get(answer, "status");
	const json_t *const history = json_object_get(st, "history");
	const double limit = get_number(st, "budget.limit"), used = get_number(st, "budget.used");
	const double swapped = get_number(st, "swap.swapped");
	const bool serving = strcmp(get_text(st, "state"), "serving") == 0;
	const size_t wide = l->columns > 90 ? 60 : l->columns > 66 ? (size_t)l->columns - 36 : 30;
	bool any = false;
	const char *kind;
	const json_t *lat;

	fprintf(out, "%suffd-pagerd%s %s  %s%s%s  process %.0f  up %s  %.0f client%s%s",
		ink(l, BOLD), ink(l, PLAIN), get_text(st, "version"),
		ink(l, serving ? GREEN : YELLOW), get_text(st, "state"), ink(l, PLAIN),
		get_number(st, "pid"), age_text(get_number(st, "uptime")),
		get_number(st, "clients"), get_number(st, "clients") == 1 ? "" : "s", eol);
	fputs("memory    ", out);
	gauge(l, out, used, limit, 30, used > 0.95 * limit ? YELLOW : GREEN);
	fprintf(out, " %s of %s: %s mapped, %s staged, %s meta%s", bytes_text(used),
		bytes_text(limit), bytes_text(get_number(st, "budget.resident")),
		bytes_text(get_number(st, "budget.staged")),
		bytes_text(get_number(st, "budget.metadata")), eol);
	fputs("swap      ", out);
	gauge(l, out, swapped,
	      get_number(st, "swap.reserve_max") > 0 ? get_number(st, "swap.reserve_max")
						     : swapped * 2,
	      30, BLUE);
	fprintf(out, " %s in it; in %s/s, out %s/s%s", bytes_text(swapped),
		bytes_text(get_number(st, "rate.swap_read")),
		bytes_text(get_number(st, "rate.swap_write")), eol);
	fprintf(out, "faults/s  %s", ink(l, CYAN));
	sparkline(l, out, json_object_get(history, "faults"), wide);
	fprintf(out, "%s %8s%s", ink(l, PLAIN), count_text(get_number(st, "rate.faults")), eol);
	fprintf(out, "swap out  %s", ink(l, BLUE));
	sparkline(l, out, json_object_get(history, "swap_write"), wide);
	fprintf(out, "%s %8s/s%s", ink(l, PLAIN), bytes_text(get_number(st, "rate.swap_write")),
		eol);
	/* Kinds that there were in the last second; 50 % and 99 %. */
	fputs("latency  ", out);
	json_object_foreach(json_object_get(st, "recent"), kind, lat)
	{
		if (get_number(lat, "count") <= 0)
			continue;
		any = true;
		fprintf(out, " %s%s%s %s/%s", ink(l, DIM), kind, ink(l, PLAIN),
			time_text(get_number(lat, "p50_ns")), time_text(get_number(lat, "p99_ns")));
	}
	fprintf(out, "%s%s%s", any ? "" : " no faults now", eol, eol);
	draw_clients(l, out, json_object_get(answer, "clients"), eol,
		     l->rows > 0 ? (l->rows > 11 ? l->rows - 9 : 2) : 0);
}

/* ---- the terminal ---- */

static void
on_signal(int sig)
{
	if (sig == SIGWINCH)
		resized = 1;
	else
		stopped = 1;
}

static void
put(const char *text, size_t len)
{
	while (len > 0) {
		const ssize_t n = write(STDOUT_FILENO, text, len);

		if (n > 0) {
			text += n;
			len -= (size_t)n;
		} else if (errno != EINTR && errno != EAGAIN)
			return;
	}
}

static void
terminal_begin(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct termios raw = before;

	sigaction(SIGWINCH, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 0;
	tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw);
	put("\x1b[?1049h\x1b[?25l", 14);
}

static void
terminal_end(void)
{
	put("\x1b[?25h\x1b[?1049l", 14);
	tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
}

static void
frame(const json_t *answer, const char *below)
{
	struct look l;
	char *text = NULL;
	size_t len;
	FILE *const out = open_memstream(&text, &len);

	if (out == NULL)
		return;
	look_init(&l, 80);
	fputs("\x1b[?7l\x1b[H", out); /* long lines are cut */
	if (answer != NULL)
		top_draw(&l, out, answer, "\x1b[K\r\n");
	fprintf(out, "%s%s%s\x1b[K\x1b[J\x1b[?7h", ink(&l, DIM), below, ink(&l, PLAIN));
	if (fclose(out) == 0)
		put(text, len);
	free(text);
}

/* Until it is time for the next frame.  False: the end. */
static bool
rest(double seconds)
{
	struct timespec ts = { .tv_sec = (time_t)seconds,
			       .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };
	struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
	char key;

	const int r = ppoll(&p, 1, &ts, NULL);
	if (stopped)
		return false;
	if (r > 0) {
		const ssize_t n = read(STDIN_FILENO, &key, 1);

		if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
			return false; /* the terminal is gone */
		return n < 0 || (key != 'q' && key != 'Q' && key != 3);
	}
	return true;
}

static json_t *
ask_top(struct client *c)
{
	return client_ask(c, json_pack("{s:s}", "verb", "top"));
}

int
top_run(struct client *c, const char *socket, bool once, double seconds)
{
	json_t *answer = ask_top(c), *next;
	struct look l;

	if (answer == NULL || !json_is_true(json_object_get(answer, "ok"))) {
		fprintf(stderr, "uffd-pager: %s\n",
			answer != NULL ? get_text(answer, "error") : strerror(errno));
		const int status = answer != NULL ? EXIT_REFUSED : EXIT_UNREACHABLE;
		json_decref(answer);
		return status;
	}
	if (once || !isatty(STDOUT_FILENO) || tcgetattr(STDIN_FILENO, &before) < 0) {
		look_init(&l, 100);
		l.rows = 0;
		top_draw(&l, stdout, answer, "\n");
		json_decref(answer);
		return fflush(stdout) == 0 ? EXIT_OK : EXIT_REFUSED;
	}
	terminal_begin();
	frame(answer, "q quits");
	while (rest(seconds)) {
		resized = 0;
		next = c->fd >= 0 ? ask_top(c) : NULL;
		if (next == NULL) {
			/* It ended, or is being restarted: the last frame stays until there is another. */
			client_close(c);
			if (client_connect(c, socket) == 0)
				next = ask_top(c);
		}
		if (next != NULL && json_is_true(json_object_get(next, "ok"))) {
			json_decref(answer);
			answer = next;
			frame(answer, "q quits");
		} else {
			json_decref(next);
			frame(answer, "the daemon does not answer; q quits");
		}
	}
	terminal_end();
	json_decref(answer);
	return EXIT_OK;
}

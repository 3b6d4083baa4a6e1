/* SPDX-License-Identifier: BSD-2-Clause */
#include "door.h"

#include "assertions.h"
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

uv_loop_t door_loop;
unsigned door_came, door_left;

static uv_poll_t listener;
static int listen_fd = -1;
static int (*open_session)(uv_loop_t *loop, int connection, struct session **out);

static void
on_connection(uv_poll_t *p, int status, int events)
{
	const int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct session *s;

	(void)p;
	(void)status;
	(void)events;
	cr_assert(ge(int, fd, 0));
	cr_assert(zero(int, open_session(&door_loop, fd, &s)));
	door_came++;
}

void
door_open(const char *path, int (*open)(uv_loop_t *loop, int connection, struct session **out))
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };

	cr_assert(lt(sz, strlen(path), sizeof sun.sun_path));
	strcpy(sun.sun_path, path);
	open_session = open;
	cr_assert(zero(int, uv_loop_init(&door_loop)));
	listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	cr_assert(zero(int, bind(listen_fd, (struct sockaddr *)&sun, sizeof sun)));
	cr_assert(zero(int, listen(listen_fd, 16)));
	cr_assert(zero(int, uv_poll_init(&door_loop, &listener, listen_fd)));
	cr_assert(zero(int, uv_poll_start(&listener, UV_READABLE, on_connection)));
	vmm_pump = door_turn;
}

void
door_close(void)
{
	uv_close((uv_handle_t *)&listener, NULL);
	uv_run(&door_loop, UV_RUN_DEFAULT);
	cr_assert(zero(int, uv_loop_close(&door_loop)));
	close(listen_fd);
	vmm_pump = NULL;
}

void
door_turn(void)
{
	uv_run(&door_loop, UV_RUN_NOWAIT);
}

void
door_gone(void *ctx, struct session *s)
{
	(void)ctx;
	(void)s;
	door_left++;
}

bool
door_is_empty(void *unused)
{
	(void)unused;
	return door_left == door_came && session_first() == NULL;
}

void
door_empty(unsigned ms)
{
	vmm_until(door_is_empty, NULL, ms, "all sessions gone");
}

static bool
has_come(void *unused)
{
	(void)unused;
	return door_came > 0;
}

void
door_somebody(void)
{
	vmm_until(has_come, NULL, VMM_DEADLINE_MS, "somebody has come");
}

struct session_counts
door_counts(void)
{
	struct session_counts c = { 0 };

	if (session_first() != NULL)
		session_first()->ops->counts(session_first(), &c);
	return c;
}

/* SPDX-License-Identifier: BSD-2-Clause */
#include "handles.h"

/* One that has been initialised, and is to be closed. */
static void
has(struct handles *h, void *handle)
{
	uv_handle_set_data(handle, h);
	handles_hold(h);
}

static void
on_told(uv_async_t *told)
{
	struct handles *h = told->data;

	if (atomic_load(&h->stopped))
		handles_close(h);
	else if (h->heard != NULL)
		h->heard(h->owner);
}

int
handles_open(struct handles *h, uv_loop_t *loop, int connection, void *owner)
{
	int r;

	h->owner = owner;
	uv_timer_init(loop, &h->timer);
	has(h, &h->timer);
	r = uv_async_init(loop, &h->told, on_told);
	if (r < 0)
		return r;
	has(h, &h->told);
	if (connection < 0)
		return 0;
	r = uv_poll_init(loop, &h->socket, connection);
	if (r < 0)
		return r;
	has(h, &h->socket);
	return 0;
}

int
handles_watch(struct handles *h, int pidfd, uv_poll_cb cb)
{
	const int r = uv_poll_init(h->timer.loop, &h->process, pidfd);

	if (r < 0)
		return r;
	has(h, &h->process);
	return uv_poll_start(&h->process, UV_READABLE, cb);
}

void
handles_hold(struct handles *h)
{
	h->open++;
}

void
handles_drop(struct handles *h)
{
	if (--h->open == 0)
		h->closed(h->owner);
}

static void
on_closed(uv_handle_t *handle)
{
	handles_drop(uv_handle_get_data(handle));
}

static void
close_handle(void *handle)
{
	if (uv_handle_get_data(handle) != NULL && !uv_is_closing(handle))
		uv_close(handle, on_closed);
}

void
handles_close(struct handles *h)
{
	close_handle(&h->socket);
	close_handle(&h->process);
	close_handle(&h->timer);
	close_handle(&h->told);
}

void
handles_notify(void *ctx, enum fill_event ev)
{
	struct handles *h = ctx;

	if (ev == FILL_STOPPED)
		atomic_store(&h->stopped, true);
	uv_async_send(&h->told);
}

void *
handles_owner(const void *handle)
{
	const struct handles *h = uv_handle_get_data(handle);

	return h->owner;
}

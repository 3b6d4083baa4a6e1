/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * top.h (private): what uffd-pager draws.
 */
#ifndef UP_TOOLS_TOP_H
#define UP_TOOLS_TOP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "client.h"

/* How to draw: found out once. */
struct look {
	bool color, utf8;
	int columns, rows; /* rows 0: as many as it takes */
};

/* As standard output is; `pipe_columns` if it is no terminal. */
void look_init(struct look *l, int pipe_columns);

/* One frame of an answer to "top"; every line ends with `eol`. */
void top_draw(const struct look *l, FILE *out, const json_t *answer, const char *eol);

/* Until q is pressed.  `once`: one frame, and end.  The exit status. */
int top_run(struct client *c, const char *socket, bool once, double seconds);

/* The strip picture of a client with its map. */
void map_draw(const struct look *l, FILE *out, const json_t *client);

/* "12.3M"; of a static ring of buffers, eight of them. */
const char *bytes_text(double n);
const char *time_text(double ns);

/* Fields of JSON, with something harmless where there are none. */
double get_number(const json_t *j, const char *path);
const char *get_text(const json_t *j, const char *key);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the binding: columns, pieces and lists out of objects that have a buffer, looked at before they are used. */
#ifndef PG_PYBUFFERS_H
#define PG_PYBUFFERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "pieces.h"

#define PG_MOST_BUFFERS	64

/* Begin with zeros; released as a whole. */
struct pg_buffers {
	Py_buffer held[PG_MOST_BUFFERS];
	int count;
};

/* Any number of rows. */
#define PG_ANY	((Py_ssize_t)-1)

/* A bytearray of so many bytes that are still to be written. */
PyObject *pg_new_column(size_t size);
void pg_buffers_release(struct pg_buffers *buffers);
/* The rows of width bytes; NULL with an exception set if they are not so many. */
const void *pg_buffers_take(struct pg_buffers *buffers, PyObject *object, const char *name, size_t width,
			    Py_ssize_t rows, size_t *count);
/* A text, and the offsets in it where its pieces end, ascending. */
bool pg_buffers_pieces(struct pg_buffers *buffers, PyObject *text, PyObject *ends, const char *name,
		       struct pg_pieces *pieces);
/* Where the lists start, one more than there are, and their items; what they hold is looked at by pg_lists_are_good(). */
bool pg_buffers_lists(struct pg_buffers *buffers, PyObject *start, PyObject *items, struct pg_lists *lists,
		      size_t *item_count);
/* The lists of these numbers lie within the items, which are numbers below most. numbers NULL: all lists. */
bool pg_lists_are_good(const struct pg_lists *lists, size_t item_count, const int32_t *numbers, size_t count,
		       size_t most);
/* All are 0 or more and below most. */
bool pg_numbers_are_good(const int32_t *numbers, size_t count, size_t most, const char *name);
/* Each at[i] and the bytes from there on lie within the data: size[i] * unit of them. */
bool pg_ranges_are_good(const int64_t *at, const int64_t *size, size_t count, size_t unit, size_t data_size);

#endif

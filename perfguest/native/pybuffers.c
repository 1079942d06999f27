// SPDX-License-Identifier: Apache-2.0
#include "pybuffers.h"

#include <sys/mman.h>

#define HUGE_PAGE	(2UL << 20)

PyObject *pg_new_column(size_t size)
{
	PyObject *column = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)size);

	/* As numpy does for its arrays: a fault for each small page would take as long as filling it. It is but advice, so an error does not matter. */
	if (column && size >= 2 * HUGE_PAGE) {
		uintptr_t begin = ((uintptr_t)PyByteArray_AS_STRING(column) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
		uintptr_t end = ((uintptr_t)PyByteArray_AS_STRING(column) + size) & ~(HUGE_PAGE - 1);

		madvise((void *)begin, end - begin, MADV_HUGEPAGE);
	}
	return column;
}

void pg_buffers_release(struct pg_buffers *buffers)
{
	while (buffers->count)
		PyBuffer_Release(&buffers->held[--buffers->count]);
}

const void *pg_buffers_take(struct pg_buffers *buffers, PyObject *object, const char *name, size_t width,
			    Py_ssize_t rows, size_t *count)
{
	static const uint64_t nothing;
	Py_buffer *held = &buffers->held[buffers->count];

	if (buffers->count == PG_MOST_BUFFERS) {
		PyErr_SetString(PyExc_ValueError, "too many columns");
		return NULL;
	}
	if (PyObject_GetBuffer(object, held, PyBUF_SIMPLE))
		return NULL;
	buffers->count++;
	if (held->len % (Py_ssize_t)width || (rows != PG_ANY && held->len / (Py_ssize_t)width != rows)) {
		PyErr_Format(PyExc_ValueError, "%s: %zd bytes are not the rows that are wanted", name, held->len);
		return NULL;
	}
	if (count)
		*count = (size_t)held->len / width;
	return held->buf ? held->buf : &nothing;
}

bool pg_buffers_pieces(struct pg_buffers *buffers, PyObject *text, PyObject *ends, const char *name,
		       struct pg_pieces *pieces)
{
	int64_t last = 0;
	size_t size, i;

	pieces->text = pg_buffers_take(buffers, text, name, 1, PG_ANY, &size);
	if (!pieces->text)
		return false;
	pieces->end = pg_buffers_take(buffers, ends, name, sizeof(int64_t), PG_ANY, &pieces->count);
	if (!pieces->end)
		return false;
	for (i = 0; i < pieces->count; i++) {
		if (pieces->end[i] < last || (uint64_t)pieces->end[i] > size) {
			PyErr_Format(PyExc_ValueError, "%s: piece %zu does not lie in the text", name, i);
			return false;
		}
		last = pieces->end[i];
	}
	return true;
}

bool pg_buffers_lists(struct pg_buffers *buffers, PyObject *start, PyObject *items, struct pg_lists *lists,
		      size_t *item_count)
{
	lists->start = pg_buffers_take(buffers, start, "start", sizeof(int64_t), PG_ANY, &lists->count);
	if (!lists->start)
		return false;
	if (!lists->count) {
		PyErr_SetString(PyExc_ValueError, "start has one more than there are lists");
		return false;
	}
	lists->count--;
	lists->items = pg_buffers_take(buffers, items, "items", sizeof(int32_t), PG_ANY, item_count);
	return lists->items;
}

bool pg_lists_are_good(const struct pg_lists *lists, size_t item_count, const int32_t *numbers, size_t count,
		       size_t most)
{
	size_t i;
	int64_t item;

	for (i = 0; i < count; i++) {
		size_t list = numbers ? (size_t)numbers[i] : i;
		const int64_t *start = lists->start + list;

		if ((numbers && numbers[i] < 0) || list >= lists->count || start[0] < 0 || start[0] > start[1] ||
		    (uint64_t)start[1] > item_count) {
			PyErr_Format(PyExc_ValueError, "list %zu does not lie in the items", list);
			return false;
		}
		for (item = start[0]; item < start[1]; item++) {
			if (lists->items[item] < 0 || (size_t)lists->items[item] >= most) {
				PyErr_Format(PyExc_ValueError, "items: no such number: %d", lists->items[item]);
				return false;
			}
		}
	}
	return true;
}

bool pg_numbers_are_good(const int32_t *numbers, size_t count, size_t most, const char *name)
{
	size_t i;

	for (i = 0; i < count; i++) {
		if (numbers[i] < 0 || (size_t)numbers[i] >= most) {
			PyErr_Format(PyExc_ValueError, "%s: no such number: %d", name, numbers[i]);
			return false;
		}
	}
	return true;
}

bool pg_ranges_are_good(const int64_t *at, const int64_t *size, size_t count, size_t unit, size_t data_size)
{
	size_t i;

	for (i = 0; i < count; i++) {
		uint64_t bytes = size ? (uint64_t)size[i] : 1;

		if (at[i] < 0 || (uint64_t)at[i] > data_size || bytes > (data_size - (uint64_t)at[i]) / unit) {
			PyErr_Format(PyExc_ValueError, "row %zu does not lie in the data", i);
			return false;
		}
	}
	return true;
}

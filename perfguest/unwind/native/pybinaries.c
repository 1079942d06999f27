// SPDX-License-Identifier: Apache-2.0
/* Binaries, and the address spaces that they are mapped in. */
#include "pytables.h"

void pg_py_free_binary(struct pg_binary *binary)
{
	if (!binary)
		return;
	pg_py_free_binary(binary->kept);
	pg_binary_deinit(binary);
	PyMem_RawFree((void *)binary->file.runs);
	PyMem_RawFree(binary);
}

/*
 * Runs that touch are made one, so that nothing that a table says ever lies on
 * a border. Gives how many are left, or -1 with an exception.
 */
static Py_ssize_t join_runs(struct unwinder_object *self, struct pg_run *runs, size_t count)
{
	size_t from, to, kept = 0, i;

	for (from = 0; from < count; from = to, kept++) {
		uint64_t size = runs[from].size;
		const uint8_t *data = runs[from].data;

		for (to = from + 1; to < count && runs[to].offset == runs[from].offset + size; to++)
			size += runs[to].size;
		if (to > from + 1) {
			PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
			char *at;
			int err;

			if (!joined)
				return -1;
			at = PyBytes_AS_STRING(joined);
			data = (const uint8_t *)at;
			for (i = from; i < to; i++) {
				memcpy(at, runs[i].data, runs[i].size);
				at += runs[i].size;
			}
			err = PyList_Append(self->held, joined);
			Py_DECREF(joined);
			if (err)
				return -1;
		}
		runs[kept] = (struct pg_run){ runs[from].offset, data, size };
	}
	return (Py_ssize_t)kept;
}

/* False with an exception. */
static bool take_runs(struct unwinder_object *self, struct pg_file *file, PyObject *list)
{
	Py_ssize_t count = PySequence_Fast_GET_SIZE(list), i, kept;
	uint64_t end = 0;
	struct pg_run *runs = PyMem_RawCalloc((size_t)count + 1, sizeof(*runs));

	file->runs = runs;
	if (!runs) {
		PyErr_NoMemory();
		return false;
	}
	for (i = 0; i < count; i++) {
		unsigned long long offset;
		PyObject *data;
		size_t size;

		if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list, i), "KO", &offset, &data) ||
		    !pg_py_hold(self, data, &runs[i].data, &size))
			return false;
		if (offset < end || size > INT64_MAX || offset > INT64_MAX) {
			PyErr_SetString(PyExc_ValueError, "runs must ascend and not overlap");
			return false;
		}
		runs[i].offset = offset;
		runs[i].size = size;
		end = offset + size;
	}
	kept = join_runs(self, runs, (size_t)count);
	file->run_count = (size_t)kept;
	return kept >= 0;
}

static bool take_section(PyObject *pair, const char *name, struct pg_section *section)
{
	unsigned long long offset, size;

	if (pair == Py_None)
		return true;
	if (!PyTuple_Check(pair)) {
		PyErr_Format(PyExc_TypeError, "%s: offset and size are wanted", name);
		return false;
	}
	if (!PyArg_ParseTuple(pair, "KK", &offset, &size))
		return false;
	section->offset = offset;
	section->size = size;
	return true;
}

/* What both sets of pages of a file are said to be. */
struct sections {
	PyObject *eh_frame;
	PyObject *debug_frame;
};

/* NULL with an exception. */
static struct pg_binary *make_binary(struct unwinder_object *self, uint64_t size, PyObject *runs,
				     const struct sections *sections)
{
	struct pg_binary *binary = PyMem_RawCalloc(1, sizeof(*binary));

	if (!binary) {
		PyErr_NoMemory();
		return NULL;
	}
	runs = PySequence_Fast(runs, "runs: a sequence is wanted");
	if (!runs)
		goto free_binary;
	if (!take_section(sections->eh_frame, "eh_frame", &binary->sections[PG_EH_FRAME]) ||
	    !take_section(sections->debug_frame, "debug_frame", &binary->sections[PG_DEBUG_FRAME]) ||
	    !take_runs(self, &binary->file, runs))
		goto drop_runs;
	Py_DECREF(runs);
	binary->file.size = size;
	pg_binary_init(binary);
	return binary;
drop_runs:
	Py_DECREF(runs);
free_binary:
	pg_py_free_binary(binary);
	return NULL;
}

PyObject *pg_py_add_binary(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "size", "runs", "eh_frame", "debug_frame", "kept", NULL };
	struct sections sections = { Py_None, Py_None };
	PyObject *runs, *kept = Py_None;
	struct pg_binary *binary;
	unsigned long long size;
	Py_ssize_t number = -1;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KO|OOO", names, &size, &runs,
					 &sections.eh_frame, &sections.debug_frame, &kept))
		return NULL;
	pg_py_lock(self);
	binary = make_binary(self, size, runs, &sections);
	if (binary && kept != Py_None)
		binary->kept = make_binary(self, size, kept, &sections);
	if (binary && (binary->kept || kept == Py_None))
		number = pg_py_append((void ***)&self->unwinder.binaries, &self->unwinder.binary_count,
				      binary);
	if (number < 0)
		pg_py_free_binary(binary);
	pg_py_unlock(self);
	return number < 0 ? NULL : PyLong_FromSsize_t(number);
}

void pg_py_free_space(struct pg_space *space)
{
	if (!space)
		return;
	PyMem_RawFree(space->mappings);
	PyMem_RawFree(space);
}

enum { SPACE_START, SPACE_END, SPACE_OFFSET, SPACE_BINARY, SPACE_COLUMNS };

static struct pg_space *make_space(const struct pg_unwinder *unwinder, const Py_buffer *columns)
{
	size_t count = (size_t)columns[SPACE_START].len / sizeof(uint64_t), i;
	const uint64_t *start = columns[SPACE_START].buf, *end = columns[SPACE_END].buf;
	const uint64_t *offset = columns[SPACE_OFFSET].buf;
	const int32_t *binary = columns[SPACE_BINARY].buf;
	struct pg_space *space = PyMem_RawCalloc(1, sizeof(*space));

	if (space)
		space->mappings = PyMem_RawCalloc(count + 1, sizeof(*space->mappings));
	if (!space || !space->mappings) {
		PyErr_NoMemory();
		goto free_space;
	}
	space->count = count;
	for (i = 0; i < count; i++) {
		if (end[i] <= start[i] || (i && start[i] < end[i - 1])) {
			PyErr_SetString(PyExc_ValueError, "mappings must ascend and not overlap");
			goto free_space;
		}
		if (binary[i] >= 0 && (size_t)binary[i] >= unwinder->binary_count) {
			PyErr_Format(PyExc_ValueError, "no binary has the number %d", binary[i]);
			goto free_space;
		}
		space->mappings[i] = (struct pg_mapping){ start[i], end[i], offset[i], binary[i] };
	}
	return space;
free_space:
	pg_py_free_space(space);
	return NULL;
}

PyObject *pg_py_add_space(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "start", "end", "offset", "binary", NULL };
	static const Py_ssize_t items[SPACE_COLUMNS] = { 8, 8, 8, 4 };
	PyObject *objects[SPACE_COLUMNS];
	Py_buffer columns[SPACE_COLUMNS];
	struct pg_space *space = NULL;
	Py_ssize_t number = -1;
	int got = 0;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO", names, &objects[SPACE_START],
					 &objects[SPACE_END], &objects[SPACE_OFFSET],
					 &objects[SPACE_BINARY]))
		return NULL;
	for (; got < SPACE_COLUMNS; got++) {
		if (!pg_py_get_array(objects[got], items[got], names[got], &columns[got]))
			goto release;
		if (columns[got].len / items[got] != columns[0].len / items[0]) {
			PyErr_SetString(PyExc_ValueError, "columns of one length are wanted");
			got++;
			goto release;
		}
	}
	pg_py_lock(self);
	space = make_space(&self->unwinder, columns);
	if (space)
		number = pg_py_append((void ***)&self->unwinder.spaces, &self->unwinder.space_count, space);
	if (number < 0)
		pg_py_free_space(space);
	pg_py_unlock(self);
release:
	while (got--)
		PyBuffer_Release(&columns[got]);
	return number < 0 ? NULL : PyLong_FromSsize_t(number);
}

// SPDX-License-Identifier: Apache-2.0
/* What writers put together for each stack, sample or frame. */
#include "pywriting.h"

#include "folded.h"
#include "pprof.h"
#include "pybuffers.h"
#include "script.h"

static PyObject *bytes_of(size_t size)
{
	return PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
}

static bool take_paths(struct pg_buffers *buffers, struct pg_paths *paths, PyObject *stack, PyObject *root, PyObject *total)
{
	Py_ssize_t rows;

	paths->stack = pg_buffers_take(buffers, stack, "stack", sizeof(int32_t), PG_ANY, &paths->count);
	rows = (Py_ssize_t)paths->count;
	paths->root = paths->stack ? pg_buffers_take(buffers, root, "root", sizeof(int32_t), rows, NULL) : NULL;
	paths->total = paths->root ? pg_buffers_take(buffers, total, "total", sizeof(int64_t), rows, NULL) : NULL;
	if (paths->total && paths->count > UINT32_MAX)
		PyErr_SetString(PyExc_ValueError, "more paths than can be numbered");
	return paths->total && paths->count <= UINT32_MAX;
}

static bool roots_are_good(const struct pg_paths *paths)
{
	size_t i;

	for (i = 0; i < paths->count; i++) {
		if (paths->root[i] >= 0 && (size_t)paths->root[i] >= paths->names.count) {
			PyErr_Format(PyExc_ValueError, "root: no such number: %d", paths->root[i]);
			return false;
		}
	}
	return true;
}

static bool names_are_few(const struct pg_paths *paths)
{
	if (paths->names.count < INT32_MAX)
		return true;
	PyErr_SetString(PyExc_ValueError, "more names than can be numbered");
	return false;
}

static PyObject *folded(const struct pg_paths *paths)
{
	PyObject *result = bytes_of(pg_folded_room(paths));
	char *end = result ? pg_folded_write(paths, PyBytes_AS_STRING(result)) : NULL;

	if (result && !end) {
		Py_CLEAR(result);
		PyErr_NoMemory();
	}
	if (result)
		_PyBytes_Resize(&result, end - PyBytes_AS_STRING(result));
	return result;
}

PyObject *pg_py_fold(PyObject *module, PyObject *args)
{
	PyObject *stack, *root, *total, *start, *items, *text, *ends, *result = NULL;
	struct pg_buffers buffers = { .count = 0 };
	struct pg_paths paths = { .count = 0 };
	size_t item_count;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOO:fold", &stack, &root, &total, &start, &items, &text, &ends))
		return NULL;
	if (take_paths(&buffers, &paths, stack, root, total) &&
	    pg_buffers_lists(&buffers, start, items, &paths.stacks, &item_count) &&
	    pg_buffers_pieces(&buffers, text, ends, "names", &paths.names) &&
	    pg_lists_are_good(&paths.stacks, item_count, paths.stack, paths.count, paths.names.count) &&
	    roots_are_good(&paths) && names_are_few(&paths))
		result = folded(&paths);
	pg_buffers_release(&buffers);
	return result;
}

PyObject *pg_py_hexadecimal(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	PyObject *object, *text = NULL, *ends = NULL, *result = NULL;
	const uint64_t *values;
	char *begin, *out;
	size_t count, i;

	(void)module;
	if (!PyArg_ParseTuple(args, "O:hexadecimal", &object))
		return NULL;
	values = pg_buffers_take(&buffers, object, "values", sizeof(*values), PG_ANY, &count);
	text = values ? bytes_of(count * PG_HEX_ROOM) : NULL;
	ends = text ? pg_new_column(count * sizeof(int64_t)) : NULL;
	if (!ends)
		goto out;
	begin = out = PyBytes_AS_STRING(text);
	for (i = 0; i < count; i++) {
		out = pg_put_hex(out, values[i]);
		((int64_t *)PyByteArray_AS_STRING(ends))[i] = out - begin;
	}
	if (!_PyBytes_Resize(&text, out - begin))
		result = PyTuple_Pack(2, text, ends);
out:
	Py_XDECREF(text);
	Py_XDECREF(ends);
	pg_buffers_release(&buffers);
	return result;
}

PyObject *pg_py_pprof_locations(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	struct pg_locations locations = { .count = 0 };
	PyObject *address, *mapping, *function, *result = NULL;
	unsigned long long first;
	Py_ssize_t rows;

	(void)module;
	if (!PyArg_ParseTuple(args, "KOOO:pprof_locations", &first, &address, &mapping, &function))
		return NULL;
	locations.first_id = first;
	locations.address = pg_buffers_take(&buffers, address, "address", 8, PG_ANY, &locations.count);
	rows = (Py_ssize_t)locations.count;
	locations.mapping = locations.address ? pg_buffers_take(&buffers, mapping, "mapping", 8, rows, NULL) : NULL;
	locations.function = locations.mapping ? pg_buffers_take(&buffers, function, "function", 8, rows, NULL) : NULL;
	if (locations.function)
		result = bytes_of(pg_pprof_locations(&locations, NULL));
	if (result)
		pg_pprof_locations(&locations, (uint8_t *)PyBytes_AS_STRING(result));
	pg_buffers_release(&buffers);
	return result;
}

static bool take_samples(struct pg_buffers *buffers, struct pg_samples *samples, PyObject *stack, PyObject *label,
			 PyObject *values)
{
	size_t numbers;

	samples->stack = pg_buffers_take(buffers, stack, "stack", sizeof(int32_t), PG_ANY, &samples->count);
	if (!samples->stack)
		return false;
	samples->label = pg_buffers_take(buffers, label, "label", sizeof(int32_t), (Py_ssize_t)samples->count, NULL);
	if (!samples->label)
		return false;
	samples->values = pg_buffers_take(buffers, values, "values", sizeof(int64_t), PG_ANY, &numbers);
	if (!samples->values)
		return false;
	samples->value_count = samples->count ? numbers / samples->count : 0;
	if (numbers == samples->value_count * samples->count)
		return true;
	PyErr_SetString(PyExc_ValueError, "values: every sample has as many");
	return false;
}

PyObject *pg_py_pprof_samples(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	PyObject *stack, *label, *values, *start, *frames, *text, *ends, *result = NULL;
	struct pg_samples samples = { .count = 0 };
	size_t item_count;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOO:pprof_samples", &stack, &label, &values, &start, &frames, &text, &ends))
		return NULL;
	if (take_samples(&buffers, &samples, stack, label, values) &&
	    pg_buffers_lists(&buffers, start, frames, &samples.stacks, &item_count) &&
	    pg_buffers_pieces(&buffers, text, ends, "labels", &samples.labels) &&
	    pg_lists_are_good(&samples.stacks, item_count, samples.stack, samples.count, INT32_MAX) &&
	    pg_numbers_are_good(samples.label, samples.count, samples.labels.count, "label"))
		result = bytes_of(pg_pprof_samples(&samples, NULL));
	if (result)
		pg_pprof_samples(&samples, (uint8_t *)PyBytes_AS_STRING(result));
	pg_buffers_release(&buffers);
	return result;
}

static bool take_script(struct pg_buffers *buffers, struct pg_script *script, PyObject *const columns[6])
{
	static const char *const names[6] = { "thread", "cpu", "time", "period", "event", "stack" };
	static const size_t width[6] = { 4, 4, 8, 8, 4, 4 };
	const void *taken[6];
	int i;

	for (i = 0; i < 6; i++) {
		taken[i] = pg_buffers_take(buffers, columns[i], names[i], width[i],
					   i ? (Py_ssize_t)script->count : PG_ANY, i ? NULL : &script->count);
		if (!taken[i])
			return false;
	}
	script->thread = taken[0];
	script->cpu = taken[1];
	script->time = taken[2];
	script->period = taken[3];
	script->event = taken[4];
	script->stack = taken[5];
	return true;
}

PyObject *pg_py_script(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	PyObject *columns[6], *start, *items, *text[3], *ends[3], *result = NULL;
	struct pg_script script = { .count = 0 };
	size_t item_count;

	(void)module;
	if (!PyArg_ParseTuple(args, "(OOOOOO)(OO)(OO)(OO)(OO):script", &columns[0], &columns[1], &columns[2],
			      &columns[3], &columns[4], &columns[5], &start, &items, &text[0], &ends[0], &text[1],
			      &ends[1], &text[2], &ends[2]))
		return NULL;
	if (take_script(&buffers, &script, columns) &&
	    pg_buffers_lists(&buffers, start, items, &script.stacks, &item_count) &&
	    pg_buffers_pieces(&buffers, text[0], ends[0], "frames", &script.frames) &&
	    pg_buffers_pieces(&buffers, text[1], ends[1], "threads", &script.threads) &&
	    pg_buffers_pieces(&buffers, text[2], ends[2], "events", &script.events) &&
	    pg_lists_are_good(&script.stacks, item_count, script.stack, script.count, script.frames.count) &&
	    pg_numbers_are_good(script.thread, script.count, script.threads.count, "thread") &&
	    pg_numbers_are_good(script.event, script.count, script.events.count, "event"))
		result = bytes_of(pg_script_room(&script));
	if (result)
		_PyBytes_Resize(&result, (Py_ssize_t)pg_script_write(&script, PyBytes_AS_STRING(result)));
	pg_buffers_release(&buffers);
	return result;
}

// SPDX-License-Identifier: Apache-2.0
/* Reading of perf.data: records, their words, callchains, and which of them are equal. */
#include "pyreading.h"

#include "bytes.h"
#include "callchain.h"
#include "distinct.h"
#include "pybuffers.h"
#include "records.h"

PyObject *pg_py_walk_records(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	struct pg_records records = { .count = 0 };
	unsigned long long start, end;
	PyObject *object, *result = NULL;
	const uint8_t *data;
	size_t size;

	(void)module;
	if (!PyArg_ParseTuple(args, "OKK:walk_records", &object, &start, &end))
		return NULL;
	data = pg_buffers_take(&buffers, object, "data", 1, PG_ANY, &size);
	if (!data)
		goto out;
	if (end > size) {
		PyErr_SetString(PyExc_ValueError, "end lies beyond the data");
		goto out;
	}
	if (!pg_records_walk(&records, data, start, end)) {
		PyErr_NoMemory();
		goto out;
	}
	result = Py_BuildValue("NNKNN",
			       PyByteArray_FromStringAndSize((const char *)records.heads,
							     (Py_ssize_t)(records.count * sizeof(uint64_t))),
			       PyByteArray_FromStringAndSize((const char *)records.offsets,
							     (Py_ssize_t)(records.count * sizeof(int64_t))),
			       (unsigned long long)records.position, PyBool_FromLong(records.bad_size),
			       PyBool_FromLong(records.compressed));
out:
	pg_records_free(&records);
	pg_buffers_release(&buffers);
	return result;
}

PyObject *pg_py_gather(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	PyObject *object, *offsets, *distances, *result = NULL;
	const int64_t *at, *distance;
	size_t size, rows, columns, row, column;
	const uint8_t *data;
	uint64_t *out;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOO:gather", &object, &offsets, &distances))
		return NULL;
	data = pg_buffers_take(&buffers, object, "data", 1, PG_ANY, &size);
	at = data ? pg_buffers_take(&buffers, offsets, "offsets", sizeof(*at), PG_ANY, &rows) : NULL;
	distance = at ? pg_buffers_take(&buffers, distances, "distances", sizeof(*distance), PG_ANY, &columns) : NULL;
	if (!distance)
		goto out;
	result = pg_new_column(rows * columns * sizeof(*out));
	if (!result)
		goto out;
	out = (uint64_t *)PyByteArray_AS_STRING(result);
	for (row = 0; row < rows; row++) {
		if (row + 16 < rows && (uint64_t)at[row + 16] < size)
			__builtin_prefetch(data + at[row + 16]);
		for (column = 0; column < columns; column++) {
			/* A sum that overflows is large as well. */
			uint64_t place = (uint64_t)at[row] + (uint64_t)distance[column];

			if (size < sizeof(*out) || place > size - sizeof(*out)) {
				PyErr_Format(PyExc_ValueError, "row %zu does not lie in the data", row);
				Py_CLEAR(result);
				goto out;
			}
			out[column * rows + row] = pg_word(data + place);
		}
	}
out:
	pg_buffers_release(&buffers);
	return result;
}

/* PyArg_ParseTuple() leaves None as what it is. */
static bool take_ranges(struct pg_buffers *buffers, struct pg_rows *rows, PyObject *data, PyObject *at,
			PyObject *length)
{
	size_t size;

	if (data == Py_None)
		return true;
	rows->data = pg_buffers_take(buffers, data, "data", 1, PG_ANY, &size);
	if (!rows->data)
		return false;
	rows->at = pg_buffers_take(buffers, at, "at", sizeof(*rows->at), (Py_ssize_t)rows->count, NULL);
	if (!rows->at)
		return false;
	rows->length = pg_buffers_take(buffers, length, "length", sizeof(*rows->length), (Py_ssize_t)rows->count, NULL);
	return rows->length && pg_ranges_are_good(rows->at, rows->length, rows->count, 1, size);
}

static bool take_columns(struct pg_buffers *buffers, struct pg_rows *rows, PyObject *columns)
{
	Py_ssize_t i;

	if (PyTuple_GET_SIZE(columns) > PG_MOST_COLUMNS) {
		PyErr_SetString(PyExc_ValueError, "too many columns");
		return false;
	}
	for (i = 0; i < PyTuple_GET_SIZE(columns); i++) {
		struct pg_column *column = &rows->columns[rows->column_count++];
		size_t bytes;

		column->values = pg_buffers_take(buffers, PyTuple_GET_ITEM(columns, i), "column", 1, PG_ANY, &bytes);
		if (!column->values)
			return false;
		column->width = rows->count ? bytes / rows->count : 1;
		if (bytes != column->width * rows->count ||
		    (column->width != 1 && column->width != 2 && column->width != 4 && column->width != 8)) {
			PyErr_Format(PyExc_ValueError, "column %zd has other rows", i);
			return false;
		}
	}
	return true;
}

PyObject *pg_py_distinct(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	struct pg_rows rows = { .count = 0 };
	PyObject *columns, *data, *at, *length, *first = NULL, *number = NULL, *result = NULL;
	Py_ssize_t count;
	int64_t kinds;

	(void)module;
	if (!PyArg_ParseTuple(args, "nO!OOO:distinct", &count, &PyTuple_Type, &columns, &data, &at, &length))
		return NULL;
	if (count < 0 || count > INT32_MAX) {
		PyErr_SetString(PyExc_ValueError, "more rows than can be numbered");
		return NULL;
	}
	rows.count = (size_t)count;
	if (!take_ranges(&buffers, &rows, data, at, length) || !take_columns(&buffers, &rows, columns))
		goto out;
	first = pg_new_column(rows.count * sizeof(int64_t));
	number = first ? pg_new_column(rows.count * sizeof(int32_t)) : NULL;
	if (!number)
		goto out;
	kinds = pg_distinct(&rows, (int32_t *)PyByteArray_AS_STRING(number), (int64_t *)PyByteArray_AS_STRING(first));
	if (kinds < 0)
		PyErr_NoMemory();
	else if (!PyByteArray_Resize(first, (Py_ssize_t)((size_t)kinds * sizeof(int64_t))))
		result = PyTuple_Pack(2, first, number);
out:
	Py_XDECREF(first);
	Py_XDECREF(number);
	pg_buffers_release(&buffers);
	return result;
}

enum { OUT_START, OUT_MODE, OUT_SPACE, OUT_ADDRESS, OUT_RETURNS, OUTPUTS };

static PyObject *chain_frames(const struct pg_callchains *chains)
{
	static const size_t width[OUTPUTS] = { sizeof(int64_t), 1, sizeof(int64_t), sizeof(uint64_t), 1 };
	PyObject *arrays[OUTPUTS] = { NULL }, *result = NULL;
	struct pg_chain_frames out;
	size_t room = 0, frames, i;
	bool good = true;

	for (i = 0; i < chains->count; i++)
		room += chains->length[i] ? (size_t)chains->length[i] : 1;
	for (i = 0; i < OUTPUTS && good; i++) {
		arrays[i] = pg_new_column((i == OUT_START ? chains->count + 1 : room) * width[i]);
		good = arrays[i];
	}
	if (!good)
		goto out;
	out.start = (int64_t *)PyByteArray_AS_STRING(arrays[OUT_START]);
	out.mode = (uint8_t *)PyByteArray_AS_STRING(arrays[OUT_MODE]);
	out.space = (int64_t *)PyByteArray_AS_STRING(arrays[OUT_SPACE]);
	out.address = (uint64_t *)PyByteArray_AS_STRING(arrays[OUT_ADDRESS]);
	out.returns = (uint8_t *)PyByteArray_AS_STRING(arrays[OUT_RETURNS]);
	frames = pg_callchain_frames(chains, &out);
	for (i = OUT_MODE; i < OUTPUTS && good; i++)
		good = !PyByteArray_Resize(arrays[i], (Py_ssize_t)(frames * width[i]));
	if (good)
		result = PyTuple_Pack(OUTPUTS, arrays[0], arrays[1], arrays[2], arrays[3], arrays[4]);
out:
	for (i = 0; i < OUTPUTS; i++)
		Py_XDECREF(arrays[i]);
	return result;
}

PyObject *pg_py_callchain_frames(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	struct pg_callchains chains = { .count = 0 };
	PyObject *data, *at, *length, *ip, *mode, *space, *result = NULL;
	Py_ssize_t rows;
	size_t size;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOO:callchain_frames", &data, &at, &length, &ip, &mode, &space))
		return NULL;
	chains.data = pg_buffers_take(&buffers, data, "data", 1, PG_ANY, &size);
	if (!chains.data)
		goto out;
	chains.at = pg_buffers_take(&buffers, at, "at", sizeof(*chains.at), PG_ANY, &chains.count);
	if (!chains.at)
		goto out;
	rows = (Py_ssize_t)chains.count;
	chains.length = pg_buffers_take(&buffers, length, "length", sizeof(*chains.length), rows, NULL);
	chains.ip = chains.length ? pg_buffers_take(&buffers, ip, "ip", sizeof(*chains.ip), rows, NULL) : NULL;
	chains.mode = chains.ip ? pg_buffers_take(&buffers, mode, "mode", 1, rows, NULL) : NULL;
	chains.space = chains.mode ? pg_buffers_take(&buffers, space, "space", sizeof(*chains.space), rows, NULL) : NULL;
	if (chains.space && pg_ranges_are_good(chains.at, chains.length, chains.count, 8, size))
		result = chain_frames(&chains);
out:
	pg_buffers_release(&buffers);
	return result;
}

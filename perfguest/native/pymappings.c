// SPDX-License-Identifier: Apache-2.0
#include "mappings.h"
#include "pybuffers.h"
#include "pyreading.h"
#include "timeline.h"

enum { START, END, TIME, NAME, MAPPING_STARTS, ADDRESS, ADDRESS_TIME, ADDRESS_STARTS, COLUMNS };

static const char *const names[COLUMNS] = {
	"start", "end", "time", "name", "mapping_starts", "address", "address_time", "address_starts",
};

/* starts[i] to starts[i + 1] lie within so many rows, for each i. */
static bool starts_are_good(const int64_t *starts, size_t parts, size_t rows)
{
	size_t i;

	for (i = 0; i < parts; i++) {
		if (starts[i] < 0 || starts[i] > starts[i + 1] || (uint64_t)starts[i + 1] > rows)
			break;
	}
	if (i == parts)
		return true;
	PyErr_SetString(PyExc_ValueError, "starts must ascend and end within the rows");
	return false;
}

static bool take(struct pg_buffers *buffers, PyObject *const columns[COLUMNS], const int64_t *taken[COLUMNS],
		 size_t count[COLUMNS])
{
	int i;

	for (i = 0; i < COLUMNS; i++) {
		taken[i] = pg_buffers_take(buffers, columns[i], names[i], sizeof(int64_t), PG_ANY, &count[i]);
		if (!taken[i])
			return false;
	}
	if (count[END] == count[START] && count[TIME] == count[START] && count[NAME] == count[START] &&
	    count[ADDRESS_TIME] == count[ADDRESS] && count[MAPPING_STARTS] && count[MAPPING_STARTS] == count[ADDRESS_STARTS])
		return starts_are_good(taken[MAPPING_STARTS], count[MAPPING_STARTS] - 1, count[START]) &&
		       starts_are_good(taken[ADDRESS_STARTS], count[ADDRESS_STARTS] - 1, count[ADDRESS]);
	PyErr_SetString(PyExc_ValueError, "columns of one table have as many rows");
	return false;
}

PyObject *pg_py_find_mappings(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	PyObject *columns[COLUMNS], *result = NULL;
	const int64_t *taken[COLUMNS];
	size_t count[COLUMNS], i;
	int64_t *found;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOOO:find_mappings", &columns[0], &columns[1], &columns[2], &columns[3],
			      &columns[4], &columns[5], &columns[6], &columns[7]))
		return NULL;
	if (!take(&buffers, columns, taken, count))
		goto out;
	result = pg_new_column(count[ADDRESS] * sizeof(*found));
	if (!result)
		goto out;
	found = (int64_t *)PyByteArray_AS_STRING(result);
	for (i = 0; i < count[ADDRESS]; i++)
		found[i] = -1;
	for (i = 0; i + 1 < count[MAPPING_STARTS]; i++) {
		size_t row = (size_t)taken[MAPPING_STARTS][i], at = (size_t)taken[ADDRESS_STARTS][i];
		struct pg_mappings mappings = {
			(const uint64_t *)taken[START] + row, (const uint64_t *)taken[END] + row, taken[TIME] + row,
			(size_t)taken[MAPPING_STARTS][i + 1] - row,
		};
		struct pg_addresses addresses = {
			(const uint64_t *)taken[ADDRESS] + at, taken[ADDRESS_TIME] + at,
			(size_t)taken[ADDRESS_STARTS][i + 1] - at,
		};

		pg_find_mappings(&mappings, &addresses, taken[NAME] + row, found + at);
	}
out:
	pg_buffers_release(&buffers);
	return result;
}

PyObject *pg_py_latest(PyObject *module, PyObject *args)
{
	PyObject *columns[4], *result = NULL;
	struct pg_buffers buffers = { .count = 0 };
	struct pg_timeline timeline = { .count = 0 };
	const int64_t *key, *time;
	size_t count = 0, i;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOO:latest", &columns[0], &columns[1], &columns[2], &columns[3]))
		return NULL;
	timeline.key = pg_buffers_take(&buffers, columns[0], "keys", sizeof(int64_t), PG_ANY, &timeline.count);
	if (timeline.key)
		timeline.time = pg_buffers_take(&buffers, columns[1], "times", sizeof(int64_t), (Py_ssize_t)timeline.count, NULL);
	key = timeline.time ? pg_buffers_take(&buffers, columns[2], "query_keys", sizeof(int64_t), PG_ANY, &count) : NULL;
	time = key ? pg_buffers_take(&buffers, columns[3], "query_times", sizeof(int64_t), (Py_ssize_t)count, NULL) : NULL;
	if (!time)
		goto out;
	for (i = 1; i < timeline.count; i++) {
		if (timeline.key[i] < timeline.key[i - 1] ||
		    (timeline.key[i] == timeline.key[i - 1] && timeline.time[i] < timeline.time[i - 1])) {
			PyErr_SetString(PyExc_ValueError, "entries must be sorted by key and time");
			goto out;
		}
	}
	result = pg_new_column(count * sizeof(int64_t));
	if (result)
		pg_timeline_latest(&timeline, key, time, count, (int64_t *)PyByteArray_AS_STRING(result));
out:
	pg_buffers_release(&buffers);
	return result;
}

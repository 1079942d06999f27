// SPDX-License-Identifier: Apache-2.0
#include "kallsyms.h"
#include "pybuffers.h"
#include "pyreading.h"

enum { ADDRESS, TYPE, NAME, NAME_END, LINE_END, COLUMNS };

static const size_t width_of[COLUMNS] = { sizeof(uint64_t), 1, sizeof(int64_t), sizeof(int64_t), sizeof(int64_t) };

static PyObject *read_lines(const char *text, size_t size, size_t width)
{
	size_t lines = pg_kallsyms_lines(text, size), good = 0, i;
	PyObject *columns[COLUMNS] = { NULL }, *result = NULL;
	bool made = true;

	for (i = 0; i < COLUMNS && made; i++) {
		columns[i] = pg_new_column(lines * width_of[i]);
		made = columns[i];
	}
	if (made) {
		struct pg_kallsyms out = {
			.address = (uint64_t *)PyByteArray_AS_STRING(columns[ADDRESS]),
			.type = (uint8_t *)PyByteArray_AS_STRING(columns[TYPE]),
			.name = (int64_t *)PyByteArray_AS_STRING(columns[NAME]),
			.name_end = (int64_t *)PyByteArray_AS_STRING(columns[NAME_END]),
			.line_end = (int64_t *)PyByteArray_AS_STRING(columns[LINE_END]),
		};

		good = pg_kallsyms_read(text, size, width, &out);
	}
	for (i = 0; i < COLUMNS && made; i++)
		made = !PyByteArray_Resize(columns[i], (Py_ssize_t)(good * width_of[i]));
	if (made)
		result = Py_BuildValue("nOOOOO", (Py_ssize_t)lines, columns[ADDRESS], columns[TYPE], columns[NAME],
				       columns[NAME_END], columns[LINE_END]);
	for (i = 0; i < COLUMNS; i++)
		Py_XDECREF(columns[i]);
	return result;
}

PyObject *pg_py_read_kallsyms(PyObject *module, PyObject *args)
{
	struct pg_buffers buffers = { .count = 0 };
	PyObject *object, *result = NULL;
	const char *text;
	Py_ssize_t width;
	size_t size;

	(void)module;
	if (!PyArg_ParseTuple(args, "On:read_kallsyms", &object, &width))
		return NULL;
	text = pg_buffers_take(&buffers, object, "text", 1, PG_ANY, &size);
	if (text && (width < 1 || width > 16))
		PyErr_SetString(PyExc_ValueError, "an address has 1 to 16 digits");
	else if (text)
		result = read_lines(text, size, (size_t)width);
	pg_buffers_release(&buffers);
	return result;
}

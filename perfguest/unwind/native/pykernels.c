// SPDX-License-Identifier: Apache-2.0
/* Kernels: ORC tables and text. */
#include "pytables.h"

void pg_py_free_kernel(struct pg_kernel *kernel)
{
	if (!kernel)
		return;
	PyMem_RawFree(kernel->orc.entries);
	PyMem_RawFree(kernel->texts);
	PyMem_RawFree(kernel);
}

/* Appends one table's entries. False with an exception. */
static bool add_orc(struct pg_orc_table *table, PyObject *pair)
{
	Py_buffer addresses = { 0 }, entries = { 0 };
	PyObject *first, *second;
	struct pg_orc_entry *grown;
	size_t count, i;
	bool good = false;

	if (!PyArg_ParseTuple(pair, "OO", &first, &second))
		return false;
	if (!pg_py_get_array(first, sizeof(uint64_t), "orc addresses", &addresses))
		return false;
	if (PyObject_GetBuffer(second, &entries, PyBUF_ND))
		goto release_addresses;
	count = (size_t)addresses.len / sizeof(uint64_t);
	if ((size_t)entries.len != count * PG_ORC_ENTRY_SIZE) {
		PyErr_SetString(PyExc_ValueError, "orc: not as many entries as addresses");
		goto release_entries;
	}
	grown = PyMem_RawRealloc(table->entries, (table->count + count + 1) * sizeof(*grown));
	if (!grown) {
		PyErr_NoMemory();
		goto release_entries;
	}
	table->entries = grown;
	for (i = 0; i < count; i++) {
		struct pg_orc_entry *entry = &grown[table->count + i];

		memcpy(&entry->address, (char *)addresses.buf + i * sizeof(uint64_t),
		       sizeof(uint64_t));
		memcpy(entry->bytes, (char *)entries.buf + i * PG_ORC_ENTRY_SIZE,
		       PG_ORC_ENTRY_SIZE);
	}
	table->count += count;
	good = true;
release_entries:
	PyBuffer_Release(&entries);
release_addresses:
	PyBuffer_Release(&addresses);
	return good;
}

static int compare_texts(const void *a, const void *b)
{
	const struct pg_text *left = a, *right = b;

	return (left->address > right->address) - (left->address < right->address);
}

static bool add_texts(struct unwinder_object *self, struct pg_kernel *kernel, PyObject *texts)
{
	Py_ssize_t count = PySequence_Fast_GET_SIZE(texts), i;

	kernel->texts = PyMem_RawCalloc((size_t)count + 1, sizeof(*kernel->texts));
	if (!kernel->texts) {
		PyErr_NoMemory();
		return false;
	}
	for (i = 0; i < count; i++) {
		struct pg_text *text = &kernel->texts[i];
		unsigned long long address;
		PyObject *code;
		size_t size;

		if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(texts, i), "KO", &address, &code) ||
		    !pg_py_hold(self, code, &text->code, &size))
			return false;
		text->address = address;
		text->size = size;
	}
	kernel->text_count = (size_t)count;
	qsort(kernel->texts, kernel->text_count, sizeof(*kernel->texts), compare_texts);
	return true;
}

static struct pg_kernel *make_kernel(struct unwinder_object *self, PyObject *orc, int layout,
				     PyObject *texts)
{
	struct pg_kernel *kernel = PyMem_RawCalloc(1, sizeof(*kernel));
	Py_ssize_t i;

	if (!kernel) {
		PyErr_NoMemory();
		return NULL;
	}
	kernel->orc.layout = layout;
	for (i = 0; i < PySequence_Fast_GET_SIZE(orc); i++)
		if (!add_orc(&kernel->orc, PySequence_Fast_GET_ITEM(orc, i)))
			goto free_kernel;
	pg_orc_sort(&kernel->orc);
	if (add_texts(self, kernel, texts))
		return kernel;
free_kernel:
	pg_py_free_kernel(kernel);
	return NULL;
}

PyObject *pg_py_add_kernel(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "orc", "layout", "text", NULL };
	PyObject *orc, *texts;
	struct pg_kernel *kernel = NULL;
	Py_ssize_t number = -1;
	int layout;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OiO", names, &orc, &layout, &texts))
		return NULL;
	if (layout < PG_ORC_V1 || layout > PG_ORC_LAST)
		return PyErr_Format(PyExc_ValueError, "no such layout of ORC entries: %d", layout);
	orc = PySequence_Fast(orc, "orc: a sequence is wanted");
	texts = orc ? PySequence_Fast(texts, "text: a sequence is wanted") : NULL;
	if (texts) {
		pg_py_lock(self);
		kernel = make_kernel(self, orc, layout, texts);
		if (kernel)
			number = pg_py_append((void ***)&self->unwinder.kernels,
					&self->unwinder.kernel_count, kernel);
		if (number < 0)
			pg_py_free_kernel(kernel);
		pg_py_unlock(self);
	}
	Py_XDECREF(texts);
	Py_XDECREF(orc);
	return number < 0 ? NULL : PyLong_FromSsize_t(number);
}

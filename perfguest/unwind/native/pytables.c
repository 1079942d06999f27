// SPDX-License-Identifier: Apache-2.0
#include "pytables.h"

void pg_py_lock(struct unwinder_object *self)
{
	Py_BEGIN_ALLOW_THREADS
	PyThread_acquire_lock(self->lock, WAIT_LOCK);
	Py_END_ALLOW_THREADS
}

void pg_py_unlock(struct unwinder_object *self)
{
	PyThread_release_lock(self->lock);
}

bool pg_py_get_array(PyObject *object, Py_ssize_t item, const char *name, Py_buffer *view)
{
	if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_FORMAT))
		return false;
	if ((view->itemsize == item || view->itemsize == 1) && view->len % item == 0)
		return true;
	PyErr_Format(PyExc_ValueError, "%s: items of %zd bytes are wanted", name, item);
	PyBuffer_Release(view);
	return false;
}

/* The bytes of an object that is held from now on. False with an exception. */
static bool hold(struct unwinder_object *self, PyObject *object, const uint8_t **data, size_t *size)
{
	PyObject *view = PyMemoryView_FromObject(object);
	int err;

	if (!view)
		return false;
	if (!PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(view), 'C')) {
		PyErr_SetString(PyExc_ValueError, "a C-contiguous buffer is wanted");
		Py_DECREF(view);
		return false;
	}
	*data = PyMemoryView_GET_BUFFER(view)->buf;
	*size = (size_t)PyMemoryView_GET_BUFFER(view)->len;
	err = PyList_Append(self->held, view);
	Py_DECREF(view);
	return !err;
}

/* Puts item behind count others; its number, or -1 with an exception. */
static Py_ssize_t append(void ***items, size_t *count, void *item)
{
	void **grown;

	if (*count >= INT32_MAX / 4) {
		PyErr_SetString(PyExc_OverflowError, "too many tables");
		return -1;
	}
	grown = PyMem_RawRealloc(*items, (*count + 1) * sizeof(*grown));
	if (!grown) {
		PyErr_NoMemory();
		return -1;
	}
	*items = grown;
	grown[*count] = item;
	return (Py_ssize_t)(*count)++;
}

static void free_kernel(struct pg_kernel *kernel)
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
		    !hold(self, code, &text->code, &size))
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
	free_kernel(kernel);
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
			number = append((void ***)&self->unwinder.kernels,
					&self->unwinder.kernel_count, kernel);
		if (number < 0)
			free_kernel(kernel);
		pg_py_unlock(self);
	}
	Py_XDECREF(texts);
	Py_XDECREF(orc);
	return number < 0 ? NULL : PyLong_FromSsize_t(number);
}

static void free_binary(struct pg_binary *binary)
{
	if (!binary)
		return;
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
		    !hold(self, data, &runs[i].data, &size))
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

PyObject *pg_py_add_binary(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "size", "runs", "eh_frame", "debug_frame", NULL };
	PyObject *runs, *eh_frame = Py_None, *debug_frame = Py_None;
	struct pg_binary *binary;
	unsigned long long size;
	Py_ssize_t number = -1;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KO|OO", names, &size, &runs, &eh_frame,
					 &debug_frame))
		return NULL;
	runs = PySequence_Fast(runs, "runs: a sequence is wanted");
	if (!runs)
		return NULL;
	pg_py_lock(self);
	binary = PyMem_RawCalloc(1, sizeof(*binary));
	if (!binary) {
		PyErr_NoMemory();
	} else if (take_section(eh_frame, "eh_frame", &binary->sections[PG_EH_FRAME]) &&
		   take_section(debug_frame, "debug_frame", &binary->sections[PG_DEBUG_FRAME]) &&
		   take_runs(self, &binary->file, runs)) {
		binary->file.size = size;
		pg_binary_init(binary);
		number = append((void ***)&self->unwinder.binaries, &self->unwinder.binary_count,
				binary);
	}
	if (number < 0)
		free_binary(binary);
	pg_py_unlock(self);
	Py_DECREF(runs);
	return number < 0 ? NULL : PyLong_FromSsize_t(number);
}

static void free_space(struct pg_space *space)
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
	free_space(space);
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
		number = append((void ***)&self->unwinder.spaces, &self->unwinder.space_count, space);
	if (number < 0)
		free_space(space);
	pg_py_unlock(self);
release:
	while (got--)
		PyBuffer_Release(&columns[got]);
	return number < 0 ? NULL : PyLong_FromSsize_t(number);
}

PyObject *pg_py_build_rule(const struct pg_rule *rule)
{
	PyObject *saved, *one, *result;
	unsigned int i;

	if (rule->kind == PG_RULE_STOP)
		return Py_BuildValue("{s:i}", "end", rule->end);
	saved = PyDict_New();
	for (i = 0; saved && i < rule->count; i++) {
		const struct pg_saved *s = &rule->saved[i];
		PyObject *key = PyLong_FromLong(s->reg);

		one = Py_BuildValue("iii", s->kind, s->offset, s->size);
		if (!key || !one || PyDict_SetItem(saved, key, one))
			Py_CLEAR(saved);
		Py_XDECREF(key);
		Py_XDECREF(one);
	}
	if (!saved)
		return NULL;
	result = Py_BuildValue("{s:i,s:O,s:i,s:i,s:i,s:i,s:I,s:O}", "kind", rule->kind,
			       "exact", rule->exact ? Py_True : Py_False,
			       "cfa_kind", rule->cfa_kind, "cfa_register", rule->cfa_register,
			       "cfa_offset", rule->cfa_offset, "cfa_size", rule->cfa_size,
			       "forgotten", rule->forgotten, "saved", saved);
	Py_DECREF(saved);
	return result;
}

PyObject *pg_py_kernel_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "kernel", "address", NULL };
	unsigned long long address;
	PyObject *result = NULL;
	unsigned int number;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IK", names, &number, &address))
		return NULL;
	pg_py_lock(self);
	if (number < self->unwinder.kernel_count)
		result = pg_py_build_rule(pg_kernel_rule(&self->unwinder, number, address));
	else
		PyErr_Format(PyExc_ValueError, "no kernel has the number %u", number);
	pg_py_unlock(self);
	return result;
}

PyObject *pg_py_binary_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "binary", "vaddr", NULL };
	unsigned long long vaddr;
	PyObject *result = NULL;
	unsigned int number;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IK", names, &number, &vaddr))
		return NULL;
	pg_py_lock(self);
	if (number < self->unwinder.binary_count)
		result = pg_py_build_rule(pg_user_rule(&self->unwinder, number, vaddr));
	else
		PyErr_Format(PyExc_ValueError, "no binary has the number %u", number);
	pg_py_unlock(self);
	return result;
}

void pg_py_free_tables(struct unwinder_object *self)
{
	struct pg_unwinder *unwinder = &self->unwinder;
	size_t i;

	for (i = 0; i < unwinder->kernel_count; i++)
		free_kernel(unwinder->kernels[i]);
	for (i = 0; i < unwinder->binary_count; i++)
		free_binary(unwinder->binaries[i]);
	for (i = 0; i < unwinder->space_count; i++)
		free_space(unwinder->spaces[i]);
	PyMem_RawFree(unwinder->kernels);
	PyMem_RawFree(unwinder->binaries);
	PyMem_RawFree(unwinder->spaces);
}

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

bool pg_py_hold(struct unwinder_object *self, PyObject *object, const uint8_t **data, size_t *size)
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

Py_ssize_t pg_py_append(void ***items, size_t *count, void *item)
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
		result = pg_py_build_rule(&pg_user_rule(&self->unwinder, number, vaddr)->rule);
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
		pg_py_free_kernel(unwinder->kernels[i]);
	for (i = 0; i < unwinder->binary_count; i++)
		pg_py_free_binary(unwinder->binaries[i]);
	for (i = 0; i < unwinder->space_count; i++)
		pg_py_free_space(unwinder->spaces[i]);
	PyMem_RawFree(unwinder->kernels);
	PyMem_RawFree(unwinder->binaries);
	PyMem_RawFree(unwinder->spaces);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The Unwinder's object, and how tables get into it. */
#ifndef PERFGUEST_UNWIND_PYTABLES_H
#define PERFGUEST_UNWIND_PYTABLES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "unwinder.h"

struct unwinder_object {
	PyObject_HEAD
	struct pg_unwinder unwinder;
	PyObject *held;			/* list of what the tables point into */
	PyThread_type_lock lock;	/* walks run without the interpreter's lock */
};

/* Waits for a walk in another thread. */
void pg_py_lock(struct unwinder_object *self);
void pg_py_unlock(struct unwinder_object *self);

/*
 * A C-contiguous buffer of items of that size, or of plain bytes that are a
 * multiple of it. False with an exception.
 */
bool pg_py_get_array(PyObject *object, Py_ssize_t item, const char *name, Py_buffer *view);

PyObject *pg_py_add_kernel(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_add_binary(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_add_space(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_kernel_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
/* A rule as Python sees it: for tests and for looking into tables by hand. */
PyObject *pg_py_build_rule(const struct pg_rule *rule);

PyObject *pg_py_binary_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs);

void pg_py_free_tables(struct unwinder_object *self);

#endif

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

/* The bytes of an object that is held from now on. False with an exception. */
bool pg_py_hold(struct unwinder_object *self, PyObject *object, const uint8_t **data, size_t *size);

/* Puts item behind count others; its number, or -1 with an exception. */
Py_ssize_t pg_py_append(void ***items, size_t *count, void *item);

PyObject *pg_py_add_kernel(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_add_binary(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_add_space(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_kernel_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
/* A rule as Python sees it: for tests and for looking into tables by hand. */
PyObject *pg_py_build_rule(const struct pg_rule *rule);

PyObject *pg_py_binary_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs);

/* Each also takes NULL. */
void pg_py_free_kernel(struct pg_kernel *kernel);
void pg_py_free_binary(struct pg_binary *binary);
void pg_py_free_space(struct pg_space *space);
void pg_py_free_tables(struct unwinder_object *self);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PG_PYREADING_H
#define PG_PYREADING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *pg_py_walk_records(PyObject *module, PyObject *args);
PyObject *pg_py_gather(PyObject *module, PyObject *args);
PyObject *pg_py_distinct(PyObject *module, PyObject *args);
PyObject *pg_py_callchain_frames(PyObject *module, PyObject *args);
PyObject *pg_py_find_mappings(PyObject *module, PyObject *args);
PyObject *pg_py_latest(PyObject *module, PyObject *args);
PyObject *pg_py_read_kallsyms(PyObject *module, PyObject *args);

#endif

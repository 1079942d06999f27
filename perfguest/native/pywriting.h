/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PG_PYWRITING_H
#define PG_PYWRITING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *pg_py_fold(PyObject *module, PyObject *args);
PyObject *pg_py_hexadecimal(PyObject *module, PyObject *args);
PyObject *pg_py_pprof_locations(PyObject *module, PyObject *args);
PyObject *pg_py_pprof_samples(PyObject *module, PyObject *args);
PyObject *pg_py_script(PyObject *module, PyObject *args);

#endif

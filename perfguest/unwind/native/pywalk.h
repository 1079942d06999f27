/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PERFGUEST_UNWIND_PYWALK_H
#define PERFGUEST_UNWIND_PYWALK_H

#include "pytables.h"

PyObject *pg_py_walk(struct unwinder_object *self, PyObject *args, PyObject *kwargs);
PyObject *pg_py_scan(struct unwinder_object *self, PyObject *args, PyObject *kwargs);

#endif

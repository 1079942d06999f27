/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PERFGUEST_UNWIND_PYCODE_H
#define PERFGUEST_UNWIND_PYCODE_H

#include "pytables.h"

PyObject *pg_py_code_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs);

#endif

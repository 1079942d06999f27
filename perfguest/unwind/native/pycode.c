// SPDX-License-Identifier: Apache-2.0
/* Rules made from code, for tests and for looking into them by hand. */
#include "pycode.h"
#include "code_rule.h"

PyObject *pg_py_code_rule(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "binary", "offset", "returned", "entry", NULL };
	unsigned long long offset, entry = 0;
	PyObject *since = Py_None, *result = NULL;
	struct pg_rule rule;
	unsigned int number;
	int returned;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IKp|O", names, &number, &offset, &returned,
					 &since))
		return NULL;
	if (since != Py_None) {
		entry = PyLong_AsUnsignedLongLong(since);
		if (PyErr_Occurred())
			return NULL;
	}
	pg_py_lock(self);
	if (number >= self->unwinder.binary_count) {
		PyErr_Format(PyExc_ValueError, "no binary has the number %u", number);
	} else {
		const struct pg_binary *binary = self->unwinder.binaries[number];

		if (since == Py_None)
			pg_code_rule(self->unwinder.search, binary, offset,
				     returned ? PG_CODE_RETURNED : PG_CODE_INTERRUPTED, &rule);
		else
			pg_code_rule_since(self->unwinder.search, binary, entry, offset, &rule);
		result = pg_py_build_rule(&rule);
	}
	pg_py_unlock(self);
	return result;
}

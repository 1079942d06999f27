// SPDX-License-Identifier: Apache-2.0
/* The Python binding; perfguest/_native.pyi tells of its use. */
#include <limits.h>
#include <malloc.h>

#include "pyreading.h"
#include "pywriting.h"

static PyObject *reuse_memory(PyObject *module, PyObject *args)
{
	(void)module;
	(void)args;
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, INT_MAX);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{ "walk_records", pg_py_walk_records, METH_VARARGS, NULL },
	{ "gather", pg_py_gather, METH_VARARGS, NULL },
	{ "distinct", pg_py_distinct, METH_VARARGS, NULL },
	{ "callchain_frames", pg_py_callchain_frames, METH_VARARGS, NULL },
	{ "find_mappings", pg_py_find_mappings, METH_VARARGS, NULL },
	{ "latest", pg_py_latest, METH_VARARGS, NULL },
	{ "read_kallsyms", pg_py_read_kallsyms, METH_VARARGS, NULL },
	{ "fold", pg_py_fold, METH_VARARGS, NULL },
	{ "hexadecimal", pg_py_hexadecimal, METH_VARARGS, NULL },
	{ "pprof_locations", pg_py_pprof_locations, METH_VARARGS, NULL },
	{ "pprof_samples", pg_py_pprof_samples, METH_VARARGS, NULL },
	{ "script", pg_py_script, METH_VARARGS, NULL },
	{ "reuse_memory", reuse_memory, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef native_module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "perfguest._native",
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&native_module);
}

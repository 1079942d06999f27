// SPDX-License-Identifier: Apache-2.0
/*
 * The Python binding; _native.pyi tells of its use. Tables are not copied: the
 * buffers they came in are held for as long as the Unwinder lives, as
 * memoryviews in a list.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "code_search.h"
#include "pycode.h"
#include "pytables.h"
#include "pywalk.h"
#include "walk.h"

static PyObject *unwinder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	struct unwinder_object *self;

	if (PyTuple_GET_SIZE(args) || (kwargs && PyDict_GET_SIZE(kwargs))) {
		PyErr_SetString(PyExc_TypeError, "Unwinder() takes no arguments");
		return NULL;
	}
	self = (struct unwinder_object *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->held = PyList_New(0);
	self->lock = PyThread_allocate_lock();
	self->unwinder.search = PyMem_RawCalloc(1, sizeof(*self->unwinder.search));
	if (!pg_rule_cache_init(&self->unwinder.cache) || !self->held || !self->lock ||
	    !self->unwinder.search) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	self->unwinder.search->credit = PG_CODE_CREDIT;
	return (PyObject *)self;
}

static void unwinder_dealloc(struct unwinder_object *self)
{
	PyTypeObject *type = Py_TYPE(self);

	pg_py_free_tables(self);
	pg_rule_cache_deinit(&self->unwinder.cache);
	PyMem_RawFree(self->unwinder.search);
	if (self->lock)
		PyThread_free_lock(self->lock);
	Py_XDECREF(self->held);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef unwinder_methods[] = {
	{ "add_kernel", (PyCFunction)(void (*)(void))pg_py_add_kernel,
	  METH_VARARGS | METH_KEYWORDS, NULL },
	{ "add_binary", (PyCFunction)(void (*)(void))pg_py_add_binary,
	  METH_VARARGS | METH_KEYWORDS, NULL },
	{ "add_space", (PyCFunction)(void (*)(void))pg_py_add_space,
	  METH_VARARGS | METH_KEYWORDS, NULL },
	{ "walk", (PyCFunction)(void (*)(void))pg_py_walk, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "scan", (PyCFunction)(void (*)(void))pg_py_scan, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "kernel_rule", (PyCFunction)(void (*)(void))pg_py_kernel_rule,
	  METH_VARARGS | METH_KEYWORDS, NULL },
	{ "binary_rule", (PyCFunction)(void (*)(void))pg_py_binary_rule,
	  METH_VARARGS | METH_KEYWORDS, NULL },
	{ "code_rule", (PyCFunction)(void (*)(void))pg_py_code_rule,
	  METH_VARARGS | METH_KEYWORDS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot unwinder_slots[] = {
	{ Py_tp_new, unwinder_new },
	{ Py_tp_dealloc, unwinder_dealloc },
	{ Py_tp_methods, unwinder_methods },
	{ 0, NULL },
};

static PyType_Spec unwinder_spec = {
	.name = "perfguest.unwind._native.Unwinder",
	.basicsize = sizeof(struct unwinder_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = unwinder_slots,
};

static const struct {
	const char *name;
	long value;
} constants[] = {
	{ "ORC_V1", PG_ORC_V1 },
	{ "ORC_V2", PG_ORC_V2 },
	{ "ORC_V3", PG_ORC_V3 },
	{ "ORC_V4", PG_ORC_V4 },
	{ "ORC_V5", PG_ORC_V5 },
	{ "ORC_V6", PG_ORC_V6 },
	{ "HOW_REGISTER", PG_HOW_REGISTER },
	{ "HOW_ORC", PG_HOW_ORC },
	{ "HOW_CFI", PG_HOW_CFI },
	{ "HOW_FP", PG_HOW_FP },
	{ "HOW_SCAN", PG_HOW_SCAN },
	{ "HOW_RETURN", PG_HOW_RETURN },
	{ "HOW_CODE", PG_HOW_CODE },
	{ "HOW_KEPT", PG_HOW_KEPT },
	{ "FRAME_RETURN", PG_FRAME_RETURN },
	{ "FRAME_USER", PG_FRAME_USER },
	{ "MODE_KERNEL", PG_MODE_KERNEL },
	{ "MODE_USER", PG_MODE_USER },
	{ "MODE_SKIP", PG_MODE_SKIP },
	{ "END_NONE", PG_END_NONE },
	{ "END_USER_ENTRY", PG_END_USER_ENTRY },
	{ "END_THREAD_START", PG_END_THREAD_START },
	{ "END_START", PG_END_START },
	{ "END_CUT", PG_END_CUT },
	{ "END_NO_MAPPING", PG_END_NO_MAPPING },
	{ "END_NO_TABLE", PG_END_NO_TABLE },
	{ "END_NO_RULE", PG_END_NO_RULE },
	{ "END_PAGES", PG_END_PAGES },
	{ "END_BAD", PG_END_BAD },
	{ "END_EXPRESSION", PG_END_EXPRESSION },
	{ "END_DEPTH", PG_END_DEPTH },
	{ "END_COMPAT", PG_END_COMPAT },
};

static int native_exec(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&unwinder_spec);
	size_t i;
	int err;

	if (!type)
		return -1;
	err = PyModule_AddObjectRef(module, "Unwinder", type);
	Py_DECREF(type);
	for (i = 0; !err && i < sizeof(constants) / sizeof(constants[0]); i++)
		err = PyModule_AddIntConstant(module, constants[i].name, constants[i].value);
	return err;
}

static PyModuleDef_Slot native_slots[] = {
	{ Py_mod_exec, native_exec },
	{ 0, NULL },
};

static struct PyModuleDef native_module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "perfguest.unwind._native",
	.m_slots = native_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&native_module);
}

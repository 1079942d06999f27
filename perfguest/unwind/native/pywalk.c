// SPDX-License-Identifier: Apache-2.0
/* Columns of samples in, columns of frames out. */
#include "pywalk.h"
#include "walk.h"

#define MAX_DEPTH	65536

enum {
	MEMORY, REGISTERS, MODE, KERNEL, SPACE,
	COPY_START, COPY_ADDRESS, COPY_OFFSET, COPY_SIZE,
	COLUMNS,
};

static char *names[] = {
	"memory", "registers", "mode", "kernel", "space",
	"copy_start", "copy_address", "copy_offset", "copy_size", "max_depth", NULL,
};

static const Py_ssize_t items[COLUMNS] = { 1, PG_REGISTERS * 8, 1, 4, 4, 8, 8, 8, 8 };

struct input {
	Py_buffer columns[COLUMNS];
	int got;
	size_t samples;
	size_t copy_count;
	struct pg_copy *copies;
	int max_depth;
};

struct output {
	int64_t *start;
	uint8_t *kernel_end;
	uint8_t *user_end;
	uint64_t *address;
	uint8_t *how;
	size_t count;
	size_t room;
};

static void release_input(struct input *in)
{
	PyMem_RawFree(in->copies);
	while (in->got--)
		PyBuffer_Release(&in->columns[in->got]);
}

static size_t length_of(const struct input *in, int column)
{
	return (size_t)(in->columns[column].len / items[column]);
}

static bool numbers_are_good(const struct input *in, int column, size_t count)
{
	const int32_t *numbers = in->columns[column].buf;
	size_t i;

	for (i = 0; i < in->samples; i++) {
		if (numbers[i] >= 0 && (size_t)numbers[i] >= count) {
			PyErr_Format(PyExc_ValueError, "%s: no such number: %d", names[column],
				     numbers[i]);
			return false;
		}
	}
	return true;
}

static bool starts_are_good(const struct input *in)
{
	const int64_t *start = in->columns[COPY_START].buf;
	size_t i;

	for (i = 0; i < in->samples; i++)
		if (start[i] < 0 || start[i + 1] < start[i])
			break;
	if (i == in->samples && (size_t)start[i] <= in->copy_count)
		return true;
	PyErr_SetString(PyExc_ValueError, "copy_start must ascend and end with the copies");
	return false;
}

static bool make_copies(struct input *in)
{
	const uint64_t *address = in->columns[COPY_ADDRESS].buf;
	const int64_t *offset = in->columns[COPY_OFFSET].buf;
	const int64_t *size = in->columns[COPY_SIZE].buf;
	const uint8_t *memory = in->columns[MEMORY].buf;
	int64_t total = in->columns[MEMORY].len;
	size_t i;

	in->copies = PyMem_RawCalloc(in->copy_count + 1, sizeof(*in->copies));
	if (!in->copies) {
		PyErr_NoMemory();
		return false;
	}
	for (i = 0; i < in->copy_count; i++) {
		if (size[i] < 0 || offset[i] < 0 || size[i] > total || offset[i] > total - size[i] ||
		    address[i] + (uint64_t)size[i] < address[i]) {
			PyErr_Format(PyExc_ValueError, "copy %zu is not within the memory", i);
			return false;
		}
		in->copies[i] = (struct pg_copy){ address[i], memory + offset[i], (uint64_t)size[i] };
	}
	return true;
}

static bool check_lengths(struct input *in)
{
	int column;

	in->samples = length_of(in, MODE);
	in->copy_count = length_of(in, COPY_ADDRESS);
	for (column = REGISTERS; column < COLUMNS; column++) {
		size_t wanted = column < COPY_START ? in->samples : in->copy_count;

		if (column == COPY_START)
			wanted = in->samples + 1;
		if (length_of(in, column) != wanted) {
			PyErr_Format(PyExc_ValueError, "%s: %zu rows are wanted, there are %zu",
				     names[column], wanted, length_of(in, column));
			return false;
		}
	}
	return true;
}

/* False with an exception; release_input() either way. */
static bool parse_input(struct unwinder_object *self, PyObject *args, PyObject *kwargs,
			struct input *in)
{
	PyObject *o[COLUMNS];

	memset(in, 0, sizeof(*in));
	in->max_depth = 512;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOOOO|i", names, &o[0], &o[1], &o[2],
					 &o[3], &o[4], &o[5], &o[6], &o[7], &o[8], &in->max_depth))
		return false;
	if (in->max_depth < 1 || in->max_depth > MAX_DEPTH) {
		PyErr_Format(PyExc_ValueError, "max_depth: 1 to %d", MAX_DEPTH);
		return false;
	}
	for (; in->got < COLUMNS; in->got++) {
		/* Of registers each item is a number, and a row has 17 of them. */
		Py_ssize_t item = in->got == REGISTERS ? 8 : items[in->got];

		if (!pg_py_get_array(o[in->got], item, names[in->got], &in->columns[in->got]))
			return false;
	}
	if (in->columns[REGISTERS].len % items[REGISTERS]) {
		PyErr_SetString(PyExc_ValueError, "registers: rows of 17 are wanted");
		return false;
	}
	return check_lengths(in) && starts_are_good(in) && make_copies(in) &&
	       numbers_are_good(in, KERNEL, self->unwinder.kernel_count) &&
	       numbers_are_good(in, SPACE, self->unwinder.space_count);
}

static void free_output(struct output *out)
{
	PyMem_RawFree(out->start);
	PyMem_RawFree(out->kernel_end);
	PyMem_RawFree(out->user_end);
	PyMem_RawFree(out->address);
	PyMem_RawFree(out->how);
}

static bool make_output(struct output *out, size_t samples)
{
	memset(out, 0, sizeof(*out));
	out->start = PyMem_RawCalloc(samples + 1, sizeof(*out->start));
	out->kernel_end = PyMem_RawCalloc(samples + 1, 1);
	out->user_end = PyMem_RawCalloc(samples + 1, 1);
	return out->start && out->kernel_end && out->user_end;
}

/* Room for one more sample's frames, so that the walk need not ask. */
static bool make_room(struct output *out, size_t more)
{
	size_t room = out->room + out->room / 2 + 16 * more;
	uint64_t *address;
	uint8_t *how;

	if (out->room - out->count >= more)
		return true;
	address = PyMem_RawRealloc(out->address, room * sizeof(*address));
	if (address)
		out->address = address;
	how = PyMem_RawRealloc(out->how, room);
	if (how)
		out->how = how;
	if (!address || !how)
		return false;
	out->room = room;
	return true;
}

typedef struct pg_ends (*walk_fn)(struct pg_unwinder *, const struct pg_sample *,
				  struct pg_frames *);

/* Runs without the interpreter's lock. False: out of memory. */
static bool run(struct pg_unwinder *unwinder, const struct input *in, struct output *out,
		walk_fn walk)
{
	const uint64_t *registers = in->columns[REGISTERS].buf;
	const uint8_t *mode = in->columns[MODE].buf;
	const int32_t *kernel = in->columns[KERNEL].buf, *space = in->columns[SPACE].buf;
	const int64_t *start = in->columns[COPY_START].buf;
	size_t i;

	for (i = 0; i < in->samples; i++) {
		struct pg_sample sample = {
			.regs = registers + i * PG_REGISTERS,
			.mode = mode[i],
			.kernel = kernel[i],
			.space = space[i],
			.copies = in->copies + start[i],
			.copy_count = (size_t)(start[i + 1] - start[i]),
		};
		struct pg_frames frames = { .max_depth = (uint32_t)in->max_depth };
		struct pg_ends ends;

		if (!make_room(out, (size_t)in->max_depth))
			return false;
		frames.address = out->address + out->count;
		frames.how = out->how + out->count;
		ends = walk(unwinder, &sample, &frames);
		out->kernel_end[i] = ends.kernel;
		out->user_end[i] = ends.user;
		out->count += frames.count;
		out->start[i + 1] = (int64_t)out->count;
	}
	return true;
}

static PyObject *bytes_of(const void *data, size_t size)
{
	return PyByteArray_FromStringAndSize(data, (Py_ssize_t)size);
}

static PyObject *build_result(const struct output *out, size_t samples)
{
	return Py_BuildValue("NNNNN", bytes_of(out->start, (samples + 1) * sizeof(*out->start)),
			     bytes_of(out->address, out->count * sizeof(*out->address)),
			     bytes_of(out->how, out->count), bytes_of(out->kernel_end, samples),
			     bytes_of(out->user_end, samples));
}

static PyObject *walk_all(struct unwinder_object *self, PyObject *args, PyObject *kwargs,
			  walk_fn walk)
{
	PyObject *result = NULL;
	struct output out;
	struct input in;
	bool good;

	if (!parse_input(self, args, kwargs, &in))
		goto release_input;
	good = make_output(&out, in.samples);
	if (good) {
		Py_BEGIN_ALLOW_THREADS
		PyThread_acquire_lock(self->lock, WAIT_LOCK);
		good = run(&self->unwinder, &in, &out, walk);
		PyThread_release_lock(self->lock);
		Py_END_ALLOW_THREADS
	}
	result = good ? build_result(&out, in.samples) : PyErr_NoMemory();
	free_output(&out);
release_input:
	release_input(&in);
	return result;
}

PyObject *pg_py_walk(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	return walk_all(self, args, kwargs, pg_walk);
}

PyObject *pg_py_scan(struct unwinder_object *self, PyObject *args, PyObject *kwargs)
{
	return walk_all(self, args, kwargs, pg_scan);
}

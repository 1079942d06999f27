// SPDX-License-Identifier: Apache-2.0
/* Columns of samples in, columns of frames out. */
#include "pywalk.h"
#include "walk.h"

#define MAX_DEPTH	65536
#define FRAMES_AT_FIRST	16	/* room for so many a sample, more when that is used up */

#define PREFETCH_DISTANCE	4	/* samples: what they take is longer than memory takes */
#define MAX_PREFETCHED		32	/* frames of a stack */
#define RETURN_ADDRESS_SIZE	8

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
	size_t most_copies;	/* of one sample */
	int max_depth;
};

/* Written in place, so that no page of them is touched twice. */
enum { OUT_START, OUT_ADDRESS, OUT_HOW, OUT_KERNEL_END, OUT_USER_END, OUTPUTS };

struct output {
	PyObject *arrays[OUTPUTS];	/* bytearrays */
	size_t samples;			/* that are walked */
	size_t count;			/* of frames */
	size_t room;			/* for frames */
};

static void release_input(struct input *in)
{
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

static bool starts_are_good(struct input *in)
{
	const int64_t *start = in->columns[COPY_START].buf;
	size_t i;

	for (i = 0; i < in->samples; i++) {
		if (start[i] < 0 || start[i + 1] < start[i])
			break;
		if ((size_t)(start[i + 1] - start[i]) > in->most_copies)
			in->most_copies = (size_t)(start[i + 1] - start[i]);
	}
	if (i == in->samples && (size_t)start[i] <= in->copy_count)
		return true;
	PyErr_SetString(PyExc_ValueError, "copy_start must ascend and end with the copies");
	return false;
}

static bool copies_are_good(const struct input *in)
{
	const uint64_t *address = in->columns[COPY_ADDRESS].buf;
	const int64_t *offset = in->columns[COPY_OFFSET].buf;
	const int64_t *size = in->columns[COPY_SIZE].buf;
	int64_t total = in->columns[MEMORY].len;
	size_t i;

	for (i = 0; i < in->copy_count; i++) {
		if (size[i] < 0 || offset[i] < 0 || size[i] > total || offset[i] > total - size[i] ||
		    address[i] + (uint64_t)size[i] < address[i]) {
			PyErr_Format(PyExc_ValueError, "copy %zu is not within the memory", i);
			return false;
		}
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
	return check_lengths(in) && starts_are_good(in) && copies_are_good(in) &&
	       numbers_are_good(in, KERNEL, self->unwinder.kernel_count) &&
	       numbers_are_good(in, SPACE, self->unwinder.space_count);
}

static void release_output(struct output *out)
{
	int i;

	for (i = 0; i < OUTPUTS; i++)
		Py_CLEAR(out->arrays[i]);
}

/* False with an exception; release_output() either way. */
static bool make_output(struct output *out, size_t samples)
{
	const size_t sizes[OUTPUTS] = {
		[OUT_START] = (samples + 1) * sizeof(int64_t),
		[OUT_KERNEL_END] = samples, [OUT_USER_END] = samples,
	};
	int i;

	memset(out, 0, sizeof(*out));
	for (i = 0; i < OUTPUTS; i++) {
		out->arrays[i] = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)sizes[i]);
		if (!out->arrays[i])
			return false;
	}
	*(int64_t *)PyByteArray_AS_STRING(out->arrays[OUT_START]) = 0;
	return true;
}

static bool set_room(struct output *out, size_t room)
{
	out->room = room;
	return !PyByteArray_Resize(out->arrays[OUT_ADDRESS], (Py_ssize_t)(room * sizeof(uint64_t))) &&
	       !PyByteArray_Resize(out->arrays[OUT_HOW], (Py_ssize_t)room);
}

/* Of the sample that is walked. */
struct scratch {
	struct pg_copy *copies;
	uint64_t *sp;
};

typedef struct pg_ends (*walk_fn)(struct pg_unwinder *, const struct pg_sample *,
				  struct pg_frames *);

/* The copies of a sample: what they are taken from was checked. */
static size_t find_copies(const struct input *in, size_t sample, struct pg_copy *copies)
{
	const int64_t *start = in->columns[COPY_START].buf;
	const uint64_t *address = in->columns[COPY_ADDRESS].buf;
	const int64_t *offset = in->columns[COPY_OFFSET].buf;
	const int64_t *size = in->columns[COPY_SIZE].buf;
	const uint8_t *memory = in->columns[MEMORY].buf;
	size_t count = 0;
	int64_t i;

	for (i = start[sample]; i < start[sample + 1]; i++)
		copies[count++] = (struct pg_copy){ address[i], memory + offset[i], (uint64_t)size[i] };
	return count;
}

/*
 * Nearly all that a walk waits for is the stack, which comes from main memory.
 * Most of a thread's outer frames are where they were a few samples before.
 */
static void prefetch(const struct input *in, size_t sample, const struct pg_frames *frames)
{
	const int64_t *start = in->columns[COPY_START].buf;
	const uint64_t *address = in->columns[COPY_ADDRESS].buf;
	const int64_t *offset = in->columns[COPY_OFFSET].buf;
	const int64_t *size = in->columns[COPY_SIZE].buf;
	const uint8_t *memory = in->columns[MEMORY].buf;
	uint32_t count = frames->count < MAX_PREFETCHED ? frames->count : MAX_PREFETCHED, frame;
	int64_t i;

	for (i = start[sample]; i < start[sample + 1]; i++) {
		for (frame = 0; frame < count; frame++) {
			uint64_t at = frames->sp[frame] - RETURN_ADDRESS_SIZE - address[i];

			if (at < (uint64_t)size[i])
				__builtin_prefetch(memory + offset[i] + at);
		}
	}
}

/*
 * Walks on until there may be no room for the frames of one more sample. Runs
 * without the interpreter's lock.
 */
static void run(struct pg_unwinder *unwinder, const struct input *in, struct output *out,
		const struct scratch *scratch, walk_fn walk)
{
	const uint64_t *registers = in->columns[REGISTERS].buf;
	const uint8_t *mode = in->columns[MODE].buf;
	const int32_t *kernel = in->columns[KERNEL].buf, *space = in->columns[SPACE].buf;
	int64_t *start = (int64_t *)PyByteArray_AS_STRING(out->arrays[OUT_START]);
	uint64_t *address = (uint64_t *)PyByteArray_AS_STRING(out->arrays[OUT_ADDRESS]);
	uint8_t *how = (uint8_t *)PyByteArray_AS_STRING(out->arrays[OUT_HOW]);
	uint8_t *kernel_end = (uint8_t *)PyByteArray_AS_STRING(out->arrays[OUT_KERNEL_END]);
	uint8_t *user_end = (uint8_t *)PyByteArray_AS_STRING(out->arrays[OUT_USER_END]);
	size_t i;

	for (i = out->samples; i < in->samples; i++) {
		struct pg_sample sample = {
			.regs = registers + i * PG_REGISTERS,
			.mode = mode[i],
			.kernel = kernel[i],
			.space = space[i],
			.copies = scratch->copies,
		};
		struct pg_frames frames = {
			.address = address + out->count,
			.how = how + out->count,
			.sp = scratch->sp,
			.max_depth = (uint32_t)in->max_depth,
		};
		struct pg_ends ends;

		if (out->room - out->count < (size_t)in->max_depth)
			break;
		sample.copy_count = find_copies(in, i, scratch->copies);
		ends = walk(unwinder, &sample, &frames);
		if (in->samples - i > PREFETCH_DISTANCE)
			prefetch(in, i + PREFETCH_DISTANCE, &frames);
		kernel_end[i] = ends.kernel;
		user_end[i] = ends.user;
		out->count += frames.count;
		start[i + 1] = (int64_t)out->count;
	}
	out->samples = i;
}

/* False with an exception. */
static bool fill(struct unwinder_object *self, const struct input *in, struct output *out,
		 walk_fn walk)
{
	struct scratch scratch = {
		.copies = PyMem_RawCalloc(in->most_copies + 1, sizeof(*scratch.copies)),
		.sp = PyMem_RawCalloc((size_t)in->max_depth, sizeof(*scratch.sp)),
	};
	bool good = scratch.copies && scratch.sp;

	if (!good)
		PyErr_NoMemory();
	while (good && out->samples < in->samples) {
		good = set_room(out, out->count + out->count / 2 + FRAMES_AT_FIRST * in->samples +
				(size_t)in->max_depth);
		if (!good)
			break;
		Py_BEGIN_ALLOW_THREADS
		PyThread_acquire_lock(self->lock, WAIT_LOCK);
		run(&self->unwinder, in, out, &scratch, walk);
		PyThread_release_lock(self->lock);
		Py_END_ALLOW_THREADS
	}
	PyMem_RawFree(scratch.copies);
	PyMem_RawFree(scratch.sp);
	return good && set_room(out, out->count);
}

static PyObject *walk_all(struct unwinder_object *self, PyObject *args, PyObject *kwargs,
			  walk_fn walk)
{
	PyObject *result = NULL;
	struct output out;
	struct input in;

	if (!parse_input(self, args, kwargs, &in))
		goto release_input;
	if (make_output(&out, in.samples) && fill(self, &in, &out, walk))
		result = PyTuple_Pack(OUTPUTS, out.arrays[OUT_START], out.arrays[OUT_ADDRESS],
				      out.arrays[OUT_HOW], out.arrays[OUT_KERNEL_END],
				      out.arrays[OUT_USER_END]);
	release_output(&out);
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

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Chains of frame pointers. A frame is two words: the caller's frame pointer,
 * and the address to which it returns. Guests own this memory and may be
 * hostile or simply built without frame pointers, so every step must go up, by
 * no more than a stack's size, and each frame that is accepted takes one of a
 * bounded number of entries.
 *
 * With CONFIG_FRAME_POINTER, the entry code of Linux on x86-64 leaves in rbp the
 * address of the saved registers (entry.h) plus one (ENCODE_FRAME_POINTER in
 * asm/frame.h).
 */
#include "frames.h"
#include "perfguest_abi.h"

#define SELECTOR_RPL		3ULL
/* Of general[] in struct pg_pt_regs. */
#define PT_REGS_BP		4

/* More interrupts in interrupts than a sound kernel has. */
#define MAX_ENTRIES_FROM_KERNEL	8

struct walk {
	struct pg_virt *virt;
	const struct pg_frames_in *in;
	__u64 *entries;
	__u32 count;
	__u32 max_entries;
	__u32 entries_from_kernel;
	__u64 sp;	/* where the stack begins that the chain is on */
	__u64 floor;	/* the next frame is not below it */
	__u64 bp;
};

/* Can this be code of what the walk is in? Not every kernel lives up high. */
static bool is_code(const struct walk *walk, __u64 address)
{
	if (!walk->in->code64)
		return true;
	if (walk->in->kernel && walk->in->ip >> 63)
		return pg_is_high_half(walk->virt, address);
	return address < pg_low_half_end(&walk->virt->paging);
}

static int append(struct walk *walk, __u64 address)
{
	if (walk->count == walk->max_entries)
		return PG_END_FULL;
	walk->entries[walk->count++] = address;
	return 0;
}

/* The chain has come to registers that the entry code saved. */
static int cross_entry(struct walk *walk)
{
	__u64 address = walk->bp & ~1ULL;
	struct pg_pt_regs regs;
	int err;

	/* They may be on another stack, so there is no span to hold to. */
	if (address & 7 || !pg_is_high_half(walk->virt, address))
		return PG_END_BAD_FRAME;
	err = pg_read_virt(walk->virt, address, &regs, sizeof(regs));
	if (err)
		return err;
	if (!regs.pushed.ip)	/* a kernel thread: nobody's registers */
		return PG_END_ROOT;
	if ((regs.pushed.cs & SELECTOR_RPL) == SELECTOR_RPL) {
		if (!pg_is_user_entry(walk->virt, &regs.pushed))
			return PG_END_BAD_FRAME;
		if (walk->in->user)
			pg_give_user_regs(&regs, walk->in->user);
		return PG_END_USER_ENTRY;
	}
	if (!pg_is_kernel_entry(walk->virt, &regs.pushed) ||
	    walk->entries_from_kernel++ == MAX_ENTRIES_FROM_KERNEL)
		return PG_END_BAD_FRAME;
	walk->sp = regs.pushed.sp;
	walk->floor = regs.pushed.sp;
	walk->bp = regs.general[PT_REGS_BP];
	return append(walk, regs.pushed.ip);
}

static int read_frame(const struct walk *walk, __u64 frame[2])
{
	__u32 frame32[2];
	int err;

	if (walk->in->code64)
		return pg_read_virt(walk->virt, walk->bp, frame, 16);
	err = pg_read_virt(walk->virt, walk->bp, frame32, 8);
	if (err)
		return err;
	frame[0] = frame32[0];
	frame[1] = frame32[1];
	return 0;
}

/* Goes one frame up; 0, or the enum pg_end where the chain ends. */
static int step(struct walk *walk)
{
	const __u64 word = walk->in->code64 ? 8 : 4;
	const __u64 last = walk->in->code64 ? ~0ULL : 0xffffffffULL;
	__u64 frame[2];
	int err;

	if (!walk->bp)
		return PG_END_ROOT;
	if (walk->bp & 1 && walk->in->kernel && walk->in->code64)
		return cross_entry(walk);
	if (walk->bp & (word - 1) || walk->bp < walk->floor ||
	    walk->bp - walk->sp > walk->in->max_span ||
	    walk->bp > last - 2 * word)
		return PG_END_BAD_FRAME;
	err = read_frame(walk, frame);
	if (err)
		return err;
	if (!frame[1])
		return PG_END_ROOT;
	if (!is_code(walk, frame[1]))
		return PG_END_BAD_RETURN;
	walk->floor = walk->bp + 2 * word;
	walk->bp = frame[0];
	return append(walk, frame[1]);
}

/**
 * pg_frames_walk() - follow the frame pointers of one privilege level
 * @virt: the address space
 * @in: where to begin, and what kind of frames
 * @entries: the instruction pointer, then the return addresses, leaf first;
 *	across an interrupt in the kernel, the interrupted instruction too
 * @max_entries: room in @entries
 * @end: the enum pg_end that says why the chain ends there
 *
 * In 32-bit code only the lower halves of the registers count.
 *
 * Return: how many entries there are.
 */
__u32 pg_frames_walk(struct pg_virt *virt, const struct pg_frames_in *in,
		     __u64 *entries, __u32 max_entries, int *end)
{
	const __u64 mask = in->code64 ? ~0ULL : 0xffffffffULL;
	struct walk walk = {
		.virt = virt,
		.in = in,
		.entries = entries,
		.max_entries = max_entries,
		.sp = in->sp & mask,
		.floor = in->sp & mask,
		.bp = in->bp & mask,
	};

	*end = append(&walk, in->ip & mask);
	while (!*end)
		*end = step(&walk);
	return walk.count;
}

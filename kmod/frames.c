// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Chains of frame pointers. A frame is two words: the caller's frame pointer,
 * and the address to which it returns. Guests own this memory and may be
 * hostile or simply built without frame pointers, so every step must go up, by
 * no more than a stack's size, and each frame that is accepted takes one of a
 * bounded number of entries.
 *
 * Linux on x86-64 saves the registers of what it interrupted in struct pt_regs
 * (arch/x86/include/asm/ptrace.h): 21 words, r15 to orig_ax, then what the
 * processor pushed. With CONFIG_FRAME_POINTER, the entry code leaves in rbp the
 * address of that structure plus one (ENCODE_FRAME_POINTER in asm/frame.h).
 */
#include "frames.h"
#include "perfguest_abi.h"

#define PT_REGS_SIZE		168
#define PT_REGS_BP		32
#define PT_REGS_IP		128

#define KERNEL_CS		0x10
#define USER32_CS		0x23
#define USER_DS			0x2b
#define USER_CS			0x33
#define SELECTOR		0xffffULL	/* above it, FRED keeps other things */
#define SELECTOR_RPL		3ULL

#define FLAGS_ONE		(1ULL << 1)
#define FLAGS_IF		(1ULL << 9)
#define FLAGS_ZERO		(~0x3fffffULL | 1ULL << 15 | 1ULL << 5 | 1ULL << 3)

#define TASK_STACK_SIZE		16384ULL
/* Above pt_regs, in kernels built with FRED (since Linux 6.9). */
#define FRED_PADDING		16

/* More interrupts in interrupts than a sound kernel has. */
#define MAX_ENTRIES_FROM_KERNEL	8

struct saved_regs {
	__u64 bp;
	struct {
		__u64 ip;
		__u64 cs;
		__u64 flags;
		__u64 sp;
		__u64 ss;
	} pushed;
};

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

static bool is_user_address(const struct pg_virt *virt, __u64 address)
{
	return address < pg_low_half_end(&virt->paging);
}

static bool is_high_half(const struct pg_virt *virt, __u64 address)
{
	return address >> 63 && pg_is_canonical(&virt->paging, address);
}

/* Can this be code of what the walk is in? Not every kernel lives up high. */
static bool is_code(const struct walk *walk, __u64 address)
{
	if (!walk->in->code64)
		return true;
	if (walk->in->kernel && walk->in->ip >> 63)
		return is_high_half(walk->virt, address);
	return is_user_address(walk->virt, address);
}

static int append(struct walk *walk, __u64 address)
{
	if (walk->count == walk->max_entries)
		return PG_END_FULL;
	walk->entries[walk->count++] = address;
	return 0;
}

static int read_saved_regs(struct pg_virt *virt, __u64 address,
			   struct saved_regs *regs)
{
	int err = pg_read_virt(virt, address + PT_REGS_BP, &regs->bp,
			       sizeof(regs->bp));

	if (err)
		return err;
	return pg_read_virt(virt, address + PT_REGS_IP, &regs->pushed,
			    sizeof(regs->pushed));
}

static bool flags_are_sound(const struct saved_regs *regs)
{
	return (regs->pushed.flags & (FLAGS_ONE | FLAGS_ZERO)) == FLAGS_ONE;
}

static bool is_user_entry(const struct pg_virt *virt,
			  const struct saved_regs *regs)
{
	__u64 cs = regs->pushed.cs & SELECTOR;

	if (cs == USER32_CS && (regs->pushed.ip | regs->pushed.sp) >> 32)
		return false;
	return (cs == USER_CS || cs == USER32_CS) &&
	       (regs->pushed.ss & SELECTOR) == USER_DS &&
	       flags_are_sound(regs) && (regs->pushed.flags & FLAGS_IF) &&
	       regs->pushed.ip && is_user_address(virt, regs->pushed.ip) &&
	       is_user_address(virt, regs->pushed.sp);
}

static bool is_kernel_entry(const struct pg_virt *virt,
			    const struct saved_regs *regs)
{
	return (regs->pushed.cs & SELECTOR) == KERNEL_CS &&
	       flags_are_sound(regs) && is_high_half(virt, regs->pushed.ip) &&
	       is_high_half(virt, regs->pushed.sp);
}

static void give_user_regs(const struct saved_regs *regs,
			   struct pg_user_regs *out)
{
	out->ip = regs->pushed.ip;
	out->sp = regs->pushed.sp;
	out->bp = regs->bp;
	out->cs = regs->pushed.cs & SELECTOR;
}

/* The chain has come to registers that the entry code saved. */
static int cross_entry(struct walk *walk)
{
	__u64 address = walk->bp & ~1ULL;
	struct saved_regs regs;
	int err;

	/* They may be on another stack, so there is no span to hold to. */
	if (address & 7 || !is_high_half(walk->virt, address))
		return PG_END_BAD_FRAME;
	err = read_saved_regs(walk->virt, address, &regs);
	if (err)
		return err;
	if (!regs.pushed.ip)	/* a kernel thread: nobody's registers */
		return PG_END_ROOT;
	if ((regs.pushed.cs & SELECTOR_RPL) == SELECTOR_RPL) {
		if (!is_user_entry(walk->virt, &regs))
			return PG_END_BAD_FRAME;
		if (walk->in->user)
			give_user_regs(&regs, walk->in->user);
		return PG_END_USER_ENTRY;
	}
	if (!is_kernel_entry(walk->virt, &regs) ||
	    walk->entries_from_kernel++ == MAX_ENTRIES_FROM_KERNEL)
		return PG_END_BAD_FRAME;
	walk->sp = regs.pushed.sp;
	walk->floor = regs.pushed.sp;
	walk->bp = regs.bp;
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

/**
 * pg_find_user_regs() - what a Linux kernel saved when it was last entered
 * @virt: the address space
 * @kernel_sp: a stack pointer into a task's kernel stack
 * @out: the user's registers, on success
 *
 * For x86-64 kernels with stacks of 16 KiB, which stand at a multiple of their
 * size, whether the kernel has frame pointers or not.
 *
 * Return: 0, PG_END_BAD_FRAME if there are no registers of a user program, or
 * the enum pg_end that says why the stack cannot be read.
 */
int pg_find_user_regs(struct pg_virt *virt, __u64 kernel_sp,
		      struct pg_user_regs *out)
{
	__u64 top = (kernel_sp + TASK_STACK_SIZE - 1) & ~(TASK_STACK_SIZE - 1);
	__u32 padding;

	for (padding = 0; padding <= FRED_PADDING; padding += FRED_PADDING) {
		__u64 address = top - padding - PT_REGS_SIZE;
		struct saved_regs regs;
		int err;

		if (top - kernel_sp < padding + PT_REGS_SIZE)
			return PG_END_BAD_FRAME;
		err = read_saved_regs(virt, address, &regs);
		if (err)
			return err;
		if (is_user_entry(virt, &regs)) {
			give_user_regs(&regs, out);
			return 0;
		}
	}
	return PG_END_BAD_FRAME;
}

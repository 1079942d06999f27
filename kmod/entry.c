// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Linux on x86-64 saves the registers of what it interrupted in struct pt_regs:
 * 21 words, of which the processor has pushed the upper five (Intel SDM volume
 * 3A, 6.14.2). Those of a user program stand at the top of its task's stack, 16
 * bytes lower in kernels built with FRED (since Linux 6.9).
 *
 * While the entry code pushes them and the exit code pops them again, what lies
 * below the stack pointer is still, or again, in the processor's registers
 * (PUSH_REGS and POP_REGS in arch/x86/entry/calling.h: they are cleared when all
 * are pushed, or each when it is).
 */
#include "entry.h"

#define KERNEL_CS		0x10
#define USER_DS			0x2b
#define SELECTOR		0xffffULL	/* above it, FRED keeps other things */

#define FLAGS_ONE		(1ULL << 1)
#define FLAGS_IF		(1ULL << 9)
#define FLAGS_ZERO		(~0x3fffffULL | 1ULL << 15 | 1ULL << 5 | 1ULL << 3)

#define TASK_STACK_SIZE		16384ULL
/* Above pt_regs, in kernels built with FRED. */
#define FRED_PADDING		16

/* Which register each word of general[] is. */
static const __u8 general_reg[PG_PT_REGS_GENERAL - 1] = {
	PG_R15, PG_R14, PG_R13, PG_R12, PG_RBP, PG_RBX, PG_R11, PG_R10,
	PG_R9, PG_R8, PG_RAX, PG_RCX, PG_RDX, PG_RSI, PG_RDI,
};

/**
 * pg_is_high_half() - is this an address of a kernel that lives up high
 * @virt: the address space
 * @address: guest virtual address
 *
 * Return: whether it is canonical and in the upper half.
 */
bool pg_is_high_half(const struct pg_virt *virt, __u64 address)
{
	return address >> 63 && pg_is_canonical(&virt->paging, address);
}

static bool is_user_address(const struct pg_virt *virt, __u64 address)
{
	return address < pg_low_half_end(&virt->paging);
}

static bool flags_are_sound(const struct pg_pushed *pushed)
{
	return (pushed->flags & (FLAGS_ONE | FLAGS_ZERO)) == FLAGS_ONE;
}

/**
 * pg_is_user_entry() - can a Linux kernel have been entered like that by a user
 * program
 * @virt: the address space
 * @pushed: what may have been pushed
 */
bool pg_is_user_entry(const struct pg_virt *virt, const struct pg_pushed *pushed)
{
	__u64 cs = pushed->cs & SELECTOR;

	if (cs == PG_USER32_CS && (pushed->ip | pushed->sp) >> 32)
		return false;
	return (cs == PG_USER_CS || cs == PG_USER32_CS) &&
	       (pushed->ss & SELECTOR) == USER_DS &&
	       flags_are_sound(pushed) && (pushed->flags & FLAGS_IF) &&
	       pushed->ip && is_user_address(virt, pushed->ip) &&
	       is_user_address(virt, pushed->sp);
}

/**
 * pg_is_kernel_entry() - can a Linux kernel have been interrupted like that
 * @virt: the address space
 * @pushed: what may have been pushed
 */
bool pg_is_kernel_entry(const struct pg_virt *virt, const struct pg_pushed *pushed)
{
	return (pushed->cs & SELECTOR) == KERNEL_CS &&
	       flags_are_sound(pushed) && pg_is_high_half(virt, pushed->ip) &&
	       pg_is_high_half(virt, pushed->sp);
}

/**
 * pg_give_user_regs() - the registers of a user program out of struct pt_regs
 * @regs: for which pg_is_user_entry() holds
 * @out: the registers
 */
void pg_give_user_regs(const struct pg_pt_regs *regs, struct pg_user_regs *out)
{
	__u32 i;

	for (i = 0; i < PG_PT_REGS_GENERAL - 1; i++)
		out->regs[general_reg[i]] = regs->general[i];
	out->regs[PG_RSP] = regs->pushed.sp;
	out->ip = regs->pushed.ip;
	out->flags = regs->pushed.flags;
	out->cs = regs->pushed.cs & SELECTOR;
}

/**
 * pg_read_user_regs() - a user program's registers, saved in full or in part
 * @virt: the address space
 * @top: where struct pt_regs ends, or would, if it were complete
 * @sp: the stack pointer of the kernel on that stack
 * @live: the processor's registers by enum pg_reg, if @sp is its stack pointer:
 *	what is below @sp is in them; NULL: all must have been saved
 * @out: the registers, on success
 *
 * Return: 0, PG_END_BAD_FRAME if there are no registers of a user program, or
 * the enum pg_end that says why the stack cannot be read.
 */
int pg_read_user_regs(struct pg_virt *virt, __u64 top, __u64 sp, const __u64 *live,
		      struct pg_user_regs *out)
{
	struct pg_pt_regs regs;
	__u32 first = 0, i;
	int err;

	if (top - sp < sizeof(regs.pushed) || (!live && top - sp < sizeof(regs)))
		return PG_END_BAD_FRAME;
	if (top - sp < sizeof(regs))
		first = (__u32)(sizeof(regs) - (top - sp) + 7) / 8;
	err = pg_read_virt(virt, top - sizeof(regs) + 8 * first, (__u64 *)&regs + first,
			   sizeof(regs) - 8 * first);
	if (err)
		return err;
	if (!pg_is_user_entry(virt, &regs.pushed))
		return PG_END_BAD_FRAME;
	for (i = 0; i < first && i < PG_PT_REGS_GENERAL - 1; i++)
		regs.general[i] = live[general_reg[i]];
	pg_give_user_regs(&regs, out);
	return 0;
}

/**
 * pg_find_user_regs() - what a Linux kernel saved when it was last entered
 * @virt: the address space
 * @sp: a stack pointer into a task's kernel stack
 * @live: as for pg_read_user_regs()
 * @out: the user's registers, on success
 *
 * For x86-64 kernels with stacks of 16 KiB, which stand at a multiple of their
 * size, whether the kernel has frame pointers or not.
 *
 * Return: as pg_read_user_regs().
 */
int pg_find_user_regs(struct pg_virt *virt, __u64 sp, const __u64 *live,
		      struct pg_user_regs *out)
{
	__u64 top = (sp + TASK_STACK_SIZE - 1) & ~(TASK_STACK_SIZE - 1);
	int err;

	err = pg_read_user_regs(virt, top, sp, live, out);
	if (err == PG_END_BAD_FRAME && top - sp >= FRED_PADDING)
		err = pg_read_user_regs(virt, top - FRED_PADDING, sp, live, out);
	return err;
}

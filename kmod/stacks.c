// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The stacks of Linux kernels on x86-64, and how they are told apart.
 *
 * A task's: 16 KiB at a multiple of that; the user's registers at its top.
 *
 * An interrupt's: 16 KiB of which the topmost word is the stack pointer of what
 * was interrupted (arch/x86/include/asm/irq_stack.h). It is mapped page by page,
 * so it ends at any page border, and nothing is mapped behind it.
 *
 * The entry stack and those of exceptions that need one of their own: where
 * the task state segment says that they end (Intel SDM volume 3A, 7.7), and
 * their topmost words are what the processor has pushed.
 *
 * None at all, for the few instructions between SYSCALL and the change to the
 * task's stack, and on the way back. RCX and R11 are the user's RIP and RFLAGS
 * there. Where the entry code uses RSP for the page table or has just left it
 * behind, the user's is in the task state segment's unused field for ring 2
 * (since Linux 4.20; entry_SYSCALL_64 in arch/x86/entry/entry_64.S).
 */
#include "stacks.h"

#define STACK_SIZE		16384ULL
#define ENTRY_STACK_SIZE	PG_PAGE_SIZE
/* Where Linux maps these, all CPUs': CPU_ENTRY_AREA_PGD in asm/pgtable_64_types.h. */
#define ENTRY_AREA		0xfffffe0000000000ULL
#define ENTRY_AREA_SHIFT	39

/* entry_SYSCALL_64: to its SYSRET, and to where it has saved RCX; neither reaches other ways into the kernel. */
#define SYSCALL_CODE		512ULL
#define SYSCALL_ENTRY		128ULL
#define USER_DS			0x2bULL

#define CR3_TABLE		0x000fffffffffe000ULL	/* without the bit for the user's half */

/* The start of a 64-bit task state segment, from offset 4 on. */
struct tss {
	__u64 sp[3];
	__u64 reserved;
	__u64 ist[7];
};

static __u64 align_up(__u64 address, __u64 size)
{
	return (address + size - 1) & ~(size - 1);
}

static bool read_tss(struct pg_virt *virt, const struct pg_stacks_in *in, struct tss *tss)
{
	return in->tss && !pg_read_virt(virt, in->tss + 4, tss, sizeof(*tss));
}

static void add_stack(struct pg_stacks *out, __u64 sp, __u64 top)
{
	if (sp != top && out->nr < PG_MAX_STACKS)
		out->stack[out->nr++] = (struct pg_stack){ .sp = sp, .top = top };
}

static bool in_syscall_code(const struct pg_virt *virt, const struct pg_stacks_in *in)
{
	return pg_is_high_half(virt, in->lstar) && in->ip - in->lstar < SYSCALL_CODE;
}

static void user_by_syscall(const struct pg_virt *virt, const struct pg_stacks_in *in,
			    __u64 user_sp, struct pg_stacks *out)
{
	const struct pg_pushed pushed = {
		.ip = in->regs[PG_RCX],
		.cs = PG_USER_CS,
		.flags = in->regs[PG_R11],
		.sp = user_sp,
		.ss = USER_DS,
	};
	__u32 i;

	if (!pg_is_user_entry(virt, &pushed))
		return;
	for (i = 0; i < PG_NR_REGS; i++)
		out->user.regs[i] = in->regs[i];
	out->user.regs[PG_RSP] = user_sp;
	out->user.ip = pushed.ip;
	out->user.flags = pushed.flags;
	out->user.cs = pushed.cs;
	out->has_user = true;
}

/* In the entry code for system calls; true if the stack is not the kernel's. */
static bool find_syscall(struct pg_virt *virt, const struct pg_stacks_in *in,
			 struct pg_stacks *out)
{
	__u64 sp = in->regs[PG_RSP];
	bool is_table = !((sp ^ virt->paging.cr3) & CR3_TABLE);
	bool is_empty = align_up(sp, STACK_SIZE) - sp < sizeof(struct pg_pushed) + 16;
	bool is_entry = in->ip - in->lstar < SYSCALL_ENTRY;
	struct tss tss;

	if (!is_table && sp < pg_low_half_end(&virt->paging)) {
		user_by_syscall(virt, in, sp, out);
		return true;
	}
	if (is_entry && (is_table || is_empty) && read_tss(virt, in, &tss))
		user_by_syscall(virt, in, tss.sp[2], out);
	return is_table;
}

/* live: the processor's registers, if sp is its stack pointer and not one that was read. */
static bool find_user(struct pg_virt *virt, __u64 sp, const __u64 *live, struct pg_stacks *out)
{
	if (!out->has_user)
		out->has_user = !pg_find_user_regs(virt, sp, live, &out->user);
	return out->has_user;
}

static bool is_mapped(const struct pg_virt *virt, __u64 gva)
{
	__u64 gpa, size;

	return !pg_translate(&virt->paging, &virt->phys, gva, &gpa, &size);
}

static bool on_task_stack(const struct pg_stacks_in *in, __u64 sp)
{
	return sp - in->task_stack < STACK_SIZE;
}

/*
 * The interrupted stack pointer, and where the interrupt's stack ends; 0 if sp
 * is on none. A pointer to what is near is of this stack itself.
 */
static __u64 interrupted_sp(struct pg_virt *virt, const struct pg_stacks_in *in, __u64 sp,
			    __u64 *top)
{
	__u64 end, word;

	for (end = align_up(sp + 1, PG_PAGE_SIZE); end - sp <= STACK_SIZE; end += PG_PAGE_SIZE) {
		if (pg_read_virt(virt, end - sizeof(word), &word, sizeof(word)))
			return 0;
		if (!pg_is_high_half(virt, word) || word & 7 ||
		    word - (sp - STACK_SIZE) <= 2 * STACK_SIZE)
			continue;
		if (in->task_stack ? on_task_stack(in, word) : !is_mapped(virt, end)) {
			*top = end;
			return word;
		}
	}
	return 0;
}

/* A stack that is the task's or an interrupt's. */
static void find_ordinary(struct pg_virt *virt, const struct pg_stacks_in *in, __u64 sp,
			  const __u64 *live, struct pg_stacks *out)
{
	bool known = in->task_stack, on_it = known && on_task_stack(in, sp);
	__u64 word = 0, top;

	/* Where the task's is not known, that it has a user's registers tells it. */
	if (!on_it && (known || !find_user(virt, sp, live, out)))
		word = interrupted_sp(virt, in, sp, &top);
	if (word) {
		add_stack(out, sp, top);
		sp = word;
		live = NULL;
	}
	find_user(virt, sp, live, out);
	add_stack(out, sp, align_up(sp, STACK_SIZE));
}

/* The top of the one of these stacks that sp is on; 0 if it is on none. */
static __u64 entry_stack_top(const struct tss *tss, __u64 sp)
{
	__u64 best = tss->sp[0] - sp < ENTRY_STACK_SIZE ? tss->sp[0] : 0;
	__u32 i;

	for (i = 0; i < 7; i++)
		if (tss->ist[i] - sp < STACK_SIZE && (!best || tss->ist[i] < best))
			best = tss->ist[i];
	return best;
}

static void find_entry_area(struct pg_virt *virt, const struct pg_stacks_in *in,
			    struct pg_stacks *out)
{
	__u64 sp = in->regs[PG_RSP], top, user_sp;
	struct pg_pushed pushed;
	struct tss tss;

	top = read_tss(virt, in, &tss) ? entry_stack_top(&tss, sp) : 0;
	if (!top || top & 7) {
		add_stack(out, sp, align_up(sp + 1, PG_PAGE_SIZE));
		return;
	}
	add_stack(out, sp, top);
	out->has_user = !pg_read_user_regs(virt, top, sp, in->regs, &out->user);
	if (out->has_user)
		return;
	/* By SYSRET, only the user's stack pointer is put there; by IRET, a small selector is first. */
	if (in_syscall_code(virt, in) && top == tss.sp[0] && top - sp >= sizeof(user_sp)) {
		if (!pg_read_virt(virt, top - sizeof(user_sp), &user_sp, sizeof(user_sp)) &&
		    user_sp >= PG_PAGE_SIZE)
			user_by_syscall(virt, in, user_sp, out);
	} else if (top - sp >= sizeof(pushed) &&
		   !pg_read_virt(virt, top - sizeof(pushed), &pushed, sizeof(pushed)) &&
		   pg_is_kernel_entry(virt, &pushed) &&
		   pushed.sp >> ENTRY_AREA_SHIFT != ENTRY_AREA >> ENTRY_AREA_SHIFT) {
		find_ordinary(virt, in, pushed.sp, NULL, out);
	}
}

/**
 * pg_find_stacks() - which stacks a Linux kernel was on
 * @virt: the address space
 * @in: what the processor was doing, in 64-bit code at privilege level 0
 * @out: the stacks, and the registers of the user program that the kernel ran for
 *
 * A stack that is none of those that Linux has is taken for a task's.
 */
void pg_find_stacks(struct pg_virt *virt, const struct pg_stacks_in *in, struct pg_stacks *out)
{
	__u64 sp = in->regs[PG_RSP];

	out->nr = 0;
	out->has_user = false;
	if (in_syscall_code(virt, in) && find_syscall(virt, in, out))
		return;
	if (!pg_is_high_half(virt, sp))
		return;
	if (sp >> ENTRY_AREA_SHIFT == ENTRY_AREA >> ENTRY_AREA_SHIFT)
		find_entry_area(virt, in, out);
	else
		find_ordinary(virt, in, sp, in->regs, out);
}

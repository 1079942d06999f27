// SPDX-License-Identifier: GPL-2.0-only
/* Puts one sample together: registers, chains, copies of stacks. */
#include <linux/align.h>
#include <linux/kvm_host.h>
#include <linux/percpu.h>

#include "perfguest.h"
#include "compat.h"
#include "frames.h"
#include "guest_mem.h"
#include "sample.h"
#include "stream.h"
#include "task.h"
#include "vcpu.h"
#include "vms.h"

/* THREAD_SIZE and IRQ_STACK_SIZE of x86-64 Linux guests; tasks' stacks are aligned to it. */
#define PG_GUEST_STACK		SZ_16K
/* User code keeps data that far below its stack pointer: System V ABI, 3.2.2. */
#define PG_RED_ZONE		128
/* How far apart the frames of one stack may lie where its size is not known. */
#define PG_MAX_SPAN		SZ_64M

static u32 pg_sample_room;
static DEFINE_PER_CPU(bool, pg_taking);

struct pg_builder {
	struct pg_sample *sample;
	u8 *at;			/* where the next section goes */
	struct pg_guest_mem *mem;
	const struct pg_vcpu_state *state;
	u64 task_stack;		/* the lowest address of the running task's stack; 0: not known */
	/* Of the guest's user program, also while its kernel runs for it. */
	struct pg_user_regs user;
	bool has_user;
};

/* Nothing of a kind that was not asked for is ever written. */
static u32 pg_section_room(u32 size)
{
	return size ? sizeof(struct pg_section) + ALIGN(size, 8) : 0;
}

u32 pg_sample_prepare(void)
{
	u32 chain = pg_section_room(pg_settings.chain_depth * sizeof(u64));
	u32 kernel = pg_section_room(pg_settings.kernel_stack);
	u32 user = pg_section_room(pg_settings.user_stack);

	pg_sample_room = sizeof(struct pg_sample) + 2 * chain + 2 * kernel + user;
	return pg_sample_room;
}

static void *pg_payload(struct pg_builder *b)
{
	return b->at + sizeof(struct pg_section);
}

static void pg_close_section(struct pg_builder *b, enum pg_section_kind kind,
			     u64 address, u32 size, int end)
{
	struct pg_section *section = (struct pg_section *)b->at;
	u32 padded = ALIGN(size, 8);

	*section = (struct pg_section){
		.kind = kind,
		.end = end,
		.size = size,
		.address = address,
	};
	memset(pg_payload(b) + size, 0, padded - size);
	b->at += sizeof(*section) + padded;
	b->sample->nr_sections++;
}

static void pg_add_chain(struct pg_builder *b, enum pg_section_kind kind,
			 const struct pg_frames_in *in)
{
	int end = PG_END_NONE;
	u32 nr;

	if (!pg_settings.chain_depth)
		return;
	nr = pg_frames_walk(&b->mem->virt, in, pg_payload(b), pg_settings.chain_depth, &end);
	pg_close_section(b, kind, in->sp, nr * sizeof(u64), end);
	if (end == PG_END_USER_ENTRY && in->user)
		b->has_user = true;
}

static void pg_add_copy(struct pg_builder *b, enum pg_section_kind kind, u64 address, u32 size,
			int end_if_whole)
{
	int end = PG_END_NONE;
	u32 got;

	got = pg_read_virt_some(&b->mem->virt, address, pg_payload(b), size, &end);
	pg_close_section(b, kind, address, got, got == size ? end_if_whole : end);
}

/* The rest of a task's stack. At the very top there is none: such a stack is empty. */
static u64 pg_task_stack_top(u64 sp)
{
	return ALIGN(sp, PG_GUEST_STACK);
}

static void pg_add_kernel_copy(struct pg_builder *b, enum pg_section_kind kind, u64 sp, u64 top)
{
	u32 size = min_t(u64, top - sp, pg_settings.kernel_stack);

	if (size)
		pg_add_copy(b, kind, sp, size, size == top - sp ? PG_END_STACK_TOP : PG_END_FULL);
}

/* Known for sure if the task is, else where a user program's registers are on top. */
static bool pg_on_task_stack(struct pg_builder *b, u64 sp)
{
	if (b->task_stack)
		return sp - b->task_stack < PG_GUEST_STACK;
	return !pg_find_user_regs(&b->mem->virt, sp, &b->user);
}

/*
 * Linux keeps the stack pointer of the interrupted stack in the topmost word of
 * its interrupt stack (arch/x86/include/asm/irq_stack.h), which is mapped page
 * by page, so its top is at one of the next page borders. Returns that pointer
 * and the top, or 0 if sp does not seem to be on such a stack.
 */
static u64 pg_interrupted_sp(struct pg_builder *b, u64 sp, u64 *top)
{
	u64 end, word;

	for (end = ALIGN(sp + 1, PAGE_SIZE); end - sp <= PG_GUEST_STACK; end += PAGE_SIZE) {
		if (pg_read_virt(&b->mem->virt, end - sizeof(word), &word, sizeof(word)))
			return 0;
		/* Not a pointer to what is near: that is a frame or a variable of this stack. */
		if (word >> 63 && !(word & 7) && word - (sp - PG_GUEST_STACK) > 2 * PG_GUEST_STACK &&
		    pg_on_task_stack(b, word)) {
			*top = end;
			return word;
		}
	}
	return 0;
}

static void pg_add_kernel_stacks(struct pg_builder *b, u64 sp)
{
	u64 top = pg_task_stack_top(sp), task_sp = 0;

	if (!b->has_user)
		b->has_user = !pg_find_user_regs(&b->mem->virt, sp, &b->user);
	if (!b->has_user) {
		task_sp = pg_interrupted_sp(b, sp, &top);
		b->has_user = task_sp && !pg_find_user_regs(&b->mem->virt, task_sp, &b->user);
	}
	pg_add_kernel_copy(b, PG_SECTION_STACK_KERNEL, sp, top);
	if (task_sp)
		pg_add_kernel_copy(b, PG_SECTION_STACK_TASK, task_sp, pg_task_stack_top(task_sp));
}

/*
 * A kernel with a syscall entry in the upper half has small stacks; what runs at
 * CPL 0 without one may have any.
 */
static u64 pg_kernel_span(const struct pg_vcpu_state *state)
{
	return state->lstar >> 63 ? PG_GUEST_STACK : PG_MAX_SPAN;
}

static void pg_add_kernel(struct pg_builder *b)
{
	const struct pg_vcpu_state *state = b->state;
	u64 sp = state->regs[PG_RSP];
	const struct pg_frames_in in = {
		.ip = state->ip,
		.sp = sp,
		.bp = state->regs[PG_RBP],
		.code64 = state->flags & PG_SAMPLE_CODE64,
		.kernel = true,
		.max_span = pg_kernel_span(state),
		.user = &b->user,
	};

	pg_add_chain(b, PG_SECTION_CHAIN_KERNEL, &in);
	/* At the first instructions of a system call the stack is still the user's. */
	if (in.code64 && sp >> 63)
		pg_add_kernel_stacks(b, sp);
}

/*
 * Where the copy of the user's stack begins. The red zone may reach into a page
 * that was never touched: then it is at the border.
 */
static u64 pg_user_stack_start(struct pg_builder *b)
{
	u64 start = b->user.sp - PG_RED_ZONE;
	u8 byte;

	if (!pg_read_virt(&b->mem->virt, start, &byte, sizeof(byte)))
		return start;
	return max_t(u64, start, ALIGN_DOWN(b->user.sp, PAGE_SIZE));
}

static void pg_add_user(struct pg_builder *b)
{
	const struct pg_frames_in in = {
		.ip = b->user.ip,
		.sp = b->user.sp,
		.bp = b->user.bp,
		.code64 = b->user.cs == 0x33,
		.max_span = PG_MAX_SPAN,
	};

	pg_add_chain(b, PG_SECTION_CHAIN_USER, &in);
	if (pg_settings.user_stack)
		pg_add_copy(b, PG_SECTION_STACK_USER, pg_user_stack_start(b),
			    pg_settings.user_stack, PG_END_FULL);
}

static void pg_add_guest(struct pg_builder *b)
{
	const struct pg_vcpu_state *state = b->state;

	if (!(state->flags & PG_SAMPLE_USER)) {
		pg_add_kernel(b);
	} else {
		b->user.ip = state->ip;
		b->user.sp = state->regs[PG_RSP];
		b->user.bp = state->regs[PG_RBP];
		b->user.cs = state->flags & PG_SAMPLE_CODE64 ? 0x33 : 0x23;
		b->has_user = true;
	}
	if (b->has_user)
		pg_add_user(b);
}

static void pg_fill(struct pg_sample *sample, const struct pg_hit *hit, u32 vm_id,
		    const struct pg_vcpu_state *state)
{
	*sample = (struct pg_sample){
		.header = {
			.type = PG_RECORD_SAMPLE,
			.time = hit->time,
			.cpu = smp_processor_id(),
			.vm_id = vm_id,
		},
		.vm_pid = hit->tgid,
		.tid = hit->tid,
		.vcpu_id = hit->vcpu_id,
		.flags = state->flags,
		.ip = hit->ip,
		.rflags = state->rflags,
		.cr0 = state->cr0,
		.cr3 = state->cr3,
		.cr4 = state->cr4,
		.efer = state->efer,
		.gs_base = state->gs_base,
		.kernel_gs_base = state->kernel_gs_base,
	};
	memcpy(sample->regs, state->regs, sizeof(sample->regs));
}

/* Whether the guest's stack can be found and read at all. */
static bool pg_readable(const struct pg_vcpu_state *state)
{
	const u64 needed = PG_SAMPLE_REGS | PG_SAMPLE_CR3;
	const u64 hidden = PG_SAMPLE_SMM | PG_SAMPLE_NESTED | PG_SAMPLE_PROTECTED;

	return (state->flags & needed) == needed && !(state->flags & hidden) &&
	       state->flags & (PG_SAMPLE_CODE64 | PG_SAMPLE_CODE32);
}

static void pg_take(const struct pg_hit *hit, bool deferred)
{
	struct pg_vcpu_state state;
	struct pg_guest_mem mem;
	struct pg_builder b = { .mem = &mem, .state = &state };
	struct pg_task_layout tasks;
	u32 vm_id;

	pg_vcpu_read(hit->vcpu, &state);
	if (deferred)
		state.flags |= PG_SAMPLE_DEFERRED;
	pg_guest_mem_begin(&mem, hit->vcpu->kvm, &state);
	vm_id = pg_vms_note(&mem, hit->time, state.flags & PG_SAMPLE_NESTED ? 0 : state.lstar,
			    &tasks);
	b.sample = pg_stream_reserve(pg_sample_room);
	if (!b.sample) {
		pg_stream_count_no_room();
		goto end;
	}
	pg_fill(b.sample, hit, vm_id, &state);
	b.at = (u8 *)(b.sample + 1);
	if (pg_readable(&state)) {
		b.task_stack = pg_task_read(&mem.virt, &state, &tasks, b.sample);
		pg_add_guest(&b);
	}
	b.sample->header.size = b.at - (u8 *)b.sample;
	pg_stream_commit(b.sample->header.size, true);
end:
	pg_guest_mem_end(&mem);
}

/* The vCPU has moved on since the NMI: what is known is the instruction pointer. */
static void pg_take_stale(const struct pg_hit *hit)
{
	static const struct pg_vcpu_state nothing = {
		.flags = PG_SAMPLE_DEFERRED | PG_SAMPLE_STALE,
	};
	struct pg_sample *sample = pg_stream_reserve(sizeof(*sample));

	if (!sample) {
		pg_stream_count_no_room();
		return;
	}
	pg_fill(sample, hit, 0, &nothing);
	sample->header.size = sizeof(*sample);
	pg_stream_commit(sizeof(*sample), true);
}

void pg_sample_take(const struct pg_hit *hit, bool deferred)
{
	/* A tracepoint that is hit by our own reading, say. */
	if (__this_cpu_read(pg_taking)) {
		pg_stream_count_lost(PG_LOST_NESTED);
		return;
	}
	__this_cpu_write(pg_taking, true);
	if (deferred && (pg_vcpu_current() != hit->vcpu || pg_vcpu_ip(hit->vcpu) != hit->ip))
		pg_take_stale(hit);
	else
		pg_take(hit, deferred);
	__this_cpu_write(pg_taking, false);
}

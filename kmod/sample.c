// SPDX-License-Identifier: GPL-2.0-only
/* Puts one sample together: registers, chains, copies of stacks. */
#include <linux/kernel.h>
#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include <linux/sched/clock.h>

#include "perfguest.h"
#include "compat.h"
#include "frames.h"
#include "guest_mem.h"
#include "sample.h"
#include "stacks.h"
#include "stream.h"
#include "task.h"
#include "vcpu.h"
#include "vms.h"

/* As large as the stacks of a Linux kernel are. */
#define PG_KERNEL_SPAN		SZ_16K
/* User code keeps data that far below its stack pointer: System V ABI, 3.2.2. */
#define PG_RED_ZONE		128
/* How far apart the frames of one stack may lie where its size is not known. */
#define PG_MAX_SPAN		SZ_64M

static u32 pg_sample_room;
static DEFINE_PER_CPU(bool, pg_taking);
static DEFINE_PER_CPU(struct pg_cost, pg_costs);

struct pg_builder {
	struct pg_sample *sample;
	u8 *at;			/* where the next section goes */
	struct pg_guest_mem *mem;
	const struct pg_vcpu_state *state;
	u64 task_stack;		/* the lowest address of the running task's stack; 0: not known */
	struct pg_stacks stacks;
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
	u32 user_regs = user ? pg_section_room(sizeof(struct pg_user_regs)) : 0;
	int cpu;

	pg_sample_room = sizeof(struct pg_sample) + 2 * chain + PG_MAX_STACKS * kernel +
			 user_regs + user;
	for_each_possible_cpu(cpu)
		*per_cpu_ptr(&pg_costs, cpu) = (struct pg_cost){};
	return pg_sample_room;
}

void pg_sample_cost(int cpu, struct pg_cost *cost)
{
	const struct pg_cost *of_cpu = per_cpu_ptr(&pg_costs, cpu);

	cost->total = READ_ONCE(of_cpu->total);
	cost->longest = READ_ONCE(of_cpu->longest);
}

static void pg_count_cost(u64 begin)
{
	struct pg_cost *cost = this_cpu_ptr(&pg_costs);
	u64 time = local_clock() - begin;

	WRITE_ONCE(cost->total, cost->total + time);
	if (time > cost->longest)
		WRITE_ONCE(cost->longest, time);
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

static enum pg_end pg_add_chain(struct pg_builder *b, enum pg_section_kind kind,
				const struct pg_frames_in *in)
{
	int end = PG_END_NONE;
	u32 nr;

	if (!pg_settings.chain_depth)
		return end;
	nr = pg_frames_walk(&b->mem->virt, in, pg_payload(b), pg_settings.chain_depth, &end);
	pg_close_section(b, kind, in->sp, nr * sizeof(u64), end);
	return end;
}

static void pg_add_copy(struct pg_builder *b, enum pg_section_kind kind, u64 address, u32 size,
			int end_if_whole)
{
	int end = PG_END_NONE;
	u32 got;

	got = pg_read_virt_some(&b->mem->virt, address, pg_payload(b), size, &end);
	pg_close_section(b, kind, address, got, got == size ? end_if_whole : end);
}

static void pg_add_kernel_stacks(struct pg_builder *b)
{
	enum pg_section_kind kind = PG_SECTION_STACK_KERNEL;
	u32 i;

	for (i = 0; i < b->stacks.nr && pg_settings.kernel_stack; i++) {
		const struct pg_stack *stack = &b->stacks.stack[i];
		u64 whole = stack->top - stack->sp;

		pg_add_copy(b, kind, stack->sp, min_t(u64, whole, pg_settings.kernel_stack),
			    whole <= pg_settings.kernel_stack ? PG_END_STACK_TOP : PG_END_FULL);
		kind = PG_SECTION_STACK_TASK;
	}
}

/*
 * A kernel with a syscall entry in the upper half has small stacks; what runs at
 * CPL 0 without one may have any.
 */
static u64 pg_kernel_span(const struct pg_vcpu_state *state)
{
	return state->lstar >> 63 ? PG_KERNEL_SPAN : PG_MAX_SPAN;
}

static void pg_add_kernel(struct pg_builder *b)
{
	const struct pg_vcpu_state *state = b->state;
	struct pg_user_regs user;
	const struct pg_frames_in chain = {
		.ip = state->ip,
		.sp = state->regs[PG_RSP],
		.bp = state->regs[PG_RBP],
		.code64 = state->flags & PG_SAMPLE_CODE64,
		.kernel = true,
		.max_span = pg_kernel_span(state),
		.user = &user,
	};
	const struct pg_stacks_in stacks = {
		.regs = state->regs,
		.ip = state->ip,
		.lstar = state->lstar,
		.tss = state->tss,
		.task_stack = b->task_stack,
	};

	if (chain.code64)
		pg_find_stacks(&b->mem->virt, &stacks, &b->stacks);
	if (pg_add_chain(b, PG_SECTION_CHAIN_KERNEL, &chain) == PG_END_USER_ENTRY &&
	    !b->stacks.has_user) {
		b->stacks.user = user;
		b->stacks.has_user = true;
	}
	pg_add_kernel_stacks(b);
}

/*
 * Below the stack pointer, as far as there is anything: the red zone may reach
 * into a page that was never touched. Of 32-bit code, half of the register.
 */
static u64 pg_user_copy_begin(struct pg_builder *b, const struct pg_frames_in *in)
{
	u64 sp = in->code64 ? in->sp : (u32)in->sp;
	u64 begin = sp - min_t(u64, sp, PG_RED_ZONE);
	u8 byte;

	if (!pg_read_virt(&b->mem->virt, begin, &byte, sizeof(byte)))
		return begin;
	return max_t(u64, begin, ALIGN_DOWN(sp, PAGE_SIZE));
}

static void pg_add_user_regs(struct pg_builder *b)
{
	*(struct pg_user_regs *)pg_payload(b) = b->stacks.user;
	pg_close_section(b, PG_SECTION_USER_REGS, 0, sizeof(b->stacks.user), PG_END_NONE);
}

static void pg_add_user(struct pg_builder *b)
{
	const struct pg_user_regs *user = &b->stacks.user;
	const struct pg_frames_in in = {
		.ip = user->ip,
		.sp = user->regs[PG_RSP],
		.bp = user->regs[PG_RBP],
		.code64 = user->cs == PG_USER_CS,
		.max_span = PG_MAX_SPAN,
	};

	pg_add_chain(b, PG_SECTION_CHAIN_USER, &in);
	if (pg_settings.user_stack)
		pg_add_copy(b, PG_SECTION_STACK_USER, pg_user_copy_begin(b, &in),
			    pg_settings.user_stack, PG_END_FULL);
}

static void pg_add_guest(struct pg_builder *b)
{
	const struct pg_vcpu_state *state = b->state;
	struct pg_user_regs *user = &b->stacks.user;

	if (!(state->flags & PG_SAMPLE_USER)) {
		pg_add_kernel(b);
		if (b->stacks.has_user && pg_settings.user_stack)
			pg_add_user_regs(b);
	} else {
		memcpy(user->regs, state->regs, sizeof(user->regs));
		user->ip = state->ip;
		user->cs = state->flags & PG_SAMPLE_CODE64 ? PG_USER_CS : PG_USER32_CS;
		b->stacks.has_user = true;
	}
	if (b->stacks.has_user)
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
	u64 begin = local_clock();

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
	pg_count_cost(begin);
	__this_cpu_write(pg_taking, false);
}

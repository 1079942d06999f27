/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The record layout that the perfguest module writes and user space reads.
 *
 * A stream is a sequence of records. Each begins with struct pg_record_header
 * and is header.size bytes long, a multiple of 8, so a reader steps over what
 * it does not know. Readers find the fields by the description in the debugfs
 * file "format", not by this header: a later module may add fields at the end
 * of the fixed part of a record, new kinds of records and new kinds of
 * sections, without breaking them. Everything is little-endian.
 *
 * This is the only file that the kernel and user space both compile.
 */
#ifndef PERFGUEST_ABI_H
#define PERFGUEST_ABI_H

#include <linux/types.h>

/* Raised only when a reader of the former version would misread the stream. */
#define PG_ABI_VERSION 1

enum pg_record_type {
	PG_RECORD_SAMPLE = 1,
	PG_RECORD_VM = 2,
	PG_RECORD_LOST = 3,
};

struct pg_record_header {
	__u32 type;	/* enum pg_record_type */
	__u32 size;	/* of the whole record in bytes, a multiple of 8 */
	__u64 time;	/* nanoseconds of the recording's clock */
	__u32 cpu;	/* host CPU */
	__u32 vm_id;	/* one per VM and session, from 1; 0: not known */
};

/* Flags of a sample: what was the vCPU doing, and what could be read. */
#define PG_SAMPLE_USER		(1ULL << 0)	/* CPL 3 */
#define PG_SAMPLE_LONG_MODE	(1ULL << 1)	/* EFER.LMA */
#define PG_SAMPLE_CODE64	(1ULL << 2)	/* 64-bit code segment */
#define PG_SAMPLE_CODE32	(1ULL << 3)	/* 32-bit code segment; neither: 16-bit */
#define PG_SAMPLE_SMM		(1ULL << 4)	/* system management mode */
#define PG_SAMPLE_NESTED	(1ULL << 5)	/* a guest of this guest was running */
#define PG_SAMPLE_PROTECTED	(1ULL << 6)	/* SEV-ES or TDX: state not readable */
#define PG_SAMPLE_REGS		(1ULL << 8)	/* regs, rflags, cr0, cr4, efer are valid */
#define PG_SAMPLE_CR3		(1ULL << 9)	/* cr3 is the guest's own, up to date */
#define PG_SAMPLE_GS		(1ULL << 10)	/* gs_base is valid */
#define PG_SAMPLE_KERNEL_GS	(1ULL << 11)	/* kernel_gs_base is valid */
#define PG_SAMPLE_TASK		(1ULL << 12)	/* task_* are valid */
#define PG_SAMPLE_DEFERRED	(1ULL << 13)	/* hit in an NMI, read in the interrupt after it */
#define PG_SAMPLE_STALE		(1ULL << 14)	/* the vCPU had moved on: ip only */

/* Indices of regs[]: the hardware's encoding, which is KVM's too. */
enum pg_reg {
	PG_RAX, PG_RCX, PG_RDX, PG_RBX, PG_RSP, PG_RBP, PG_RSI, PG_RDI,
	PG_R8, PG_R9, PG_R10, PG_R11, PG_R12, PG_R13, PG_R14, PG_R15,
	PG_NR_REGS
};

struct pg_sample {
	struct pg_record_header header;
	__u32 vm_pid;		/* process of the VMM (tgid) */
	__u32 tid;		/* thread of the vCPU */
	__u32 vcpu_id;
	__u32 nr_sections;	/* that follow the fixed part */
	__u64 flags;		/* PG_SAMPLE_* */
	__u64 ip;
	__u64 regs[PG_NR_REGS];
	__u64 rflags;
	__u64 cr0;
	__u64 cr3;
	__u64 cr4;
	__u64 efer;
	__u64 gs_base;
	__u64 kernel_gs_base;
	__u32 task_pid;		/* of the guest's running thread, as the guest counts */
	__u32 task_tgid;
	__u64 task_start;	/* nanoseconds of the guest's boot clock */
	char task_comm[16];
};

/*
 * Sections follow the fixed part of a sample back to back. Each is
 * sizeof(struct pg_section) plus size rounded up to 8 bytes long.
 */
enum pg_section_kind {
	PG_SECTION_CHAIN_KERNEL = 1,	/* __u64[]: ip, then return addresses, leaf first */
	PG_SECTION_CHAIN_USER = 2,
	PG_SECTION_STACK_KERNEL = 3,	/* bytes from address upwards */
	PG_SECTION_STACK_TASK = 4,	/* the stack that was interrupted, if any, and if another one was by that, it */
	PG_SECTION_STACK_USER = 5,	/* from 128 bytes below SP: the red zone */
	PG_SECTION_USER_REGS = 6,	/* struct pg_user_regs of the program that the kernel ran for */
};

struct pg_user_regs {
	__u64 regs[PG_NR_REGS];
	__u64 ip;
	__u64 flags;
	__u64 cs;	/* PG_USER_CS or PG_USER32_CS */
};

#define PG_USER32_CS	0x23	/* 32-bit code */
#define PG_USER_CS	0x33	/* 64-bit code */

/* Why a chain or a copy ends where it does. */
enum pg_end {
	PG_END_NONE = 0,
	PG_END_ROOT = 1,	/* chain: the frame pointer is 0, the outermost frame */
	PG_END_FULL = 2,	/* as deep or as long as was asked for */
	PG_END_STACK_TOP = 3,	/* copy: reached the top of the stack */
	PG_END_USER_ENTRY = 4,	/* chain: reached the entry from user mode */
	PG_END_BAD_FRAME = 5,	/* the next frame is not above this one, not aligned or too far away */
	PG_END_BAD_RETURN = 6,	/* what stands for the return address is no code address of this mode */
	PG_END_NOT_MAPPED = 7,	/* the guest's page tables map nothing there */
	PG_END_BAD_ADDRESS = 8,	/* not canonical, or wraps */
	PG_END_BAD_TABLE = 9,	/* a page table entry has reserved bits set, or lies outside memory */
	PG_END_NO_SLOT = 10,	/* guest-physical address in no memslot: MMIO */
	PG_END_NOT_RESIDENT = 11,	/* the host has swapped the page out or not yet given one */
};

struct pg_section {
	__u16 kind;	/* enum pg_section_kind */
	__u16 end;	/* enum pg_end */
	__u32 size;	/* bytes of payload, without padding */
	__u64 address;	/* chains: SP; copies: guest address of the first byte; else 0 */
};

/* Written before a VM's first sample, and again when slots or LSTAR change. */
struct pg_vm {
	struct pg_record_header header;
	__u32 vm_pid;
	__u32 nr_memslots;	/* that follow the fixed part */
	__u64 generation;	/* KVM's, of the memslots */
	__u64 lstar;		/* the guest's syscall entry; 0: not set or not readable */
	__u64 flags;		/* PG_VM_* */
};

#define PG_VM_SLOTS_CUT		(1ULL << 0)	/* there are more memslots than fit */

struct pg_memslot {
	__u64 gpa;
	__u64 size;
	__u64 hva;	/* in the VMM's address space */
	__u32 flags;	/* KVM_MEM_* */
	__u32 id;
};

enum pg_lost_reason {
	PG_LOST_FULL = 0,	/* the ring had no room: the reader is too slow */
	PG_LOST_NESTED = 1,	/* a sample was being taken on this CPU already */
	PG_LOST_NO_READER = 2,	/* nobody had this CPU's stream open */
	PG_LOST_NO_VCPU = 3,	/* the running vCPU could not be found */
	PG_LOST_NR
};

/* Samples that were taken on this CPU and are not in the stream. */
struct pg_lost {
	struct pg_record_header header;
	__u64 lost[PG_LOST_NR];	/* since the last such record, by reason */
};

#endif

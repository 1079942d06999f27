// SPDX-License-Identifier: GPL-2.0-only
/* The VMs seen in this session: numbers them, and tells user space where their memory is. */
#include <linux/hash.h>
#include <linux/kvm_host.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

#include "perfguest.h"
#include "compat.h"
#include "guest_mem.h"
#include "stream.h"
#include "task.h"
#include "vms.h"

#define PG_VM_BITS	10
#define PG_MAX_VMS	(1 << PG_VM_BITS)
#define PG_MAX_MEMSLOTS	1024

struct pg_vm_entry {
	const struct kvm *kvm;	/* only compared; NULL: free */
	pid_t pid;
	u32 id;
	u64 generation;
	u64 lstar;
	bool told;		/* a record with what stands here was written */
	struct pg_task_layout tasks;
};

static struct pg_vm_entry pg_vm_table[PG_MAX_VMS];
static u32 pg_nr_vms;
/* Taken where samples are, with interrupts off; never in an NMI. */
static DEFINE_RAW_SPINLOCK(pg_vm_lock);

void pg_vms_reset(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&pg_vm_lock, flags);
	memset(pg_vm_table, 0, sizeof(pg_vm_table));
	pg_nr_vms = 0;
	raw_spin_unlock_irqrestore(&pg_vm_lock, flags);
}

unsigned int pg_vms_count(void)
{
	return READ_ONCE(pg_nr_vms);
}

static struct pg_vm_entry *pg_vm_find(const struct kvm *kvm, u64 generation)
{
	u32 at = hash_ptr(kvm, PG_VM_BITS), i;

	for (i = 0; i < PG_MAX_VMS; i++, at = (at + 1) % PG_MAX_VMS) {
		struct pg_vm_entry *entry = &pg_vm_table[at];

		if (!entry->kvm) {
			entry->kvm = kvm;
			entry->pid = current->tgid;
			entry->id = ++pg_nr_vms;
			return entry;
		}
		/* Memory of a VM that has ended may be given to a new one, whose count begins anew. */
		if (entry->kvm == kvm && entry->pid == current->tgid &&
		    entry->generation <= generation)
			return entry;
	}
	return NULL;
}

static bool pg_vm_tell(const struct pg_vm_entry *entry, struct pg_guest_mem *mem, u64 time)
{
	struct kvm_memory_slot *slot;
	struct pg_memslot *out;
	struct pg_vm *record;
	u32 nr = 0, fits, size;
	int bkt;

	pg_for_each_memslot(slot, bkt, mem->slots)
		nr++;
	fits = min_t(u32, nr, PG_MAX_MEMSLOTS);
	size = sizeof(*record) + fits * sizeof(*out);
	record = pg_stream_reserve(size);
	if (!record)
		return false;
	*record = (struct pg_vm){
		.header = {
			.type = PG_RECORD_VM,
			.size = size,
			.time = time,
			.cpu = smp_processor_id(),
			.vm_id = entry->id,
		},
		.vm_pid = entry->pid,
		.nr_memslots = fits,
		.generation = entry->generation,
		.lstar = entry->lstar,
		.flags = fits < nr ? PG_VM_SLOTS_CUT : 0,
	};
	out = (struct pg_memslot *)(record + 1);
	pg_for_each_memslot(slot, bkt, mem->slots) {
		if (!fits--)
			break;
		*out++ = (struct pg_memslot){
			.gpa = gfn_to_gpa(slot->base_gfn),
			.size = (u64)slot->npages << PAGE_SHIFT,
			.hva = slot->userspace_addr,
			.flags = slot->flags,
			.id = slot->id,
		};
	}
	pg_stream_commit(size, false);
	return true;
}

int pg_vms_tell_tasks(u32 vm_id, const struct pg_task_layout *tasks)
{
	unsigned long flags;
	int i, ret = -ENOENT;

	raw_spin_lock_irqsave(&pg_vm_lock, flags);
	for (i = 0; i < PG_MAX_VMS && ret; i++) {
		if (pg_vm_table[i].kvm && pg_vm_table[i].id == vm_id) {
			pg_vm_table[i].tasks = *tasks;
			ret = 0;
		}
	}
	raw_spin_unlock_irqrestore(&pg_vm_lock, flags);
	return ret;
}

u32 pg_vms_note(struct pg_guest_mem *mem, u64 time, u64 lstar, struct pg_task_layout *tasks)
{
	u64 generation = mem->slots->generation & ~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
	struct pg_vm_entry *entry;
	u32 id = 0;

	tasks->told = false;
	raw_spin_lock(&pg_vm_lock);
	entry = pg_vm_find(mem->kvm, generation);
	if (!entry)
		goto unlock;
	id = entry->id;
	/* Another syscall entry is another kernel, of which nothing was told yet. */
	if (lstar && entry->lstar != lstar)
		entry->tasks.told = false;
	if (entry->generation != generation || (lstar && entry->lstar != lstar))
		entry->told = false;
	if (!entry->told) {
		entry->generation = generation;
		if (lstar)
			entry->lstar = lstar;
		entry->told = pg_vm_tell(entry, mem, time);
	}
	*tasks = entry->tasks;
unlock:
	raw_spin_unlock(&pg_vm_lock);
	return id;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * A ring of records per CPU, and the debugfs files that it is read from.
 *
 * One producer, one reader. The producer is the CPU itself with interrupts off
 * (a sample hit in an NMI is written in the interrupt after it), so it needs no
 * lock. The ring's pages are mapped twice in a row: every record is contiguous,
 * whatever its place. When there is no room the new sample is dropped and
 * counted; the next record that fits is preceded by one that says how many.
 */
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/irq_work.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "perfguest.h"
#include "control.h"
#include "stream.h"
#include "trigger.h"

struct pg_ring {
	u8 *data;		/* mapped twice */
	u64 size;		/* a power of two */
	struct page **pages;
	unsigned int nr_pages;
	/* Bytes ever written and ever read. */
	u64 head ____cacheline_aligned;
	u64 tail ____cacheline_aligned;
};

struct pg_cpu_stream {
	struct pg_ring __rcu *ring;
	/* The producer's, from reserve to commit: the reader may close in between. */
	struct pg_ring *reserved;
	struct pg_counts counts;
	/* Lost, and not yet told by a record. Both sides take from it. */
	atomic64_t untold[PG_LOST_NR];
	struct irq_work wake;
	wait_queue_head_t wait;
	struct mutex lock;	/* readers: reads, and the change of ring */
	bool open;
};

static DEFINE_PER_CPU(struct pg_cpu_stream, pg_streams);
static atomic_t pg_nr_readers = ATOMIC_INIT(0);

static void pg_ring_free(struct pg_ring *ring)
{
	unsigned int i;

	if (ring->data)
		vunmap(ring->data);
	for (i = 0; i < ring->nr_pages; i++)
		if (ring->pages[i])
			__free_page(ring->pages[i]);
	kvfree(ring->pages);
	kfree(ring);
}

static struct pg_ring *pg_ring_alloc(int cpu, u64 size)
{
	unsigned int i, nr = size >> PAGE_SHIFT;
	struct pg_ring *ring;

	ring = kzalloc(sizeof(*ring), GFP_KERNEL);
	if (!ring)
		return NULL;
	ring->size = size;
	ring->nr_pages = nr;
	ring->pages = kvcalloc(2 * nr, sizeof(*ring->pages), GFP_KERNEL);
	if (!ring->pages) {
		ring->nr_pages = 0;
		goto free;
	}
	for (i = 0; i < nr; i++) {
		ring->pages[i] = alloc_pages_node(cpu_to_node(cpu),
						  GFP_KERNEL | __GFP_NOWARN, 0);
		if (!ring->pages[i])
			goto free;
		ring->pages[nr + i] = ring->pages[i];
	}
	ring->data = vmap(ring->pages, 2 * nr, VM_MAP, PAGE_KERNEL);
	if (ring->data)
		return ring;
free:
	pg_ring_free(ring);
	return NULL;
}

static struct pg_ring *pg_this_ring(struct pg_cpu_stream *stream)
{
	/* Interrupts are off, which is what synchronize_rcu() waits for. */
	return rcu_dereference_sched(stream->ring);
}

void pg_stream_count_taken(void)
{
	this_cpu_inc(pg_streams.counts.taken);
}

void pg_stream_count_lost(enum pg_lost_reason reason)
{
	this_cpu_inc(pg_streams.counts.lost[reason]);
	atomic64_inc(this_cpu_ptr(&pg_streams.untold[reason]));
}

void pg_stream_count_no_room(void)
{
	pg_stream_count_lost(rcu_access_pointer(*this_cpu_ptr(&pg_streams.ring)) ?
			     PG_LOST_FULL : PG_LOST_NO_READER);
}

static bool pg_lost_take(struct pg_cpu_stream *stream, int cpu, struct pg_lost *record)
{
	bool any = false;
	int i;

	memset(record, 0, sizeof(*record));
	for (i = 0; i < PG_LOST_NR; i++) {
		if (!atomic64_read(&stream->untold[i]))
			continue;
		record->lost[i] = atomic64_xchg(&stream->untold[i], 0);
		any |= record->lost[i] != 0;
	}
	record->header.type = PG_RECORD_LOST;
	record->header.size = sizeof(*record);
	record->header.time = pg_trigger_clock();
	record->header.cpu = cpu;
	return any;
}

static void pg_lost_give_back(struct pg_cpu_stream *stream, const struct pg_lost *record)
{
	int i;

	for (i = 0; i < PG_LOST_NR; i++)
		atomic64_add(record->lost[i], &stream->untold[i]);
}

static void *pg_ring_room(struct pg_ring *ring, u32 size)
{
	u64 used = ring->head - smp_load_acquire(&ring->tail);

	if (ring->size - used < size)
		return NULL;
	return ring->data + (ring->head & (ring->size - 1));
}

void *pg_stream_reserve(u32 size)
{
	struct pg_cpu_stream *stream = this_cpu_ptr(&pg_streams);
	struct pg_ring *ring = pg_this_ring(stream);
	struct pg_lost lost, *place;

	if (!ring)
		return NULL;
	if (!pg_ring_room(ring, size + sizeof(lost)))
		return NULL;
	if (unlikely(pg_lost_take(stream, smp_processor_id(), &lost))) {
		place = pg_ring_room(ring, sizeof(lost));
		*place = lost;
		smp_store_release(&ring->head, ring->head + sizeof(lost));
	}
	stream->reserved = ring;
	return pg_ring_room(ring, size);
}

void pg_stream_commit(u32 size, bool is_sample)
{
	struct pg_cpu_stream *stream = this_cpu_ptr(&pg_streams);
	struct pg_ring *ring = stream->reserved;

	smp_store_release(&ring->head, ring->head + size);
	if (is_sample)
		this_cpu_inc(pg_streams.counts.written);
	/* A sample may be taken under locks that a wakeup needs: do it later. */
	if (wq_has_sleeper(&stream->wait))
		irq_work_queue(&stream->wake);
}

static void pg_stream_wake(struct irq_work *work)
{
	wake_up_interruptible(&container_of(work, struct pg_cpu_stream, wake)->wait);
}

unsigned int pg_stream_readers(void)
{
	return atomic_read(&pg_nr_readers);
}

static u64 pg_ring_wanted(void)
{
	return roundup_pow_of_two((u64)READ_ONCE(pg_settings.buffer_kb) << 10);
}

u64 pg_stream_smallest(void)
{
	u64 smallest = pg_ring_wanted();
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct pg_ring *ring;

		rcu_read_lock();
		ring = rcu_dereference(per_cpu_ptr(&pg_streams, cpu)->ring);
		if (ring)
			smallest = min(smallest, ring->size);
		rcu_read_unlock();
	}
	return smallest;
}

void pg_stream_counts(int cpu, struct pg_counts *counts)
{
	const struct pg_cpu_stream *stream = per_cpu_ptr(&pg_streams, cpu);
	int i;

	/* What became of a sample is counted after it was: read the other way round. */
	for (i = 0; i < PG_LOST_NR; i++)
		counts->lost[i] = READ_ONCE(stream->counts.lost[i]);
	counts->written = READ_ONCE(stream->counts.written);
	smp_rmb();
	counts->taken = READ_ONCE(stream->counts.taken);
}

void pg_stream_reset(void)
{
	int cpu, i;

	for_each_possible_cpu(cpu) {
		struct pg_cpu_stream *stream = per_cpu_ptr(&pg_streams, cpu);
		struct pg_ring *ring;

		mutex_lock(&stream->lock);
		memset(&stream->counts, 0, sizeof(stream->counts));
		for (i = 0; i < PG_LOST_NR; i++)
			atomic64_set(&stream->untold[i], 0);
		ring = rcu_dereference_protected(stream->ring, lockdep_is_held(&stream->lock));
		if (ring)
			smp_store_release(&ring->tail, ring->head);
		mutex_unlock(&stream->lock);
	}
}

static int pg_stream_open(struct inode *inode, struct file *file)
{
	int cpu = (long)inode->i_private;
	struct pg_cpu_stream *stream = per_cpu_ptr(&pg_streams, cpu);
	struct pg_ring *ring;
	int ret = 0;

	mutex_lock(&stream->lock);
	if (stream->open) {
		ret = -EBUSY;
		goto unlock;
	}
	ring = pg_ring_alloc(cpu, pg_ring_wanted());
	if (!ring) {
		ret = -ENOMEM;
		goto unlock;
	}
	rcu_assign_pointer(stream->ring, ring);
	stream->open = true;
	atomic_inc(&pg_nr_readers);
	file->private_data = stream;
unlock:
	mutex_unlock(&stream->lock);
	return ret ?: stream_open(inode, file);
}

static int pg_stream_release(struct inode *inode, struct file *file)
{
	struct pg_cpu_stream *stream = file->private_data;
	struct pg_ring *ring;

	if (atomic_dec_and_test(&pg_nr_readers))
		pg_control_no_readers();
	mutex_lock(&stream->lock);
	ring = rcu_dereference_protected(stream->ring, lockdep_is_held(&stream->lock));
	RCU_INIT_POINTER(stream->ring, NULL);
	synchronize_rcu();
	irq_work_sync(&stream->wake);
	pg_ring_free(ring);
	stream->open = false;
	mutex_unlock(&stream->lock);
	return 0;
}

/* How many bytes of whole records fit into count, from the ring's tail on. */
static u64 pg_ring_whole(const struct pg_ring *ring, u64 head, size_t count)
{
	u64 at = ring->tail;

	while (at != head) {
		const struct pg_record_header *header =
			(void *)(ring->data + (at & (ring->size - 1)));

		if (at + header->size - ring->tail > count)
			break;
		at += header->size;
	}
	return at - ring->tail;
}

/* Bytes read, 0 if there is nothing, -EINVAL if not one record fits. */
static ssize_t pg_stream_take(struct pg_cpu_stream *stream, int cpu, char __user *to, size_t count)
{
	struct pg_ring *ring;
	struct pg_lost lost;
	u64 head, size;

	ring = rcu_dereference_protected(stream->ring, lockdep_is_held(&stream->lock));
	head = smp_load_acquire(&ring->head);
	if (head == ring->tail) {
		if (count < sizeof(lost))
			return -EINVAL;
		/* No record will follow that could tell of these. */
		if (!pg_lost_take(stream, cpu, &lost))
			return 0;
		if (copy_to_user(to, &lost, sizeof(lost))) {
			pg_lost_give_back(stream, &lost);
			return -EFAULT;
		}
		return sizeof(lost);
	}
	size = pg_ring_whole(ring, head, count);
	if (!size)
		return -EINVAL;
	if (copy_to_user(to, ring->data + (ring->tail & (ring->size - 1)), size))
		return -EFAULT;
	smp_store_release(&ring->tail, ring->tail + size);
	return size;
}

static bool pg_stream_has_data(struct pg_cpu_stream *stream)
{
	struct pg_ring *ring;
	bool has = false;
	int i;

	rcu_read_lock();
	ring = rcu_dereference(stream->ring);
	if (ring)
		has = smp_load_acquire(&ring->head) != READ_ONCE(ring->tail);
	rcu_read_unlock();
	for (i = 0; i < PG_LOST_NR && !has; i++)
		has = atomic64_read(&stream->untold[i]);
	return has;
}

static ssize_t pg_stream_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	int cpu = (long)file_inode(file)->i_private;
	struct pg_cpu_stream *stream = file->private_data;
	ssize_t ret;

	for (;;) {
		if (mutex_lock_interruptible(&stream->lock))
			return -ERESTARTSYS;
		ret = pg_stream_take(stream, cpu, to, min_t(size_t, count, SZ_1M));
		mutex_unlock(&stream->lock);
		if (ret)
			return ret;
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(stream->wait, pg_stream_has_data(stream)))
			return -ERESTARTSYS;
	}
}

static __poll_t pg_stream_poll(struct file *file, poll_table *table)
{
	struct pg_cpu_stream *stream = file->private_data;

	poll_wait(file, &stream->wait, table);
	return pg_stream_has_data(stream) ? EPOLLIN | EPOLLRDNORM : 0;
}

static const struct file_operations pg_stream_fops = {
	.owner = THIS_MODULE,
	.open = pg_stream_open,
	.release = pg_stream_release,
	.read = pg_stream_read,
	.poll = pg_stream_poll,
};

void pg_stream_init(struct dentry *dir)
{
	char name[16];
	int cpu;

	for_each_possible_cpu(cpu) {
		struct pg_cpu_stream *stream = per_cpu_ptr(&pg_streams, cpu);
		struct dentry *cpu_dir;

		mutex_init(&stream->lock);
		init_waitqueue_head(&stream->wait);
		init_irq_work(&stream->wake, pg_stream_wake);
		snprintf(name, sizeof(name), "cpu%d", cpu);
		cpu_dir = debugfs_create_dir(name, dir);
		debugfs_create_file("stream", 0400, cpu_dir, (void *)(long)cpu, &pg_stream_fops);
	}
}

void pg_stream_exit(void)
{
	int cpu;

	/* No file is open any more, so no ring is left: the files held the module. */
	for_each_possible_cpu(cpu)
		irq_work_sync(&per_cpu_ptr(&pg_streams, cpu)->wake);
}

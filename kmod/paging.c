// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The guest's page tables, walked in software for every paging mode of x86.
 * Which bits of an entry are reserved is what the processor checks too (Intel
 * SDM volume 3A, chapter 4; AMD APM volume 2, chapter 5). A guest in a sound
 * state has none of them set, so they tell tables from what only looks like
 * them. Permission bits do not matter to us.
 */
#include "paging.h"
#include "perfguest_abi.h"

#define CR0_PG		(1ULL << 31)
#define CR4_PSE		(1ULL << 4)
#define CR4_PAE		(1ULL << 5)
#define CR4_LA57	(1ULL << 12)
#define EFER_LMA	(1ULL << 10)
#define EFER_NXE	(1ULL << 11)

#define PTE_PRESENT	(1ULL << 0)
#define PTE_PS		(1ULL << 7)
#define PTE_NX		(1ULL << 63)

#define PHYS_BITS_MAX	52
#define LOW_4G		0x100000000ULL

/* Bits from low to high, both included; none if high is below low. */
static __u64 bits(unsigned int high, unsigned int low)
{
	if (high < low)
		return 0;
	return (~0ULL >> (63 - high)) & (~0ULL << low);
}

/* Width of the guest's physical addresses. */
static unsigned int phys_bits(const struct pg_paging *paging)
{
	if (paging->maxphyaddr < 32 || paging->maxphyaddr > PHYS_BITS_MAX)
		return PHYS_BITS_MAX;
	return paging->maxphyaddr;
}

static bool paging_on(const struct pg_paging *paging)
{
	return paging->cr0 & CR0_PG;
}

static bool long_mode(const struct pg_paging *paging)
{
	return paging_on(paging) && (paging->efer & EFER_LMA);
}

/**
 * pg_low_half_end() - where the lower half of the address space ends
 * @paging: the registers that choose the paging mode
 *
 * Return: the first address above it, which is the first above user space too;
 * outside long mode, 4 GiB.
 */
__u64 pg_low_half_end(const struct pg_paging *paging)
{
	if (!long_mode(paging))
		return LOW_4G;
	return 1ULL << (paging->cr4 & CR4_LA57 ? 56 : 47);
}

/**
 * pg_is_canonical() - can this be an address at all
 * @paging: the registers that choose the paging mode
 * @gva: guest virtual address
 *
 * Return: whether @gva is canonical for 48 or 57 bits, or, outside long mode,
 * below 4 GiB.
 */
bool pg_is_canonical(const struct pg_paging *paging, __u64 gva)
{
	__u64 end = pg_low_half_end(paging);

	if (gva < end)
		return true;
	return long_mode(paging) && gva >= -end;
}

/* Reads the entry of a table; a table outside memory is a bad table. */
static int read_entry(const struct pg_phys *phys, __u64 gpa, __u64 *entry,
		      __u32 size)
{
	int err;

	*entry = 0;	/* and its upper half, if size is 4: little-endian */
	err = phys->read(phys->ctx, gpa, entry, size);
	return err == PG_END_NO_SLOT ? PG_END_BAD_TABLE : err;
}

/* Reads a non-root entry of 8 bytes and checks what holds at all its levels. */
static int read_entry64(const struct pg_phys *phys, __u64 gpa, __u64 reserved,
			__u64 *entry)
{
	int err = read_entry(phys, gpa, entry, 8);

	if (err)
		return err;
	if (!(*entry & PTE_PRESENT))
		return PG_END_NOT_MAPPED;
	return *entry & reserved ? PG_END_BAD_TABLE : 0;
}

static int leaf(__u64 frame, unsigned int shift, __u64 gva, __u64 *gpa,
		__u64 *page_size)
{
	*page_size = 1ULL << shift;
	*gpa = (frame & ~(*page_size - 1)) | (gva & (*page_size - 1));
	return 0;
}

/*
 * Tables of 512 entries, from level @level (5 to 2) down: long mode, and PAE
 * below its four pointers. @reserved holds at every level.
 */
static int walk_512(const struct pg_phys *phys, __u64 table, int level,
		    __u64 reserved, __u64 gva, __u64 *gpa, __u64 *page_size)
{
	const __u64 frame = bits(PHYS_BITS_MAX - 1, 12) & ~reserved;

	for (; level >= 1; level--) {
		unsigned int shift = 12 + 9 * (unsigned int)(level - 1);
		__u64 entry;
		int err;

		err = read_entry64(phys, table + ((gva >> shift) & 511) * 8,
				   reserved, &entry);
		if (err)
			return err;
		table = entry & frame;
		if (level == 1)
			return leaf(table, shift, gva, gpa, page_size);
		if (!(entry & PTE_PS))
			continue;
		/* Bit 12 of a large page is its PAT bit. */
		if (level > 3 || (entry & bits(shift - 1, 13)))
			return PG_END_BAD_TABLE;
		return leaf(table, shift, gva, gpa, page_size);
	}
	return PG_END_BAD_TABLE;	/* not reached */
}

static int translate_long(const struct pg_paging *paging,
			  const struct pg_phys *phys, __u64 gva, __u64 *gpa,
			  __u64 *page_size)
{
	__u64 reserved = bits(PHYS_BITS_MAX - 1, phys_bits(paging));
	/* Above the address: LAM's bits, and bit 63 as the kernel writes it. */
	__u64 table = paging->cr3 & bits(PHYS_BITS_MAX - 1, 12);

	if (table & reserved)
		return PG_END_BAD_TABLE;
	if (!(paging->efer & EFER_NXE))
		reserved |= PTE_NX;
	return walk_512(phys, table, paging->cr4 & CR4_LA57 ? 5 : 4,
			reserved, gva, gpa, page_size);
}

static int translate_pae(const struct pg_paging *paging,
			 const struct pg_phys *phys, __u64 gva, __u64 *gpa,
			 __u64 *page_size)
{
	__u64 reserved = bits(62, phys_bits(paging));
	__u64 root = paging->cr3 & bits(31, 5);
	__u64 entry;
	int err;

	err = read_entry64(phys, root + ((gva >> 30) & 3) * 8,
			   reserved | PTE_NX | bits(8, 5) | bits(2, 1), &entry);
	if (err)
		return err;
	if (!(paging->efer & EFER_NXE))
		reserved |= PTE_NX;
	return walk_512(phys, entry & bits(PHYS_BITS_MAX - 1, 12), 2,
			reserved, gva, gpa, page_size);
}

static int translate_32(const struct pg_paging *paging,
			const struct pg_phys *phys, __u64 gva, __u64 *gpa,
			__u64 *page_size)
{
	/* PSE-36: bits 20 to 13 of a 4 MiB page are address bits 39 to 32. */
	unsigned int width = phys_bits(paging) < 40 ? phys_bits(paging) : 40;
	__u64 entry;
	int err;

	err = read_entry(phys, (paging->cr3 & bits(31, 12)) +
			 ((gva >> 22) & 1023) * 4, &entry, 4);
	if (err)
		return err;
	if (!(entry & PTE_PRESENT))
		return PG_END_NOT_MAPPED;
	if ((entry & PTE_PS) && (paging->cr4 & CR4_PSE)) {
		if (entry & bits(21, width - 19))
			return PG_END_BAD_TABLE;
		return leaf((entry & bits(31, 22)) |
			    (entry & bits(20, 13)) << 19, 22, gva, gpa,
			    page_size);
	}
	err = read_entry(phys, (entry & bits(31, 12)) +
			 ((gva >> 12) & 1023) * 4, &entry, 4);
	if (err)
		return err;
	if (!(entry & PTE_PRESENT))
		return PG_END_NOT_MAPPED;
	return leaf(entry & bits(31, 12), 12, gva, gpa, page_size);
}

/**
 * pg_translate() - guest virtual to guest physical address
 * @paging: the registers that choose the paging mode and its tables
 * @phys: reads the tables; at most 5 reads of 4 or 8 bytes
 * @gva: guest virtual address
 * @gpa: the guest physical address, on success
 * @page_size: size in bytes of the page that maps it, on success
 *
 * Return: 0, or an enum pg_end: PG_END_BAD_ADDRESS, PG_END_NOT_MAPPED,
 * PG_END_BAD_TABLE, or what @phys said other than PG_END_NO_SLOT.
 */
int pg_translate(const struct pg_paging *paging, const struct pg_phys *phys,
		 __u64 gva, __u64 *gpa, __u64 *page_size)
{
	if (!pg_is_canonical(paging, gva))
		return PG_END_BAD_ADDRESS;
	if (!paging_on(paging))
		return leaf(gva, 12, gva, gpa, page_size);
	if (long_mode(paging))
		return translate_long(paging, phys, gva, gpa, page_size);
	if (paging->cr4 & CR4_PAE)
		return translate_pae(paging, phys, gva, gpa, page_size);
	return translate_32(paging, phys, gva, gpa, page_size);
}

/**
 * pg_virt_init() - begin to read from an address space
 * @virt: what to initialise
 * @paging: copied
 * @phys: copied
 *
 * Pages that were translated are kept, so @virt is for one sample: the vCPU
 * must not run between this and the last read. Others may run and change the
 * tables; then what is read is of before or after, as the processor's own is.
 */
void pg_virt_init(struct pg_virt *virt, const struct pg_paging *paging,
		  const struct pg_phys *phys)
{
	__u32 i;

	virt->paging = *paging;
	virt->phys = *phys;
	for (i = 0; i < PG_KEPT_PAGES; i++)
		virt->kept[i].gva = 0;
}

/* Reads what lies within one 4 KiB page. */
static int read_in_page(struct pg_virt *virt, __u64 gva, void *buf, __u32 len)
{
	__u64 page = gva & ~(PG_PAGE_SIZE - 1);
	struct pg_kept_page *kept = &virt->kept[(gva / PG_PAGE_SIZE) % PG_KEPT_PAGES];

	if (kept->gva != page + 1) {
		__u64 gpa, size;
		int err;

		err = pg_translate(&virt->paging, &virt->phys, page, &gpa, &size);
		if (err)
			return err;
		kept->gva = page + 1;
		kept->gpa = gpa;
	}
	return virt->phys.read(virt->phys.ctx, kept->gpa + (gva - page), buf, len);
}

/**
 * pg_read_virt_some() - read guest memory as far as it can be read
 * @virt: the address space
 * @gva: guest virtual address of the first byte
 * @buf: room for @len bytes
 * @len: how many bytes
 * @end: 0 if all were read, else the enum pg_end that says why not
 *
 * Return: how many bytes were read from the start on. What follows them in
 * @buf is undefined.
 */
__u32 pg_read_virt_some(struct pg_virt *virt, __u64 gva, void *buf, __u32 len,
			int *end)
{
	__u32 done = 0;

	*end = PG_END_NONE;
	while (done < len) {
		__u64 address = gva + done;
		__u32 chunk = (__u32)(PG_PAGE_SIZE - (address & (PG_PAGE_SIZE - 1)));

		if (address < gva) {
			*end = PG_END_BAD_ADDRESS;
			break;
		}
		if (chunk > len - done)
			chunk = len - done;
		*end = read_in_page(virt, address, (char *)buf + done, chunk);
		if (*end)
			break;
		done += chunk;
	}
	return done;
}

/**
 * pg_read_virt() - read guest memory
 * @virt: the address space
 * @gva: guest virtual address of the first byte
 * @buf: room for @len bytes; undefined on failure
 * @len: how many bytes
 *
 * Return: 0, or the enum pg_end that says why not all could be read.
 */
int pg_read_virt(struct pg_virt *virt, __u64 gva, void *buf, __u32 len)
{
	int end;

	pg_read_virt_some(virt, gva, buf, len, &end);
	return end;
}

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Drives the pure C with bytes that mean whatever they happen to: registers,
 * page tables, stacks, machine code. Built with AddressSanitizer and
 * UndefinedBehaviorSanitizer, it shows that nothing leaves its buffers and
 * that every walk ends. With -DPG_LIBFUZZER it is a target for libFuzzer,
 * else a program: fuzz_pure SEED ROUNDS.
 */
#include "frames.h"
#include "fuzzing.h"
#include "gs_scan.h"
#include "perfguest_abi.h"
#include "stacks.h"

#define MEMORY		4096
#define MAX_READS	5
#define DEPTH		32

struct guest {
	struct input in;
	bool flat;
	__u64 reads;
};

/*
 * All of guest memory repeats what is left of the input; if flat, but for
 * tables at 0 that map all addresses, so that more stacks can be read.
 */
static int read_phys(void *ctx, __u64 gpa, void *buf, __u32 len)
{
	struct guest *guest = ctx;
	__u32 i;

	guest->reads++;
	expect(len && len <= PG_PAGE_SIZE - gpa % PG_PAGE_SIZE, "a read crosses a page");
	if (!guest->in.size || gpa % 61 == 60)
		return PG_END_NO_SLOT;
	if (guest->flat && gpa < 0x2000 && len == 8) {
		*(__u64 *)buf = gpa < 0x1000 ? 0x1003 : 0x40000083;
		return 0;
	}
	for (i = 0; i < len; i++)
		((uint8_t *)buf)[i] = guest->in.bytes[(gpa + i) % guest->in.size];
	return 0;
}

static void fuzz_stacks(struct guest *guest, struct pg_virt *virt, __u64 sp)
{
	struct pg_stacks_in given;
	struct pg_stacks out;
	__u64 regs[PG_NR_REGS];
	__u32 i;

	take(&guest->in, regs, sizeof(regs));
	take(&guest->in, &given, sizeof(given));
	given.regs = regs;
	if (given.tss & 1)
		given.lstar = given.ip - (given.lstar & 255);
	if (given.tss & 2)
		regs[PG_RSP] = sp;
	if (given.tss & 4)
		regs[PG_RSP] = 0xfffffe0000000000ULL | (sp & 0xffffff);
	guest->reads = 0;
	pg_find_stacks(virt, &given, &out);
	expect(guest->reads <= 32 * (MAX_READS + 1), "too many reads for stacks");
	expect(out.nr <= PG_MAX_STACKS, "too many stacks");
	for (i = 0; i < out.nr; i++)
		expect(out.stack[i].top - out.stack[i].sp - 1 < 16384, "a stack too large");
	if (out.has_user)
		expect(out.user.cs == PG_USER_CS || out.user.cs == PG_USER32_CS, "no user's CS");
	pg_find_user_regs(virt, sp, given.tss & 8 ? regs : NULL, &out.user);
}

static void fuzz_memory(struct guest *guest)
{
	struct pg_phys phys = { .read = read_phys, .ctx = guest };
	struct pg_user_regs user;
	struct pg_paging paging;
	struct pg_frames_in frames;
	struct pg_virt virt;
	uint16_t flags;
	uint8_t *buffer;
	__u64 gva, gpa, page_size, *entries;
	__u32 count, len;
	int end;

	take(&guest->in, &flags, sizeof(flags));
	take(&guest->in, &paging, sizeof(paging));
	if (flags & 1)
		paging.cr0 |= 1ULL << 31;
	if (flags & 2)
		paging.efer |= 1ULL << 10;
	gva = take64(&guest->in);
	guest->flat = flags & 256;
	if (guest->flat)
		paging = (struct pg_paging){ .cr0 = 1ULL << 31, .efer = 1ULL << 10 };
	if (flags & 4)
		gva = (__u64)((__s64)(gva << 16) >> 16);

	if (!pg_translate(&paging, &phys, gva, &gpa, &page_size))
		expect((gva ^ gpa) % page_size == 0, "the offset in a page changed");
	expect(guest->reads <= MAX_READS, "too many reads for one translation");

	pg_virt_init(&virt, &paging, &phys);
	len = (__u32)take64(&guest->in) % (3 * MEMORY);
	buffer = malloc(len);
	count = pg_read_virt_some(&virt, gva, buffer, len, &end);
	expect(count <= len && (count == len) == !end, "a read's result is wrong");
	free(buffer);

	take(&guest->in, &frames, sizeof(frames));
	frames.code64 = flags & 8;
	frames.kernel = flags & 16;
	frames.user = flags & 32 ? &user : NULL;
	if (flags & 64)
		frames.sp = gva;
	if (flags & 128)
		frames.bp = (frames.sp & ~7ULL) + (flags & 512 ? 65 : 64);
	guest->reads = 0;
	count = (flags >> 10) % (DEPTH + 1);
	entries = malloc(count * sizeof(*entries));
	expect(pg_frames_walk(&virt, &frames, entries, count, &end) <= count, "too many entries");
	expect(end != PG_END_NONE, "a chain without an end");
	expect(guest->reads <= (DEPTH + 2) * 4 * (MAX_READS + 1), "too many reads for one chain");
	free(entries);
	fuzz_stacks(guest, &virt, frames.sp);
}

static void fuzz_code(struct input *in)
{
	__u64 address = take64(in), offset;
	uint8_t *code = malloc(in->size);

	memcpy(code, in->bytes, in->size);
	expect(pg_scan_gs_offset(code, (__u32)in->size, address, &offset) <= 0, "a positive error");
	free(code);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct guest memory = { .in = { bytes, size } };
	struct input code = memory.in;

	fuzz_memory(&memory);
	fuzz_code(&code);
	return 0;
}

#ifndef PG_LIBFUZZER
static uint64_t random_state;

/* Values at the borders, of which chance would make few. */
static __u64 interesting(void)
{
	static const __u64 values[] = {
		0, 1, 7, 8, 0x10, 0x23, 0x2b, 0x33, 0x246, 0x1000, 0x3001, 0x81,
		1ULL << 32, (1ULL << 32) - 8, 1ULL << 47, (1ULL << 47) - 8,
		1ULL << 56, -(1ULL << 47), -(1ULL << 56), -8ULL, -16ULL, ~0ULL,
		0xffffffff81000000ULL, 0xffffc90000000001ULL, 1ULL << 63,
		/* endbr64; mov %gs:0(%rip),%rax; mov %rax,8(%rsp) */
		0x0ff3fa1e0ff3ULL, 0x00000000058b4865ULL, 0x0000082444894800ULL,
	};

	return values[random64(&random_state) % (sizeof(values) / sizeof(values[0]))];
}

/* What stands in saved registers from the instruction pointer on. */
static void put_saved_regs(__u64 *at)
{
	static const __u64 saved[][5] = {
		{ 0x555555550000, 0x33, 0x246, 0x7ffd12340000, 0x2b },
		{ 0x08048000, 0x23, 0x246, 0xfffc0000, 0x2b },
		{ 0xffffffff81000000, 0x10, 0x46, 0xffffc90000104000, 0x18 },
		{ 0, 0, 0, 0, 0 },
	};

	memcpy(at, saved[random64(&random_state) % 4], sizeof(saved[0]));
}

int main(int argc, char **argv)
{
	long rounds, i;

	expect(argc == 3, "usage: fuzz_pure SEED ROUNDS");
	random_state = strtoull(argv[1], NULL, 0) | 1;
	rounds = strtol(argv[2], NULL, 0);
	for (i = 0; i < rounds; i++) {
		size_t words = 1 + random64(&random_state) % 96, word;
		size_t size = words * 8 - random64(&random_state) % 8;
		__u64 *bytes = malloc(words * 8);

		for (word = 0; word < words; word++)
			bytes[word] = random64(&random_state) & 1 ? interesting() : random64(&random_state) >> random64(&random_state) % 64;
		for (word = 0; word + 5 <= words; word += 5)
			if (!(random64(&random_state) % 4))
				put_saved_regs(bytes + word);
		LLVMFuzzerTestOneInput((uint8_t *)bytes, size);
		free(bytes);
	}
	return 0;
}
#endif

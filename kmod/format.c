// SPDX-License-Identifier: GPL-2.0-only
/*
 * The debugfs file "format": what a record is made of, field by field, in the
 * way of tracefs' events/.../format, and what the numbers in it mean. Readers go
 * by this and not by the header that the module was built from.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>
#include <linux/stddef.h>

#include "perfguest.h"
#include "format.h"

struct pg_field {
	const char *declaration;
	u16 offset;
	u16 size;
};

#define PG_FIELD(type, struct_name, member) \
	{ #type " " #member, offsetof(struct struct_name, member), \
	  sizeof_field(struct struct_name, member) }
#define PG_ARRAY(type, struct_name, member, count) \
	{ #type " " #member "[" #count "]", offsetof(struct struct_name, member), \
	  sizeof_field(struct struct_name, member) }

#define PG_HEADER_FIELDS(struct_name) \
	{ "u32 type", offsetof(struct struct_name, header.type), sizeof(u32) }, \
	{ "u32 size", offsetof(struct struct_name, header.size), sizeof(u32) }, \
	{ "u64 time", offsetof(struct struct_name, header.time), sizeof(u64) }, \
	{ "u32 cpu", offsetof(struct struct_name, header.cpu), sizeof(u32) }, \
	{ "u32 vm_id", offsetof(struct struct_name, header.vm_id), sizeof(u32) }

static const struct pg_field pg_sample_fields[] = {
	PG_HEADER_FIELDS(pg_sample),
	PG_FIELD(u32, pg_sample, vm_pid),
	PG_FIELD(u32, pg_sample, tid),
	PG_FIELD(u32, pg_sample, vcpu_id),
	PG_FIELD(u32, pg_sample, nr_sections),
	PG_FIELD(u64, pg_sample, flags),
	PG_FIELD(u64, pg_sample, ip),
	PG_ARRAY(u64, pg_sample, regs, 16),
	PG_FIELD(u64, pg_sample, rflags),
	PG_FIELD(u64, pg_sample, cr0),
	PG_FIELD(u64, pg_sample, cr3),
	PG_FIELD(u64, pg_sample, cr4),
	PG_FIELD(u64, pg_sample, efer),
	PG_FIELD(u64, pg_sample, gs_base),
	PG_FIELD(u64, pg_sample, kernel_gs_base),
	PG_FIELD(u32, pg_sample, task_pid),
	PG_FIELD(u32, pg_sample, task_tgid),
	PG_FIELD(u64, pg_sample, task_start),
	PG_ARRAY(char, pg_sample, task_comm, 16),
	{}
};

static const struct pg_field pg_section_fields[] = {
	PG_FIELD(u16, pg_section, kind),
	PG_FIELD(u16, pg_section, end),
	PG_FIELD(u32, pg_section, size),
	PG_FIELD(u64, pg_section, address),
	{}
};

static const struct pg_field pg_user_regs_fields[] = {
	PG_ARRAY(u64, pg_user_regs, regs, 16),
	PG_FIELD(u64, pg_user_regs, ip),
	PG_FIELD(u64, pg_user_regs, flags),
	PG_FIELD(u64, pg_user_regs, cs),
	{}
};

static const struct pg_field pg_vm_fields[] = {
	PG_HEADER_FIELDS(pg_vm),
	PG_FIELD(u32, pg_vm, vm_pid),
	PG_FIELD(u32, pg_vm, nr_memslots),
	PG_FIELD(u64, pg_vm, generation),
	PG_FIELD(u64, pg_vm, lstar),
	PG_FIELD(u64, pg_vm, flags),
	{}
};

static const struct pg_field pg_memslot_fields[] = {
	PG_FIELD(u64, pg_memslot, gpa),
	PG_FIELD(u64, pg_memslot, size),
	PG_FIELD(u64, pg_memslot, hva),
	PG_FIELD(u32, pg_memslot, flags),
	PG_FIELD(u32, pg_memslot, id),
	{}
};

static const struct pg_field pg_lost_fields[] = {
	PG_HEADER_FIELDS(pg_lost),
	PG_ARRAY(u64, pg_lost, lost, 4),
	{}
};

static const struct {
	const char *name;
	u32 type;	/* enum pg_record_type; 0: a part of records */
	u32 size;
	const struct pg_field *fields;
} pg_structs[] = {
	{ "sample", PG_RECORD_SAMPLE, sizeof(struct pg_sample), pg_sample_fields },
	{ "section", 0, sizeof(struct pg_section), pg_section_fields },
	{ "user_regs", 0, sizeof(struct pg_user_regs), pg_user_regs_fields },
	{ "vm", PG_RECORD_VM, sizeof(struct pg_vm), pg_vm_fields },
	{ "memslot", 0, sizeof(struct pg_memslot), pg_memslot_fields },
	{ "lost", PG_RECORD_LOST, sizeof(struct pg_lost), pg_lost_fields },
};

static_assert(PG_LOST_NR == 4, "the field lost[] above");
static_assert(PG_NR_REGS == 16, "the field regs[] above");

static int pg_format_show(struct seq_file *seq, void *unused)
{
	const struct pg_field *field;
	int i;

	seq_printf(seq, "abi: %d\n", PG_ABI_VERSION);
	for (i = 0; i < ARRAY_SIZE(pg_structs); i++) {
		seq_printf(seq, "\nname: %s\nID: %u\nsize: %u\n", pg_structs[i].name,
			   pg_structs[i].type, pg_structs[i].size);
		for (field = pg_structs[i].fields; field->declaration; field++)
			seq_printf(seq, "\tfield:%s;\toffset:%u;\tsize:%u;\n",
				   field->declaration, field->offset, field->size);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pg_format);

void pg_format_init(struct dentry *dir)
{
	debugfs_create_file("format", 0400, dir, NULL, &pg_format_fops);
}

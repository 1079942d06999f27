// SPDX-License-Identifier: Apache-2.0
// Loads BPF programs that do nothing, says so, and keeps them until it is killed.
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	char names[][16] = { "first", "second", "third" };
	union bpf_attr attr;

	for (int i = 0; i < 3; i++) {
		memset(&attr, 0, sizeof(attr));
		attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
		attr.insns = (unsigned long)code;
		attr.insn_cnt = 2;
		attr.license = (unsigned long)"Apache-2.0";
		strcpy(attr.prog_name, names[i]);
		if (syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr)) < 0) {
			perror("BPF_PROG_LOAD");
			return 1;
		}
	}
	puts("loaded");
	fflush(stdout);
	close(1);
	close(2);
	pause();
	return 0;
}

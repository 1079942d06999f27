// SPDX-License-Identifier: Apache-2.0
// reboot_into KERNEL INITRD: waits for a line on the console, then boots that kernel by kexec, with the command line that this one has.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what)
{
	printf("PERFGUEST-WORKLOAD-FAILED %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	char line[64], options[2048];
	int fd = open("/proc/cmdline", O_RDONLY);
	ssize_t length = read(fd, options, sizeof(options) - 1);

	if (argc != 3 || length <= 0)
		return fail("reboot_into");
	/* A new line is its last character. */
	options[length - 1] = 0;
	if (!fgets(line, sizeof(line), stdin))
		return fail("the console");
	if (syscall(SYS_kexec_file_load, open(argv[1], O_RDONLY), open(argv[2], O_RDONLY), length, options, 0))
		return fail("kexec_file_load");
	printf("PERFGUEST-GUEST-REBOOTS\n");
	fflush(stdout);
	reboot(RB_KEXEC);
	return fail("reboot");
}

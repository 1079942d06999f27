// SPDX-License-Identifier: Apache-2.0
/*
 * The workload of the lab's guest. `workload` alone supervises two programs of this same file, in sessions of their own, so that the scheduler's
 * autogroups give each about half of the CPU:
 *
 *   pg-truth     computes in a call tree that is fixed and known (truth.json); it makes no system call while it runs
 *   pg-syscalls  spends its time in the kernel: files, pipes, fork and exec, hashing, mappings
 *
 * When both have done a first round it prints PERFGUEST-GUEST-UP, and from then on a PERFGUEST-HEARTBEAT line every second.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_alg.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Neither inlined, cloned nor merged with its twin: every function below is one frame under its own name. */
#define FRAME __attribute__((noipa))

/* One unit of a leaf's work; long, so that the few instructions without a whole frame (prologue, epilogue) weigh nothing. */
#define UNIT 400000UL

static volatile uint64_t sink;

/* Without a use of its frame gcc gives a leaf none, whatever it is told of frame pointers; then its caller would be missing in the chain. */
#define LEAF(name, units)                                                      \
	FRAME static void name(uint64_t x)                                     \
	{                                                                      \
		asm volatile("" : : "r"(__builtin_frame_address(0)));          \
		for (unsigned long i = 0; i < (units) * UNIT; i++) {           \
			x ^= x << 13;                                          \
			x ^= x >> 7;                                           \
			x ^= x << 17;                                          \
		}                                                              \
		sink = x;                                                      \
	}

LEAF(leaf_a, 1)
LEAF(leaf_b, 2)
LEAF(leaf_c, 3)

FRAME static void alpha(uint64_t x)
{
	leaf_a(x);
	leaf_b(x + 1);
	sink++;
}

FRAME static void gamma(uint64_t x)
{
	leaf_c(x + 2);
	sink++;
}

FRAME static void beta(uint64_t x)
{
	gamma(x + 3);
	sink++;
}

FRAME static void work(uint64_t x)
{
	alpha(x);
	beta(x);
	sink++;
}

static void die(const char *what)
{
	printf("PERFGUEST-WORKLOAD-FAILED %s: %s\n", what, strerror(errno));
	exit(1);
}

FRAME static void files_round(void)
{
	static char block[16384];
	struct stat st;

	for (int i = 0; i < 20; i++) {
		int fd = open("/tmp/workload.file", O_RDWR | O_CREAT | O_TRUNC, 0600);

		if (fd < 0)
			die("/tmp/workload.file");
		for (int j = 0; j < 8; j++)
			if (write(fd, block, sizeof(block)) != sizeof(block))
				die("write");
		lseek(fd, 0, SEEK_SET);
		while (read(fd, block, sizeof(block)) > 0)
			;
		fstat(fd, &st);
		close(fd);
		stat("/bin/workload", &st);
		unlink("/tmp/workload.file");
	}
}

FRAME static void pipes_round(void)
{
	char block[4096] = { 0 };
	int fds[2];
	pid_t child;

	if (pipe(fds))
		die("pipe");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		close(fds[1]);
		while (read(fds[0], block, sizeof(block)) > 0)
			;
		_exit(0);
	}
	close(fds[0]);
	for (int i = 0; i < 200; i++)
		if (write(fds[1], block, sizeof(block)) < 0)
			die("write to a pipe");
	close(fds[1]);
	waitpid(child, NULL, 0);
}

FRAME static void exec_round(const char *self)
{
	for (int i = 0; i < 5; i++) {
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (!child) {
			execl(self, self, "nothing", NULL);
			_exit(127);
		}
		waitpid(child, NULL, 0);
	}
}

/* Hashing by the kernel, through its AF_ALG sockets where it has them; its random numbers are a hash too (ChaCha20 and BLAKE2s). */
FRAME static void hash_round(void)
{
	struct sockaddr_alg address = { .salg_family = AF_ALG, .salg_type = "hash", .salg_name = "sha256" };
	static char block[16384];
	int alg = socket(AF_ALG, SOCK_SEQPACKET, 0);
	int op = -1;

	if (alg >= 0 && !bind(alg, (struct sockaddr *)&address, sizeof(address)))
		op = accept(alg, NULL, NULL);
	for (int i = 0; i < 30; i++) {
		char digest[32];

		if (op >= 0 && send(op, block, sizeof(block), 0) == sizeof(block))
			(void)!read(op, digest, sizeof(digest));
		else if (getrandom(block, sizeof(block), 0) < 0)
			die("getrandom");
	}
	if (op >= 0)
		close(op);
	if (alg >= 0)
		close(alg);
}

FRAME static void mappings_round(void)
{
	for (int i = 0; i < 20; i++) {
		size_t size = 256 << 10;
		char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED)
			die("mmap");
		for (size_t at = 0; at < size; at += 4096)
			area[at] = 1;
		munmap(area, size);
	}
}

FRAME static void syscalls_round(const char *self)
{
	files_round();
	pipes_round();
	exec_round(self);
	hash_round();
	mappings_round();
	sink++;
}

static void ready(void)
{
	if (write(3, "r", 1) != 1)
		_exit(1);
	close(3);
}

static pid_t start(const char *self, const char *program, int ready_fd)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid) {
		setsid();
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (dup2(ready_fd, 3) < 0)
			die("dup2");
		execl(self, self, program, NULL);
		die(self);
	}
	return pid;
}

static int supervise(const char *self)
{
	struct timespec second = { .tv_sec = 1 };
	int fds[2];
	char c;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (pipe2(fds, O_CLOEXEC))
		die("pipe");
	start(self, "truth", fds[1]);
	start(self, "syscalls", fds[1]);
	for (int i = 0; i < 2; i++)
		if (read(fds[0], &c, 1) != 1)
			die("the programs");
	printf("PERFGUEST-GUEST-UP\n");
	for (unsigned long beat = 1;; beat++) {
		nanosleep(&second, NULL);
		if (waitpid(-1, NULL, WNOHANG) > 0) {
			printf("PERFGUEST-WORKLOAD-FAILED a program ended\n");
			return 1;
		}
		printf("PERFGUEST-HEARTBEAT %lu\n", beat);
	}
}

int main(int argc, char **argv)
{
	const char *program = argc > 1 ? argv[1] : "";

	if (!strcmp(program, "nothing"))
		return 0;
	if (!strcmp(program, "truth")) {
		prctl(PR_SET_NAME, "pg-truth");
		work(1);
		ready();
		for (uint64_t x = 2;; x++)
			work(x);
	}
	if (!strcmp(program, "syscalls")) {
		prctl(PR_SET_NAME, "pg-syscalls");
		syscalls_round(argv[0]);
		ready();
		for (;;)
			syscalls_round(argv[0]);
	}
	return supervise(argv[0]);
}

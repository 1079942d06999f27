/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that are hard to describe. puzzle MODE /tmp/ready.NAME: calls itself NAME, sets itself up, makes that file, and waits. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *ready_path;

static void ready(void)
{
	close(open(ready_path, O_CREAT | O_WRONLY, 0600));
}

static int fill(int fd, int pages)
{
	char page[4096];

	for (int i = 0; i < pages; i++) {
		memset(page, 'a' + i, sizeof(page));
		if (write(fd, page, sizeof(page)) != sizeof(page))
			exit(1);
	}
	return fd;
}

/* Pages 0, 1, 200 and 8,000, and 5 bytes of the next. */
static int holes(int fd)
{
	fill(fd, 2);
	lseek(fd, 200 * 4096, SEEK_SET);
	fill(fd, 1);
	lseek(fd, 8000 * 4096, SEEK_SET);
	fill(fd, 1);
	if (write(fd, "12345", 5) != 5)
		exit(1);
	return fd;
}

static void map(int fd, int prot, int pages)
{
	volatile char *at = mmap(NULL, pages * 4096, prot, MAP_PRIVATE, fd, 0);

	if (at == MAP_FAILED)
		exit(2);
	at[0];
}

/* Mappings of every name that maps knows, each apart from its neighbour. */
static void maps(void)
{
	char directory[201] = "";

	memset(directory, 'd', 200);
	map(fill(memfd_create("jit code", 0), 3), PROT_READ | PROT_EXEC, 3);
	map(fill(open("/tmp/gone", O_CREAT | O_RDWR, 0700), 2), PROT_READ | PROT_EXEC, 2);
	unlink("/tmp/gone");
	map(fill(open("/tmp/new\nline \\ x", O_CREAT | O_RDWR, 0700), 5), PROT_READ | PROT_EXEC, 5);
	map(holes(open("/tmp/holes", O_CREAT | O_RDWR, 0700)), PROT_READ | PROT_EXEC, 1);
	map(fill(open("/tmp/data", O_CREAT | O_RDWR, 0700), 1), PROT_READ, 1);
	mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int depth = 0; depth < 15; depth++)
		if (mkdir(directory, 0700) || chdir(directory))
			exit(3);
	map(fill(open("deep", O_CREAT | O_RDWR, 0700), 1), PROT_READ | PROT_EXEC, 1);
	for (int depth = 0; depth < 15; depth++)
		if (mkdir(directory, 0700) || chdir(directory))
			exit(3);
	map(fill(open("too deep", O_CREAT | O_RDWR, 0700), 1), PROT_READ | PROT_EXEC, 1);
	if (chdir("/"))
		exit(3);
}

static void many(void)
{
	char *at = mmap(NULL, 1024 * 4096L, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < 1024; i += 2)
		mprotect(at + i * 4096L, 4096, PROT_READ | PROT_WRITE);
}

static void *thread(void *unused)
{
	while (unused == NULL)
		pause();
	return NULL;
}

static void perf_map(void)
{
	char name[64];
	FILE *out;

	snprintf(name, sizeof(name), "/tmp/perf-%d.map", getpid());
	out = fopen(name, "w");
	for (int i = 0; i < 5000; i++)
		fprintf(out, "%x %x function_%d\n", 0x1000 * i, 0x800, i);
	fprintf(out, "no end of li");
	fclose(out);
}

int main(int argc, char **argv)
{
	const char *mode;

	if (argc != 3)
		return 1;
	mode = strdup(argv[1]);
	ready_path = strdup(argv[2]);
	prctl(PR_SET_NAME, ready_path + strlen("/tmp/ready."));
	if (!strcmp(mode, "maps"))
		maps();
	if (!strcmp(mode, "many"))
		many();
	if (!strcmp(mode, "perf_map"))
		perf_map();
	if (!strcmp(mode, "title")) {
		memset(argv[0], 0, argv[2] - argv[0]);
		strcpy(argv[0], "a t\033:");
		prctl(PR_SET_NAME, "odd \033[1m na:");
	}
	if (!strcmp(mode, "threads")) {
		pthread_t id;

		for (int i = 0; i < 3; i++)
			pthread_create(&id, NULL, thread, NULL);
		ready();
		syscall(SYS_exit, 0);
	}
	ready();
	for (;;)
		pause();
}

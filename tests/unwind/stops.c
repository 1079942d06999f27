// SPDX-License-Identifier: Apache-2.0
/*
 * Says what its own callers are by glibc's backtrace(), which is libgcc's
 * unwinder, then stops. As a program it does so in the places that unwinders
 * find hard; as a shared object, preloaded, in any program that asks for its
 * parent's pid.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline)) static void stop_here(void)
{
	void *frames[256];
	char line[256 * 20];
	int count = backtrace(frames, 256), i, used = 0;

	/* The first is this function, which the walk finds at another address. */
	for (i = 1; i < count; i++)
		used += sprintf(line + used, "%p ", frames[i]);
	line[used++] = '\n';
	if (write(3, line, used) != used)
		abort();
	/* Not raise(), which uses RBP. */
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSTOP);
}

#ifdef PRELOAD
pid_t getppid(void)
{
	stop_here();
	return 1;
}
#else
static volatile int sink;

__attribute__((noinline)) static void recurse(int depth)
{
	if (depth)
		recurse(depth - 1);
	else
		stop_here();
	sink++;
}

/* Its frame has a size that only RBP knows. */
__attribute__((noinline)) static void with_alloca(int size)
{
	char *memory = alloca(size);

	memset(memory, size, size);
	recurse(3);
	sink += memory[size / 2];
}

/* Its CFA is an expression: GCC realigns the stack. */
__attribute__((noinline)) static void realigned(int value)
{
	char memory[64] __attribute__((aligned(64)));

	memset(memory, value, sizeof(memory));
	with_alloca(value);
	sink += memory[value % 64];
}

static int compare(const void *a, const void *b)
{
	if (!sink)
		realigned(100);
	sink++;
	return *(const int *)a - *(const int *)b;
}

static void sort(void)
{
	int numbers[] = { 3, 1, 2 };

	qsort(numbers, 3, sizeof(numbers[0]), compare);
}

static void handler(int number)
{
	sort();
	sink += number;
}

static void *thread(void *argument)
{
	sort();
	return argument;
}

/* On another stack, below or above this one. */
static void on_signal(int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };

	sigaltstack(&stack, NULL);
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
	sink++;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	pthread_t id;

	if (!strcmp(what, "sort")) {
		sort();
	} else if (!strcmp(what, "recurse")) {
		recurse(10);
	} else if (!strcmp(what, "signal")) {
		on_signal(0);
	} else if (!strcmp(what, "sigaltstack")) {
		on_signal(SA_ONSTACK);
	} else if (!strcmp(what, "thread")) {
		pthread_create(&id, NULL, thread, NULL);
		pthread_join(id, NULL);
	} else if (!strcmp(what, "exit")) {
		atexit(sort);
	} else if (!strcmp(what, "step")) {
		raise(SIGSTOP);
		sort();
		printf("%d %s\n", sink, strchr(what, 'e'));
		_exit(0);
	}
	return sink != 0;
}
#endif

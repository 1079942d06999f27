// SPDX-License-Identifier: Apache-2.0
/*
 * A program without frame pointers whose call chains are known: truth.json lists them. It calls its functions through libc's qsort, in threads, in signal
 * handlers (also on stacks of their own), through a library that is linked and one that is opened while it runs, with frames of sizes known only then,
 * with realigned frames, by recursion, and out of functions that do not return.
 *
 *     truth PLUGIN FILE    PLUGIN: truth_plugin.so; FILE is made once every kind of chain has been there
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Neither inlined, cloned nor merged with its twin: every function below is one frame under its own name. */
#define FRAME __attribute__((noipa))
#define UNIT 40000UL
#define NEAR_STACK 16384
#define FAR_STACK 65536

/* Of truth_library.c. */
unsigned long library_mix(unsigned long x);
void library_call(void (*function)(uint64_t x), uint64_t x);

typedef void plugin_function(void (*function)(uint64_t x), uint64_t x);

static volatile uint64_t sink;
static jmp_buf escape;
static plugin_function *plugin_run;

FRAME static void spin(uint64_t x)
{
	for (unsigned long i = 0; i < UNIT; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	sink = x;
}

/* Many registers that a function has to save, so that its prologue and its epilogue are long. */
FRAME static uint64_t busy(const uint64_t *values, unsigned long count)
{
	uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8, i = 9, j = 10, k = 11, l = 12;

	for (unsigned long n = 0; n < count; n++) {
		a += values[n & 7] ^ l;
		b ^= a << 1;
		c += b >> 3;
		d ^= c * 3;
		e += d ^ a;
		f ^= e << 5;
		g += f >> 7;
		h ^= g * 5;
		i += h ^ e;
		j ^= i << 9;
		k += j >> 11;
		l ^= k * 7;
	}
	return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ i ^ j ^ k ^ l;
}

FRAME static void short_calls(uint64_t x)
{
	uint64_t values[8] = { x, 1, 2, 3, 4, 5, 6, 7 };

	for (int i = 0; i < 2000; i++)
		values[i & 7] += busy(values, 4);
	sink = values[3];
}

FRAME static void alpha(uint64_t x)
{
	spin(x);
	sink++;
}

FRAME static void beta(uint64_t x)
{
	alpha(x + 1);
	short_calls(x);
	sink++;
}

FRAME static void plain_round(uint64_t x)
{
	alpha(x);
	beta(x);
	sink++;
}

/* A frame of a size that is known only here: found through RBP, whatever the compiler was told of frame pointers. */
FRAME static void variable_frame(uint64_t x)
{
	volatile char *room = alloca(64 + x % 512);

	room[0] = 1;
	alpha(x);
	sink += (uint64_t)room[0];
}

/* A frame that is aligned to more than the stack is: where the caller's ends is saved in it, and told by an expression. */
FRAME static void aligned_frame(uint64_t x)
{
	volatile char block[128] __attribute__((aligned(128)));
	volatile char *room = alloca(64 + x % 512);

	block[0] = 1;
	room[0] = 1;
	alpha(x);
	sink += (uint64_t)block[0] + (uint64_t)room[0];
}

FRAME static void frames_round(uint64_t x)
{
	variable_frame(x);
	aligned_frame(x);
	sink++;
}

FRAME static int compare_deep(const uint64_t *a, const uint64_t *b)
{
	uint64_t x = *a ^ *b;

	for (int i = 0; i < 20; i++)
		x = x * 6364136223846793005UL + 1442695040888963407UL;
	sink = x;
	return (*a > *b) - (*a < *b);
}

FRAME static int compare(const void *a, const void *b)
{
	int order = compare_deep(a, b);

	sink++;
	return order;
}

FRAME static void qsort_round(uint64_t x)
{
	uint64_t values[300];

	for (int i = 0; i < 300; i++)
		values[i] = x = x * 6364136223846793005UL + 1;
	qsort(values, 300, sizeof(*values), compare);
	sink++;
}

FRAME static void recurse(uint64_t x, int depth)
{
	if (depth)
		recurse(x + 1, depth - 1);
	else
		spin(x);
	sink++;
}

FRAME static void recursion_round(uint64_t x)
{
	recurse(x, 60);
	sink++;
}

FRAME static void library_round(uint64_t x)
{
	for (int i = 0; i < 20000; i++)
		x = library_mix(x);
	library_call(alpha, x);
	sink++;
}

FRAME static void plugin_round(uint64_t x)
{
	plugin_run(alpha, x);
	sink++;
}

/* The call is this function's last instruction: its return address is the next function's. */
FRAME __attribute__((noreturn)) static void leave(uint64_t x)
{
	spin(x);
	longjmp(escape, 1);
}

FRAME __attribute__((noreturn)) static void leave_last(uint64_t x)
{
	sink++;
	leave(x + 1);
}

FRAME static void escape_round(uint64_t x)
{
	if (!setjmp(escape))
		leave_last(x);
	sink++;
}

FRAME static void clock_round(void)
{
	struct timespec now;

	for (int i = 0; i < 3000; i++)
		clock_gettime(CLOCK_MONOTONIC, &now);
	sink = (uint64_t)now.tv_nsec;
}

FRAME static void calls_round(void)
{
	char block[64];
	int fd = open("/dev/zero", O_RDONLY);

	for (int i = 0; i < 200; i++) {
		(void)!read(fd, block, sizeof(block));
		getppid();
	}
	close(fd);
	sink++;
}

FRAME static void on_signal(int number)
{
	spin((uint64_t)number);
	sink++;
}

/* On a stack right below the one of the thread: both are in one piece of memory. */
FRAME static void on_near_stack(int number)
{
	spin((uint64_t)number);
	sink++;
}

/* On a stack far away: what is below cannot be copied with it. */
FRAME static void on_far_stack(int number)
{
	spin((uint64_t)number);
	sink++;
}

FRAME static void on_timer(int number)
{
	short_calls((uint64_t)number);
	sink++;
}

FRAME static void signal_round(void)
{
	raise(SIGUSR1);
	sink++;
}

static void use_stack(void *stack, size_t size)
{
	stack_t alternate = { .ss_sp = stack, .ss_size = size, .ss_flags = stack ? 0 : SS_DISABLE };

	if (sigaltstack(&alternate, NULL))
		abort();
}

/* The stack for signals lies right below the thread's own, and that is small: one copy holds both. */
FRAME static void *near_stack_main(void *region)
{
	use_stack(region, NEAR_STACK);
	raise(SIGUSR2);
	use_stack(NULL, 0);
	sink++;
	return NULL;
}

FRAME static void near_stack_round(void)
{
	static void *region;
	pthread_attr_t attributes;
	pthread_t thread;

	if (!region) {
		region = mmap(NULL, 3 * NEAR_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		/* Of a page that was never touched there is nothing to copy, nor of what is behind it. */
		memset(region, 1, 3 * NEAR_STACK);
	}
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, (char *)region + NEAR_STACK, 2 * NEAR_STACK);
	if (pthread_create(&thread, &attributes, near_stack_main, region))
		abort();
	pthread_join(thread, NULL);
	pthread_attr_destroy(&attributes);
	sink++;
}

FRAME static void far_stack_round(void)
{
	static void *stack;

	if (!stack)
		stack = mmap(NULL, FAR_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	use_stack(stack, FAR_STACK);
	raise(SIGHUP);
	use_stack(NULL, 0);
	sink++;
}

FRAME static void *thread_main(void *argument)
{
	alpha((uint64_t)argument);
	qsort_round((uint64_t)argument);
	sink++;
	return NULL;
}

FRAME static void threads_round(void)
{
	pthread_t threads[2];

	for (long i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, thread_main, (void *)i))
			abort();
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	sink++;
}

FRAME static void all_rounds(uint64_t x)
{
	plain_round(x);
	frames_round(x);
	qsort_round(x);
	recursion_round(x);
	library_round(x);
	plugin_round(x);
	escape_round(x);
	clock_round();
	calls_round();
	signal_round();
	near_stack_round();
	far_stack_round();
	threads_round();
	sink++;
}

static void handle(int number, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags | SA_RESTART };

	if (sigaction(number, &action, NULL))
		abort();
}

int main(int argc, char **argv)
{
	const struct itimerval often = { .it_interval = { .tv_usec = 20000 }, .it_value = { .tv_usec = 20000 } };
	void *plugin = argc > 2 ? dlopen(argv[1], RTLD_LAZY) : NULL;
	uint64_t x = 1;

	if (!plugin) {
		fprintf(stderr, "usage: truth PLUGIN FILE: %s\n", dlerror());
		return 2;
	}
	plugin_run = (plugin_function *)dlsym(plugin, "plugin_run");
	handle(SIGUSR1, on_signal, 0);
	handle(SIGUSR2, on_near_stack, SA_ONSTACK);
	handle(SIGHUP, on_far_stack, SA_ONSTACK);
	handle(SIGALRM, on_timer, 0);
	all_rounds(x++);
	close(open(argv[2], O_WRONLY | O_CREAT, 0600));
	if (setitimer(ITIMER_REAL, &often, NULL))
		abort();
	for (;;)
		all_rounds(x++);
}

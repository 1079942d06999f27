// SPDX-License-Identifier: Apache-2.0
/*
 * threads LOG: in the lab's guest, sixty short-lived processes a second with pids that soon come again, kernel threads that are busy, and a log of which
 * task ran when, in nanoseconds of the boot clock:
 *
 *   process PID BEFORE AFTER END NAME   forked between BEFORE and AFTER, waited for at END; it called itself NAME, every second one after an exec of brief
 *   task NOW PID TICKS NAME             was there at NOW, by /proc: started at TICKS (of 10 ms)
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "burn.h"

#define SECOND 1000000000ULL
#define INTERVAL (SECOND / 60)
#define MOST 64

struct process {
	pid_t pid;
	uint64_t before, after;
	unsigned long number;
};

static struct process running[MOST];
static FILE *out;

static uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

static void die(const char *what)
{
	printf("PERFGUEST-WORKLOAD-FAILED %s: %s\n", what, strerror(errno));
	fflush(stdout);
	exit(1);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void start_process(struct process *process, unsigned long number)
{
	char name[16];

	snprintf(name, sizeof(name), "s%lu", number);
	process->number = number;
	process->before = now(CLOCK_BOOTTIME);
	process->pid = number % 2 ? vfork() : fork();
	if (process->pid < 0)
		die("fork");
	if (!process->pid) {
		if (number % 2)
			execl("/bin/brief", "brief", name, NULL);
		else
			burn(name);
		_exit(0);
	}
	process->after = now(CLOCK_BOOTTIME);
}

static void reap(int flags)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, flags)) > 0) {
		uint64_t end = now(CLOCK_BOOTTIME);

		for (int i = 0; i < MOST; i++) {
			struct process *one = &running[i];

			if (one->pid != pid)
				continue;
			fprintf(out, "process %d %llu %llu %llu s%lu\n", pid, (unsigned long long)one->before, (unsigned long long)one->after,
				(unsigned long long)end, one->number);
			one->pid = 0;
		}
		if (flags == 0)
			return;
	}
}

static struct process *free_place(void)
{
	for (;;) {
		for (int i = 0; i < MOST; i++)
			if (!running[i].pid)
				return &running[i];
		reap(0);
	}
}

/* The fields of /proc/PID/stat: pid (comm) state ppid ...; the 22nd is the start. */
static void log_task(const char *pid)
{
	char path[64], text[1024], *open_, *close_;
	unsigned long long ticks;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%.16s/stat", pid);
	file = fopen(path, "r");
	if (!file)
		return;
	text[fread(text, 1, sizeof(text) - 1, file)] = 0;
	fclose(file);
	open_ = strchr(text, '(');
	close_ = strrchr(text, ')');
	if (!open_ || !close_ || sscanf(close_ + 2, "%*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &ticks) != 1)
		return;
	*close_ = 0;
	fprintf(out, "task %llu %s %llu %s\n", (unsigned long long)now(CLOCK_BOOTTIME), pid, ticks, open_ + 1);
}

static void log_tasks(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	while (proc && (entry = readdir(proc)))
		if (isdigit((unsigned char)entry->d_name[0]))
			log_task(entry->d_name);
	closedir(proc);
}

/* Each write to a pseudo-terminal is work for a kernel thread (flush_to_ldisc). All that time may take which nobody else wants. */
static void feed_terminal(void)
{
	int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY), slave;
	struct termios settings;
	char block[512] = { 0 };

	if (nice(19) < 0)
		die("nice");
	if (master < 0 || grantpt(master) || unlockpt(master))
		die("/dev/pts/ptmx");
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	if (slave < 0 || tcgetattr(slave, &settings))
		die("a terminal");
	cfmakeraw(&settings);
	tcsetattr(slave, TCSANOW, &settings);
	for (;;) {
		ssize_t size = write(master, block, sizeof(block));

		while (size > 0) {
			ssize_t got = read(slave, block, sizeof(block));

			if (got <= 0)
				die("reading a terminal");
			size -= got;
		}
	}
}

static void background(const char *name, void (*work)(void))
{
	if (!fork()) {
		prctl(PR_SET_NAME, name);
		work();
	}
}

/* Until a process ends, or the time has come. */
static void wait_until(uint64_t time)
{
	uint64_t here = now(CLOCK_BOOTTIME);
	sigset_t child;

	if (here >= time)
		return;
	struct timespec left = { .tv_sec = (time - here) / SECOND, .tv_nsec = (time - here) % SECOND };

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigtimedwait(&child, NULL, &left);
}

int main(int argc, char **argv)
{
	uint64_t next, second;
	unsigned long beat = 0;
	sigset_t child;

	out = argc == 2 ? fopen(argv[1], "w") : NULL;
	if (!out)
		die("the log");
	setvbuf(out, NULL, _IOFBF, 1 << 16);
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	prctl(PR_SET_NAME, "pg-spawner");
	/* Pids from 300 to 400 only, each again after two seconds. */
	put("/proc/sys/kernel/pid_max", "400");
	background("pg-terminal", feed_terminal);
	next = second = now(CLOCK_BOOTTIME);
	for (unsigned long number = 0;; number++) {
		for (; now(CLOCK_BOOTTIME) < next; reap(WNOHANG))
			wait_until(next);
		next += INTERVAL;
		start_process(free_place(), number);
		reap(WNOHANG);
		if (now(CLOCK_BOOTTIME) < second)
			continue;
		second += SECOND;
		log_tasks();
		fflush(out);
		printf(beat ? "PERFGUEST-HEARTBEAT %lu\n" : "PERFGUEST-GUEST-UP\n", beat);
		beat++;
	}
}

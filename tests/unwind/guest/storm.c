// SPDX-License-Identifier: Apache-2.0
/*
 * Spends its time in the kernel, on as many of its paths as can be: files, directories, page faults of all kinds, fork and exec, pipes, sockets, signals,
 * timers, futexes, mappings. `storm DIRECTORY FILE`: works in DIRECTORY, makes FILE after its first round.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char block[65536];

static void need(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "storm: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void files(void)
{
	struct statfs fs;
	struct stat st;
	char name[64];
	DIR *dir;

	for (int i = 0; i < 8; i++) {
		int fd;

		snprintf(name, sizeof(name), "file.%d", i);
		fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
		need(fd >= 0, name);
		need(write(fd, block, sizeof(block)) == sizeof(block), "write");
		if (i % 4 == 0)
			need(!fsync(fd), "fsync");
		need(pread(fd, block, sizeof(block), 0) == sizeof(block), "pread");
		need(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
		need(pread(fd, block, 4096, 8192) == 4096, "pread");
		need(!ftruncate(fd, 1000), "ftruncate");
		close(fd);
		need(!rename(name, "renamed"), "rename");
		need(!stat("renamed", &st) && !statfs("renamed", &fs), "stat");
		need(!link("renamed", name) && !unlink("renamed"), "link");
	}
	need(!mkdir("directory", 0700) && !rmdir("directory"), "mkdir");
	dir = opendir(".");
	need(dir != NULL, "opendir");
	while (readdir(dir))
		;
	closedir(dir);
	for (int i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "file.%d", i);
		need(!unlink(name), "unlink");
	}
}

static void faults(void)
{
	size_t size = 1 << 20;
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("mapped", O_RDWR | O_CREAT, 0600);
	volatile char *shared;

	need(area != MAP_FAILED && fd >= 0 && !ftruncate(fd, (off_t)size), "mmap");
	for (size_t at = 0; at < size; at += 4096)
		area[at] = 1;
	mprotect(area, size / 2, PROT_READ);
	madvise(area, size, MADV_DONTNEED);
	for (size_t at = size / 2; at < size; at += 4096)
		area[at] = 1;
	munmap(area, size);
	shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	need(shared != MAP_FAILED, "mmap of a file");
	for (size_t at = 0; at < size; at += 4096)
		shared[at] = shared[at] + 1;
	msync((void *)shared, size, MS_SYNC);
	munmap((void *)shared, size);
	close(fd);
	unlink("mapped");
}

static void child(const char *self, int is_fork)
{
	pid_t child = is_fork ? fork() : vfork();

	need(child >= 0, "fork");
	if (!child) {
		execl(self, self, (char *)NULL);
		_exit(127);
	}
	need(waitpid(child, NULL, 0) == child, "waitpid");
}

static void children(const char *self)
{
	for (int i = 0; i < 4; i++)
		child(self, i % 2);
}

static void pipes(void)
{
	int fds[2];
	pid_t child;

	need(!pipe(fds), "pipe");
	child = fork();
	need(child >= 0, "fork");
	if (!child) {
		close(fds[1]);
		while (read(fds[0], block, sizeof(block)) > 0)
			;
		_exit(0);
	}
	close(fds[0]);
	for (int i = 0; i < 40; i++)
		need(write(fds[1], block, sizeof(block)) > 0, "write to a pipe");
	close(fds[1]);
	need(waitpid(child, NULL, 0) == child, "waitpid");
}

static void stream(int client, int peer)
{
	for (int i = 0; i < 40; i++) {
		struct pollfd ready = { .fd = peer, .events = POLLIN };
		ssize_t left = 8192;

		need(send(client, block, 8192, 0) == 8192, "send");
		while (left > 0) {
			ssize_t got;

			need(poll(&ready, 1, 1000) == 1, "poll");
			got = recv(peer, block, (size_t)left, 0);
			need(got > 0, "recv");
			left -= got;
		}
	}
	close(client);
	close(peer);
}

static void sockets(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	int pair[2], udp[2] = { socket(AF_INET, SOCK_DGRAM, 0), socket(AF_INET, SOCK_DGRAM, 0) };
	socklen_t size = sizeof(address);

	need(!bind(server, (struct sockaddr *)&address, size) && !listen(server, 1), "listen");
	need(!getsockname(server, (struct sockaddr *)&address, &size), "getsockname");
	need(!connect(client, (struct sockaddr *)&address, size), "connect");
	stream(client, accept(server, NULL, NULL));
	close(server);
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	stream(pair[0], pair[1]);
	address.sin_port = 0;
	need(!bind(udp[0], (struct sockaddr *)&address, size) && !getsockname(udp[0], (struct sockaddr *)&address, &size), "bind");
	for (int i = 0; i < 40; i++)
		need(sendto(udp[1], block, 512, 0, (struct sockaddr *)&address, size) == 512 && recv(udp[0], block, 512, 0) == 512, "UDP");
	close(udp[0]);
	close(udp[1]);
}

static void on_signal(int number)
{
	(void)number;
}

static void times(void)
{
	struct timespec little = { .tv_nsec = 50000 };
	int epoll = epoll_create1(0);
	struct epoll_event event;

	signal(SIGUSR1, on_signal);
	for (int i = 0; i < 20; i++) {
		kill(getpid(), SIGUSR1);
		nanosleep(&little, NULL);
		epoll_wait(epoll, &event, 1, 0);
		sched_yield();
	}
	close(epoll);
	need(getrandom(block, 16384, 0) > 0, "getrandom");
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *locker(void *unused)
{
	for (int i = 0; i < 500; i++) {
		pthread_mutex_lock(&mutex);
		sched_yield();
		pthread_mutex_unlock(&mutex);
	}
	return unused;
}

static void threads(void)
{
	pthread_t ids[3];

	for (int i = 0; i < 3; i++)
		need(!pthread_create(&ids[i], NULL, locker, NULL), "pthread_create");
	for (int i = 0; i < 3; i++)
		pthread_join(ids[i], NULL);
}

static void reports(void)
{
	static const char *const names[] = { "/proc/self/maps", "/proc/self/stat", "/proc/meminfo", "/proc/stat", "/proc/self/smaps" };
	struct rusage usage;

	for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++) {
		int fd = open(names[i], O_RDONLY);

		need(fd >= 0, names[i]);
		while (read(fd, block, sizeof(block)) > 0)
			;
		close(fd);
	}
	getrusage(RUSAGE_SELF, &usage);
}

int main(int argc, char **argv)
{
	int ready = 0;

	if (argc < 3)
		return 0;
	need(!chdir(argv[1]), argv[1]);
	for (;;) {
		files();
		faults();
		children(argv[0]);
		pipes();
		sockets();
		times();
		threads();
		reports();
		if (!ready++)
			close(open(argv[2], O_WRONLY | O_CREAT, 0600));
	}
}

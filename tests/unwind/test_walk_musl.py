# SPDX-License-Identifier: Apache-2.0
"""Programs with musl, the C library of Alpine: neither it nor what it starts programs with has tables."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.unwind import traced
from tests.unwind.stepping import MOST_STEPS, follow

_SOURCE = r"""
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static int numbers[40], stopped;
static char text[256];
static int compare(const void *a, const void *b)
{
	if (!stopped++)
		syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSTOP);
	return strcmp(*(const char *const *)a, *(const char *const *)b) ? *(const int *)a - *(const int *)b : 0;
}
__attribute__((noinline)) static void *sort(void *argument)
{
	const char *words[40];
	int i, round;
	for (i = 0; i < 40; i++)
		words[i] = text + i * 7 % 40;
	snprintf(text, sizeof(text), "%08d %s %g", 20, "abcdefghijklmnopqrstuvwxyz", 3.5);
	for (round = 0; round < 1000; round++) {
		qsort(words, 40, sizeof(words[0]), compare);
		snprintf(text, sizeof(text), "%08d %s %g", stopped, "zyxwvutsrqponmlkjihgfedcba", 2.5);
	}
	return argument;
}
int main(int argc, char **argv)
{
	pthread_t id;
	while (argc == 1)
		sort(NULL);
	pthread_create(&id, NULL, sort, NULL);
	pthread_join(id, NULL);
	return 0;
}
"""


@pytest.fixture(scope="module", params=[[], ["-static"]], ids=["dynamic", "static"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("musl")
    source = directory / "program.c"
    source.write_text(_SOURCE)
    flags = ["-O2", "-fomit-frame-pointer", "-fno-asynchronous-unwind-tables"]
    subprocess.run(["musl-gcc", *flags, *request.param, "-o", directory / "program", source], check=True)
    return directory / "program"


@pytest.mark.parametrize("arguments", [[], ["thread"]], ids=["main", "thread"])
def test_every_instruction(program: Path, arguments: list[str]) -> None:
    with traced.running(program, *arguments) as pid:
        thread = max(int(name) for name in os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
        steps, early = follow(pid, thread, tables=True)
    assert steps == MOST_STEPS
    assert early <= 0.01 * steps

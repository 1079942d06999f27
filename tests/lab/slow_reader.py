# SPDX-License-Identifier: Apache-2.0
"""Inside the lab, with the module loaded: samples into small rings that are read only when perf has ended.

slow_reader.py STREAM PERF_DATA
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from perfguest.capture.debugfs import ModuleFiles, ModuleSettings
from perfguest.formats.recording import stream_head


def main(stream: Path, perf_data: Path) -> None:
    files = ModuleFiles()
    files.apply(ModuleSettings(trigger="probe", kernel_stack=4096, user_stack=4096, buffer_kb=64))
    streams = files.open_streams(list(range(os.cpu_count() or 1)))
    files.enable()
    subprocess.run(["perf", "record", "-e", "cpu-clock:GH", "-F", "500", "-a", "-o", perf_data, "--", "sleep", "5"], check=True)
    files.disable()
    with stream.open("wb") as out:
        out.write(stream_head(files.read("format")))
        for fd in streams.values():
            read_all(fd, out.write)
            os.close(fd)


def read_all(fd: int, write: object) -> None:
    try:
        while data := os.read(fd, 1 << 20):
            write(data)  # type: ignore[operator]
    except BlockingIOError:
        return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

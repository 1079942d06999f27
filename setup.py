# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg cannot say: the unwinder is a C extension."""

from glob import glob

from setuptools import Extension, setup

NATIVE = "perfguest/unwind/native"

setup(
    ext_modules=[
        Extension(
            "perfguest.unwind._native",
            sources=sorted(glob(f"{NATIVE}/*.c")),  # noqa: PTH207 # paths relative to here are wanted
            depends=sorted(glob(f"{NATIVE}/*.h")),  # noqa: PTH207
            include_dirs=[NATIVE],
            extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
        )
    ]
)

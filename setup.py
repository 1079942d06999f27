# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg cannot say: the unwinder, and what is done for each sample, are C extensions."""

from glob import glob

from setuptools import Extension, setup


def native(package: str) -> Extension:
    """The module ``_native`` of a package, out of the C files in the package's folder ``native``."""
    folder = f"{package.replace('.', '/')}/native"
    return Extension(
        f"{package}._native",
        sources=sorted(glob(f"{folder}/*.c")),  # noqa: PTH207 # paths relative to here are wanted
        depends=sorted(glob(f"{folder}/*.h")),  # noqa: PTH207
        include_dirs=[folder],
        extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
    )


setup(ext_modules=[native("perfguest"), native("perfguest.unwind")])

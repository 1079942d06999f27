# SPDX-License-Identifier: Apache-2.0
"""Where a guest's kernel, its modules and the rest of its half of the address space may stand (Documentation/arch/x86/x86_64/mm.rst)."""

from __future__ import annotations

#: The first address of the kernel's half.
KERNEL_HALF = 1 << 63
#: Where modules, and code made while running, may stand: behind the kernel's image, up to here.
MODULES_END = 0xFFFFFFFFFF000000
#: CONFIG_PHYSICAL_ALIGN, and RANDOMIZE_BASE's range: the image stays within 1 GiB.
KASLR_STEP = 2 << 20
KASLR_END = 1 << 30

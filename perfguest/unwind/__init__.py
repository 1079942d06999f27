# SPDX-License-Identifier: Apache-2.0
"""Whole stacks out of copies of them: by ORC in the kernel, by .eh_frame in user programs, by frame pointers where there are no tables."""

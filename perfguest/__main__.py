# SPDX-License-Identifier: Apache-2.0
"""``python -m perfguest``."""

from perfguest.cli import main

main()

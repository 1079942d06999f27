# SPDX-License-Identifier: Apache-2.0
"""What runs inside the lab's guest (``workload.c``, ``guest_init.sh``, ``truth.json``) and the first steps of its host (``host_init.sh``): package data."""

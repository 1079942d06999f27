# SPDX-License-Identifier: Apache-2.0
"""What a guest's memory tells: its kernel, processes and binaries. Only ``perfguest record`` needs this, and with it drgn."""

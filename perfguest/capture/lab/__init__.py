# SPDX-License-Identifier: Apache-2.0
"""The lab: a KVM host with a guest in it, in QEMU's software emulation. ``session.Lab`` is its API; ``agent`` runs inside."""

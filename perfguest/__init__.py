# SPDX-License-Identifier: Apache-2.0
"""Profiles KVM guests from the host: whole guest call stacks for perf's samples."""

__version__ = "0.1.0"

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of `make demo` that runs on the lab's KVM host, as root.
set -eu
"$1" record -o perfguest.data -- sleep 15
# This first version names the guest's functions by copies of the guest's own files.
cp "$PERFGUEST_GUEST_KALLSYMS" guest.kallsyms
rm -rf guest.root
cp -r "$PERFGUEST_GUEST_ROOT" guest.root

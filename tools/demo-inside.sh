#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of `make demo` that runs on the lab's KVM host, as root.
set -eu
# On a real host the guest's memory has been read after a second or two; emulated, it takes until there are programs, and only then is it worth looking.
"$1" record --guest-wait 300 -- timeout 300 sh -c '
	until ls perfguest.data/guests/binaries/*.pb.gz >/dev/null 2>&1; do sleep 0.2; done
	sleep 15'

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of `make demo` that runs on the lab's KVM host, as root.
set -eu
# On a real host the guest's memory has been read after a second or two; emulated, it takes until there are programs, and only then is it worth looking.
# Each program that is started costs, too.
nice -n -5 "$1" record -F 500 --guest-wait 300 -- timeout 300 sh -c '
	until set -- perfguest.data/guests/binaries/*.pb.gz && [ -e "$1" ]; do sleep 2; done
	sleep 30'

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of `make demo` that runs on the lab's KVM host, as root.
set -eu
# On a real host the guest's memory has been read after a second or two; emulated, it takes until there are programs, and only then is it worth looking.
# Then until there are some thousand stacks of them, or two minutes are over. Each program that is started costs, too.
nice -n -5 "$1" record -F 500 --guest-wait 300 -- timeout 300 sh -c '
	until set -- perfguest.data/guests/binaries/*.pb.gz && [ -e "$1" ]; do sleep 2; done
	enough=$(($(wc -c <perfguest.data/guest.stream) + (16 << 20)))
	for _ in $(seq 60); do
		sleep 2
		[ "$(wc -c <perfguest.data/guest.stream)" -lt "$enough" ] || break
	done'

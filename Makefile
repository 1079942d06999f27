# SPDX-License-Identifier: Apache-2.0
# ./bootstrap runs these after setting up what they need; by hand they want .venv.
PYTHON ?= $(CURDIR)/.venv/bin/python
PERFGUEST ?= $(CURDIR)/.venv/bin/perfguest
# The kernel that the lab boots, and so the one that the module is built for.
KERNEL ?= $(shell ls -v /boot/vmlinuz-*-amd64 2>/dev/null | tail -n 1 | sed 's,.*/vmlinuz-,,')
# What `make bench` multiplies: `make demo` makes it.
RECORDING ?= demo/perfguest.data
KDIR ?= /lib/modules/$(KERNEL)/build

# With a cache of its own: other tests run at the same time.
LAB_TESTS = $(PYTHON) -m pytest -o cache_dir=.pytest_cache/lab tests/lab --ignore=tests/lab/test_changing_guests.py --ignore=tests/lab/test_other_hosts.py

.PHONY: help demo test test-lab test-quick storm hosts guests changing stacks bench peers lint native module proto clean
help:
	@echo "make demo        record and convert a guest in the lab; results in demo/"
	@echo "make test        lint, types and all tests, the lab's too"
	@echo "make test-quick  the same without the lab"
	@echo "make storm       load, sample and unload the module five hundred times in the lab"
	@echo "make hosts       the module on hosts of four kernels, in the lab, in a table; HOST_KERNELS=5.10:6.12 or VMLINUZ=BUILD_DIRECTORY:... for others"
	@echo "make guests      what is read out of the memory of guests of five kernels, in a table; GUEST_KERNELS=VMLINUZ:VMLINUZ... for others"
	@echo "make changing    VMs of several kernels that start, end and reboot within one recording, in the lab"
	@echo "make stacks      whole stacks of guests of three kernels against known ones; GUEST_KERNELS=VMLINUZ:VMLINUZ... for others"
	@echo "make bench       the unwinder beside perf's, convert of RECORDING=$(RECORDING) multiplied, and make peers"
	@echo "make peers       convert of perf.data beside other programs' conversions of it"
	@echo "make lint        ruff and mypy"
	@echo "make native      build what is in C, in place"
	@echo "make module      build the kernel module for KDIR=$(KDIR)"
	@echo "make proto       generate perfguest/proto from proto/"

# A KVM host in QEMU, a guest in it: recorded there, converted here.
demo: module native
	mkdir -p demo
	cd demo && $(PERFGUEST) lab -- ../tools/demo-inside.sh $(PERFGUEST)
	cd demo && for form in flamegraph pprof chrome "folded -o guest.folded" "script -o guest.script"; do \
		$(PERFGUEST) convert -q --vm lab --$$form || exit; done
	cd demo && go tool pprof -top -nodecount=40 guest.pb.gz
	@echo
	@echo "The flame graph: open demo/guest.html in a browser."
	@echo "Beside it: perfguest.data (the recording), guest.pb.gz (go tool pprof -http=: demo/guest.pb.gz),"
	@echo "guest.trace.json (ui.perfetto.dev), guest.folded and guest.script (speedscope, flamegraph.pl)."

# Guests of the oldest kernel, of 6.1 and of the newest, which are fetched at first use.
test: lint
	kernels=$$($(PYTHON) -m tests.guest_kernels 5.10 6.1 7.3) && PERFGUEST_GUEST_KERNELS="$$kernels" $(PYTHON) -m pytest --ignore=tests/unwind --ignore=tests/lab
	$(MAKE) --no-print-directory -j2 --output-sync=target stacks test-lab

# Like those of `make stacks`, its emulated machines compute all the time, on one CPU: both run at the same time.
test-lab: native
	$(LAB_TESTS) || { echo "The emulator loses its host now and then (docs/lab.md): what failed is run once more."; $(LAB_TESTS) --last-failed; }

# Part of `make test`, there with fifty rounds.
storm: native
	PERFGUEST_ROUNDS=500 $(PYTHON) -m pytest -v -s tests/lab/test_storm.py

test-quick: lint
	$(PYTHON) -m pytest -m "not lab"

# Not part of `make test`: half an hour on two cores that have nothing else to do.
hosts: native
	PERFGUEST_HOST_KERNELS="$(HOST_KERNELS)" $(PYTHON) -m pytest -v -s tests/lab/test_other_hosts.py

# Each image wants its modules beside it, as dpkg -x of a linux-image package leaves them.
guests: native
	kernels="$(GUEST_KERNELS)" && kernels="$${kernels:-$$($(PYTHON) -m tests.guest_kernels)}" && [ -n "$$kernels" ] && \
		PERFGUEST_GUEST_KERNELS="$$kernels" $(PYTHON) -m pytest -v tests/guest/test_kernel.py tests/guest/test_processes.py tests/guest/test_tables.py

# Not part of `make test`: the emulator may lose its host (docs/lab.md). Then run it again.
changing: native
	$(PYTHON) -m pytest -v -s tests/lab/test_changing_guests.py

# Part of `make test`.
stacks: native
	kernels="$(GUEST_KERNELS)" && kernels="$${kernels:-$$($(PYTHON) -m tests.guest_kernels 5.10 6.1 7.3)}" && [ -n "$$kernels" ] && \
		PERFGUEST_GUEST_KERNELS="$$kernels" $(PYTHON) -m pytest -v tests/unwind

# Minutes, on a machine that has nothing else to do.
peers: native
	$(PYTHON) -m tests.bench.peers

bench: native peers
	$(PYTHON) -m tests.bench.frames
	$(PYTHON) -m tests.bench.unwinding
	$(PYTHON) -m tests.bench.converting $(RECORDING)

lint: native
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# Only what has changed is compiled.
native:
	$(PYTHON) setup.py -q build_ext --inplace

module:
	$(PYTHON) -m perfguest module build --kdir $(KDIR)

proto:
	protoc --python_out=perfguest/proto --pyi_out=perfguest/proto -Iproto proto/*.proto

clean:
	$(MAKE) -C kmod clean
	rm -rf build perfguest/*.so perfguest/unwind/*.so demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

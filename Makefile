# SPDX-License-Identifier: GPL-2.0
# Guest-first memory for KVM on Linux 6.1: see README.md, and 'make help'.

# The kernel to work with, lab or debug; one test of lab/tests; a 6.1 tree of your own.
K ?= lab
T ?=
LINUX ?=
export K T LINUX

.PHONY: help compose refresh series kernel run test bench verdicts mutants shell clean

help:
	@echo 'make compose    the kernel tree build/linux, a commit for each line of patches/series'
	@echo 'make refresh    back: from the commits in build/linux to patches/ and the new files'
	@echo 'make series     the mails for the list, in build/series'
	@echo 'make kernel     the kernel that the lab boots'
	@echo 'make run        a guest in memory that its VMM cannot read: see it try'
	@echo 'make test       everything; the last line counts'
	@echo 'make bench      what private memory costs, beside mainline and the unpatched base'
	@echo 'make verdicts   what the selftests of the base give, without us and in private memory'
	@echo 'make mutants    whether the tests notice what is broken on purpose'
	@echo 'make shell      a prompt in the VM that the tests run in'
	@echo 'make clean      remove build/'
	@echo
	@echo 'K=lab|debug     kernel: quick, or with KASAN, lockdep and kmemleak   (kernel, test T=, shell)'
	@echo 'T=NAME          one test of lab/tests, or a pattern of names          (test)'
	@echo 'LINUX=TREE      onto a Linux 6.1 tree of your own                     (compose)'

compose refresh:
	@lab/$@

series:
	@lab/compose
	@lab/series

kernel:
	@lab/compose
	@lab/kernel $(K)

run test:
	@lab/$@

verdicts:
	@lab/verdicts
	@lab/verdicts --private

mutants:
	@lab/mutants/run

bench:
	@bench/run

shell: kernel
	@lab/vm --timeout 86400 --shell

clean:
	rm -rf build

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KVM counts, by KVM_GET_STATS_FD, and what there is of the shared half.
 */
#include <err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm.h"

struct stat_value {
	const char *name;
	__u64 sum;
};

static void read_at(int fd, void *buf, size_t size, off_t offset)
{
	if (pread(fd, buf, size, offset) != (ssize_t)size)
		err(EXIT_VMM, "statistics");
}

/* The descriptor has to be had early: while a vCPU runs there is no way to ask. */
int open_stats(int kvm_fd)
{
	int fd = ioctl(kvm_fd, KVM_GET_STATS_FD, NULL);

	if (fd < 0)
		err(EXIT_VMM, "KVM_GET_STATS_FD");
	return fd;
}

/* Adds what KVM counts for a VM or a vCPU, each value where its name is. */
static void add_stats(int fd, struct stat_value *values, unsigned int nr)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc *desc;
	size_t desc_size;
	unsigned int i, j;
	__u64 value;

	read_at(fd, &header, sizeof(header), 0);
	desc_size = sizeof(*desc) + header.name_size;
	desc = malloc(desc_size);
	if (!desc)
		err(EXIT_VMM, "statistics");
	for (i = 0; i < header.num_desc; i++) {
		read_at(fd, desc, desc_size, header.desc_offset + i * desc_size);
		for (j = 0; j < nr; j++) {
			if (strcmp(desc->name, values[j].name))
				continue;
			read_at(fd, &value, sizeof(value), header.data_offset + desc->offset);
			values[j].sum += value;
		}
	}
	free(desc);
}

/* Pages that the mapping of the shared half has, or that of ordinary memory. */
static __u64 resident_pages(const struct vm *vm)
{
	unsigned char *present;
	__u64 pages = 0, n, j;
	unsigned int i;

	for (i = 0; i < vm->nr_ram; i++) {
		n = (vm->ram[i].end - vm->ram[i].start) / PAGE_SIZE;
		present = malloc(n);
		if (!present || mincore(vm->shared + vm->ram[i].start, n * PAGE_SIZE, present))
			err(EXIT_VMM, "mincore");
		for (j = 0; j < n; j++)
			pages += present[j] & 1;
		free(present);
	}
	return pages;
}

void print_stats(const struct vm *vm)
{
	struct stat_value mapped[] = { { "pages_4k", 0 }, { "pages_2m", 0 } };
	struct stat_value faults[] = { { "pf_taken", 0 }, { "pf_fixed", 0 } };
	unsigned int i;

	add_stats(vm->stats_fd, mapped, ARRAY_SIZE(mapped));
	for (i = 0; i < vm->opts.cpus; i++)
		add_stats(vm->vcpus[i].stats_fd, faults, ARRAY_SIZE(faults));
	warnx("mapped %llu pages of 4 KiB and %llu of 2 MiB, %llu faults taken, %llu fixed",
	      mapped[0].sum, mapped[1].sum, faults[0].sum, faults[1].sum);
	warnx("%llu pages at userspace_addr", resident_pages(vm));
}

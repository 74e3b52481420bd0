// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the guest of `make run`: plants a secret, shares another page on
 * purpose, says where both are, and looks afterwards whether the secret is what
 * it was.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

/* The reset is what ends the VM; the host knows by what was said before. */
static void leave(void)
{
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void check(int ok, const char *what)
{
	if (ok)
		return;
	printf(SAY_FAILED "%s: %s\n", what, strerror(errno));
	leave();
}

static unsigned long long gpa_of(const void *page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	unsigned long long entry;

	check(fd >= 0, "pagemap");
	check(pread(fd, &entry, sizeof(entry), (unsigned long)page / PAGE_SIZE *
		    sizeof(entry)) == sizeof(entry), "pagemap");
	close(fd);

	/* Bit 63 says that the page is there, bits 0 to 54 where. */
	errno = ENXIO;
	check(entry >> 63 && entry << 9, "page frame number");
	return (entry & ((1ULL << 55) - 1)) * PAGE_SIZE;
}

/* The kernel shares the page, since only a kernel can ask for it. */
static void share_page(void)
{
	char page[PAGE_SIZE] = { 0 }, number[32] = { 0 }, args[64];
	unsigned long long token;
	int fd;

	check(getrandom(&token, sizeof(token), 0) == sizeof(token), "getrandom");
	snprintf(page, sizeof(page), "shared-on-purpose-%016llx", token);
	snprintf(args, sizeof(args), "text=%s", page);

	fd = open("/share.ko", O_RDONLY);
	check(fd >= 0, "share.ko");
	check(!syscall(SYS_finit_module, fd, args, 0), "share.ko");
	close(fd);

	fd = open("/sys/module/share/parameters/gpa", O_RDONLY);
	check(fd >= 0 && read(fd, number, sizeof(number) - 1) > 0, "shared page");
	close(fd);
	printf(SAY_SHARED, strtoull(number, NULL, 0), page_sum(page));
}

int main(void)
{
	unsigned long long sum, gpa;
	char line[64], *secret;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	check(!mount("proc", "/proc", "proc", 0, NULL), "/proc");
	check(!mount("sysfs", "/sys", "sysfs", 0, NULL), "/sys");

	secret = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE |
		      MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	check(secret != MAP_FAILED && !mlock(secret, PAGE_SIZE), "secret");
	check(getrandom(secret, PAGE_SIZE, 0) == PAGE_SIZE, "getrandom");
	sum = page_sum(secret);
	gpa = gpa_of(secret);
	printf(SAY_SECRET, gpa, sum);
	share_page();

	printf(SAY_READY);
	do
		check(!!fgets(line, sizeof(line), stdin), "console");
	while (strcmp(line, ASK_CHECK));

	/* Still there: what was tried at this address was tried on the secret. */
	errno = ESTALE;
	check(gpa_of(secret) == gpa, "the secret has moved");
	printf(page_sum(secret) == sum ? SAY_INTACT : SAY_DAMAGED);
	check(!syscall(SYS_delete_module, "share", 0), "share.ko");
	leave();
}

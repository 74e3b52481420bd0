/* SPDX-License-Identifier: GPL-2.0-only */
/* What the guest of `make run` and the host outside agree on. */
#ifndef LAB_GUEST_H
#define LAB_GUEST_H

#include <stddef.h>

#define PAGE_SIZE	4096

#define __printf(fmt, args)	__attribute__((format(printf, fmt, args)))
#define __noreturn		__attribute__((noreturn))

/* The guest says on its console, each on a line of its own: */
#define SAY_SECRET	"guest: secret gpa=%llx sum=%llx\n"
#define SAY_SHARED	"guest: shared gpa=%llx sum=%llx\n"
#define SAY_READY	"guest: ready\n"
#define SAY_INTACT	"guest: intact\n"
#define SAY_DAMAGED	"guest: damaged\n"
#define SAY_FAILED	"guest: failed: "

/* And waits there, once ready, for the host to have done its worst: */
#define ASK_CHECK	"check\n"

/* The sample VMM, as routes.c is linked with it. */
int vmm_main(int argc, char **argv);

/* FNV-1a of a page: tells whether somebody has read it without telling it. */
static inline unsigned long long page_sum(const void *page)
{
	const unsigned char *p = page;
	unsigned long long sum = 0xcbf29ce484222325;
	size_t i;

	for (i = 0; i < PAGE_SIZE; i++)
		sum = (sum ^ p[i]) * 0x100000001b3;
	return sum;
}

#endif

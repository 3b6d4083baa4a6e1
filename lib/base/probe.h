/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * probe.h (private): places where perf, bpftrace and the like can look on.
 *
 *	PROBE2(pageout__stage, va, pages)	a nop, and a note in the ELF file: where it is, and where its arguments are
 *
 * The provider is `uffd_pager`; docs/probes.md lists all, and tests/check_probes.py holds the list against the library.  Where
 * <sys/sdt.h> is not to be had (option `probes`) nothing is left of them.  Arguments are looked at, and made, whether or not
 * somebody looks on: give what is at hand, nothing that has to be worked out.
 *
 * perf can not add a probe that is in two places: so each name is used once, and PROBE_ONCE is for functions that compilers would
 * inline.
 */
#ifndef UP_PROBE_H
#define UP_PROBE_H

#if defined(UP_PROBES)
#include <sys/sdt.h>

#define PROBE_ONCE __attribute__((noinline))
#define PROBE1(name, a) DTRACE_PROBE1(uffd_pager, name, a)
#define PROBE2(name, a, b) DTRACE_PROBE2(uffd_pager, name, a, b)
#define PROBE3(name, a, b, c) DTRACE_PROBE3(uffd_pager, name, a, b, c)
#define PROBE4(name, a, b, c, d) DTRACE_PROBE4(uffd_pager, name, a, b, c, d)
#else
#define PROBE_ONCE
#define PROBE_UNUSED(x) ((void)sizeof(x))
#define PROBE1(name, a) PROBE_UNUSED(a)
#define PROBE2(name, a, b) (PROBE_UNUSED(a), PROBE_UNUSED(b))
#define PROBE3(name, a, b, c) (PROBE_UNUSED(a), PROBE_UNUSED(b), PROBE_UNUSED(c))
#define PROBE4(name, a, b, c, d) \
	(PROBE_UNUSED(a), PROBE_UNUSED(b), PROBE_UNUSED(c), PROBE_UNUSED(d))
#endif

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * assertions.h: Criterion's, with a gt() that is not ge().
 *
 * Up to 2.4.1, which is what Debian 12 has, gt(TYPE, a, b) is true of equal ones (https://github.com/Snaipe/Criterion/issues/473): gt(u64, n, 0) never
 * failed.  Of a version that is right this changes nothing.
 */
#ifndef UP_TEST_ASSERTIONS_H
#define UP_TEST_ASSERTIONS_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#undef CRI_BINOP_T_GT
#define CRI_BINOP_T_GT(tag, actual, reference) CRI_BINOP_T_LT(tag, reference, actual)

#endif

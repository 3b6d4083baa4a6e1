#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_header.sh LANGUAGE STANDARD INCLUDE_DIR COMPILER...: the public header compiles alone, with
# no feature macro and no header before it, twice in one file, without a warning.

language=$1 standard=$2 include=$3
shift 3

"$@" -x "$language" -std="$standard" -I "$include" -fsyntax-only \
	-Wall -Wextra -Wpedantic -Wshadow -Wundef -Werror - <<'EOF'
#include <uffd_pager.h>
#include <uffd_pager.h>

int main(void)
{
	static struct up_config config;
	struct up_runtime *rt = 0;

	config.memory_limit = UP_MEMORY_LIMIT_MIN;
	config.feature_mask = UP_MASK_ALL;
	return up_runtime_create(&rt, &config);
}
EOF

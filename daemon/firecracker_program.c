/* SPDX-License-Identifier: BSD-2-Clause */
#include "firecracker.h"

int
main(int argc, char **argv)
{
	return firecracker_main(argc, argv);
}

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_files.h: a fuzz target without libFuzzer: the files that it is given, once each.  To be included at its end.
 */
#ifndef UP_TESTS_FUZZ_FILES_H
#define UP_TESTS_FUZZ_FILES_H

#include <stdint.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#if defined(UP_FUZZ_FILES)
int
main(int argc, char **argv)
{
	static uint8_t data[1 << 20];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rbe");

		if (f == NULL) {
			perror(argv[i]);
			return 1;
		}
		LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof data, f));
		fclose(f);
	}
	printf("%d files\n", argc - 1);
	return argc > 1 ? 0 : 1;
}
#endif

#endif

#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""embed.py IN OUT: a file as an array of C, page_html[page_html_len]."""
import sys

data = open(sys.argv[1], 'rb').read()
with open(sys.argv[2], 'w', encoding='ascii') as out:
    out.write('/* Made from page.html by embed.py. */\n#include <stddef.h>\nstatic char page_html[] = {\n')
    for i in range(0, len(data), 16):
        out.write('\t' + ' '.join(f'0x{b:02x},' for b in data[i:i + 16]) + '\n')
    out.write('};\nstatic const size_t page_html_len = sizeof(page_html);\n')

#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""check_readme.py README EXAMPLE: the README's program is the example that is built.

Both are compared from the first #include on; what an example says above it (licence, what it
is for) is not for the README.
"""
import difflib
import re
import sys


def body(text):
    return text[text.index('#include'):].strip().splitlines()


def main(readme, example):
    blocks = re.findall(r'^```c\n(.*?)^```$', open(readme, encoding='utf-8').read(), re.S | re.M)
    programs = [block for block in blocks if re.search(r'\bmain\(', block)]
    if len(programs) != 1:
        print(f'{readme}: {len(programs)} C programs, expected one')
        return 1
    diff = list(difflib.unified_diff(body(programs[0]), body(open(example, encoding='utf-8').read()),
                                     readme, example, lineterm=''))
    print('\n'.join(diff))
    return len(diff) != 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

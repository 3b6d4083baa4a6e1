#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""check_exports.py LIBRARY HEADER MAP: the three name the same functions.

An export that the header lacks is an accident that somebody will link to; a function in the
header that is not exported is found by the first user instead of by us.
"""
import re
import subprocess
import sys


def declared(path):
    text = re.sub(r'/\*.*?\*/', '', open(path, encoding='utf-8').read(), flags=re.S)
    text = re.sub(r'^\s*#.*$', '', text, flags=re.M)
    return set(re.findall(r'\b(\w+)\s*\([^();]*(?:\([^()]*\)[^();]*)*\)\s*;',
                          ''.join(re.findall(r'UP_API\b[^;]*;', text))))


def unmarked(path):
    """Functions declared without UP_API: hidden in the library, so of no use in the header."""
    text = re.sub(r'/\*.*?\*/', '', open(path, encoding='utf-8').read(), flags=re.S)
    return set(re.findall(r'\b(up_\w+)\s*\(', re.sub(r'UP_API\b[^;]*;', '', text)))


def listed(path):
    text = re.sub(r'/\*.*?\*/', '', open(path, encoding='utf-8').read(), flags=re.S)
    return set(re.findall(r'(\w+);', re.search(r'global:(.*)local:', text, re.S).group(1)))


def exported(path):
    out = subprocess.run(['nm', '-D', '--defined-only', path], check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    symbols = [line.split() for line in out.splitlines()]
    # Type A is the version node itself.
    return {s[-1].split('@')[0] for s in symbols if s[-2] != 'A'}


def main(library, header, version_map):
    sets = {'header': declared(header), 'map': listed(version_map), 'library': exported(library)}
    wrong = 0
    for name in sorted(set().union(*sets.values())):
        absent = [where for where, names in sets.items() if name not in names]
        if absent:
            print(f'{name}: not in the {" nor the ".join(absent)}')
            wrong += 1
    for name in sorted(unmarked(header)):
        print(f'{name}: declared in the header without UP_API')
        wrong += 1
    if not sets['header']:
        print(f'no function found in {header}')
        wrong += 1
    print(f'{len(sets["header"])} functions, {wrong} wrong')
    return wrong != 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

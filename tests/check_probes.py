#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""check_probes.py LIBRARY DOCUMENT: the probes that the document lists are those that the library has.

Each with as many arguments as are described, in one place in the code (perf can not add it otherwise), and with
a line for perf and one for bpftrace.  Skipped (77) if the library was built without, or where there is no readelf.
"""
import re
import shutil
import subprocess
import sys

SKIPPED = 77


def built(path):
    """[(name, number of arguments)], one for each place."""
    out = subprocess.run(['readelf', '--wide', '--notes', path], check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    notes = re.findall(r'Provider: (\S+)\s+Name: (\S+)\s+Location:.*\s+Arguments:(.*)', out)
    return [(name, len(arguments.split())) for provider, name, arguments in notes
            if provider == 'uffd_pager']


def listed(text):
    """{name: number of arguments}, of the rows of the table."""
    rows = re.findall(r'^\| `(\w+)` \|[^|]*\|([^|]*)\|', text, re.M)
    return {name: arguments.count(';') + 1 for name, arguments in rows}


def main(library, document):
    if shutil.which('readelf') is None:
        print('skipped: no readelf')
        return SKIPPED
    text = open(document, encoding='utf-8').read()
    have, want = built(library), listed(text)
    if not have:
        print('skipped: built without probes')
        return SKIPPED
    wrong = []
    for name in sorted(set(want) | {name for name, _ in have}):
        places = [n for other, n in have if other == name]
        if name not in want:
            wrong.append(f'{name}: not in {document}')
        elif not places:
            wrong.append(f'{name}: not in {library}')
        else:
            if len(places) > 1:
                wrong.append(f'{name}: in {len(places)} places')
            if any(n != want[name] for n in places):
                wrong.append(f'{name}: {want[name]} arguments described, {places[0]} there')
            wrong += [f'{name}: no line for {tool}' for tool, line in
                      (('perf', f'sdt_uffd_pager:{name}'), ('bpftrace', f'usdt:$LIB:uffd_pager:{name}'))
                      if not re.search(re.escape(line) + r'\b', text)]
    print('\n'.join(wrong + [f'{len(want)} probes, {len(wrong)} wrong']))
    return bool(wrong)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

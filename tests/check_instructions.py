#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""check_instructions.py PROGRAM COUNTS KEY [--update | --functions]: instructions per fault, under callgrind.

Counted is what serves a fault, from the turn that reads its message, or from worker_serve(), until its thread is awake:
the instructions of the functions of the library, the hash of the content of a major fault among them, and of what they call in
libc.  Not counted is what stands in for the kernel and the disk, lib/pmap/sim.c and lib/swap/sim.c, with all that they call.

Fails if one has risen by more than 5 % over what COUNTS has under KEY, which says how it was compiled; skipped (77) if there is
nothing under that, or no valgrind.  --update keeps what was counted; --functions says where it is spent.
"""
import collections
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
RISE = 1.05
LIBRARY = re.compile(r'(^|/)lib/(base|pager|pmap|swap|vm)/[^/]+\.[ch]$|(^|/)lib/[^/]+\.c$')
SIMULATION = re.compile(r'(^|/)(lib/pmap/sim\.c|lib/swap/sim\.c|tests/[^/]+\.[ch])$')


def is_ours(file):
    return bool(LIBRARY.search(file)) and not SIMULATION.search(file)


def read_dump(path):
    """(kind, delivery, faults, {function: instructions}); None of a dump that nobody asked for."""
    spent = collections.Counter()
    name, ours, foreign, is_call = None, False, None, False
    file = called_file = ''
    for line in open(path, encoding='utf-8'):
        key, _, value = line.rstrip('\n').partition('=')
        if line.startswith('desc: Trigger: Client Request: '):
            name = line.split(': ', 3)[3].split()
        elif key == 'fl':
            file, called_file = value, ''
        elif key == 'fn':
            function, ours = value, is_ours(file)
        elif key in ('fi', 'fe'):
            file = value    # of code that was inlined there
        elif key in ('cfi', 'cfl'):
            called_file = value
        elif key == 'cfn':
            called_file = called_file or file
            foreign = None if is_ours(called_file) or SIMULATION.search(called_file) else value
            called_file = ''
        elif key == 'calls':
            is_call = True
        elif line[:1].isdigit():
            cost = int(line.split()[1])
            if ours and not is_call:
                spent[function] += cost
            elif ours and foreign is not None:
                spent[foreign] += cost
            is_call = False
    return None if name is None else (name[0], name[1], int(name[2]), spent)


def count(program, directory):
    out = os.path.join(directory, 'dump')
    # One name for each function, whoever calls it; no abbreviations to be undone here.
    run = subprocess.run(['valgrind', '--tool=callgrind', '--collect-atstart=no', '--compress-strings=no', '--compress-pos=no',
                          f'--callgrind-out-file={out}', program], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, check=False)
    if run.returncode != 0:
        print(run.stdout)
        sys.exit(1)
    dumps = [read_dump(path) for path in glob.glob(out + '.*')]
    return {f'{kind} {delivery}': (round(sum(spent.values()) / faults), {f: n / faults for f, n in spent.items()})
            for kind, delivery, faults, spent in filter(None, dumps)}


def main(program, path, key, mode=''):
    if program == '-':
        print(f'skipped: {key}')
        return SKIPPED
    if shutil.which('valgrind') is None:
        print('skipped: no valgrind')
        return SKIPPED
    with open(path, encoding='utf-8') as f:
        all_kept = json.load(f)
    key += ', glibc ' + os.confstr('CS_GNU_LIBC_VERSION').split()[-1]
    kept = all_kept.get(key)
    if kept is None and not mode:
        print(f'skipped: no counts are kept for {key}')
        return SKIPPED
    with tempfile.TemporaryDirectory() as directory:
        counted = count(program, directory)
    kept = kept or {}
    wrong = 0
    print(f'{key}\n{"instructions per":<24}{"fault":>8}{"kept":>8}')
    for name in sorted(set(counted) | set(kept)):
        now, functions = counted.get(name, (None, {}))
        before = kept.get(name)
        verdict = ''
        if not mode and (now is None or before is None):
            verdict = '  is not there' if now is None else '  is not kept: see --update'
            wrong += 1
        elif not mode and now > before * RISE:
            verdict = f'  {100 * (now / before - 1):+.1f} %'
            wrong += 1
        print(f'{name:<24}{now or "-":>8}{before or "-":>8}{verdict}')
        if mode == '--functions':
            for function, n in sorted(functions.items(), key=lambda item: -item[1])[:16]:
                print(f'    {n:8.1f}  {function}')
    if mode == '--update':
        all_kept[key] = {name: n for name, (n, _) in sorted(counted.items())}
        with open(path, 'w', encoding='utf-8') as f:
            json.dump(all_kept, f, indent=1, sort_keys=True)
            f.write('\n')
    if wrong:
        print(f'{wrong} wrong. If a rise is meant: {sys.argv[0]} {program} {path} "{sys.argv[3]}" --update')
    return wrong != 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

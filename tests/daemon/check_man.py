#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""check_man.py UFFD-PAGERD UFFD-PAGER MAN-DIRECTORY: what there is, is in its page; and the pages are clean for mandoc, or groff."""
import re
import shutil
import subprocess
import sys


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False).stdout


def read(directory, page):
    with open(f'{directory}/{page}', encoding='utf-8') as f:
        return f.read()


def main(pagerd, pager, directory):
    wrong = []
    conf, daemon, tool = (read(directory, p) for p in ('uffd-pagerd.conf.5', 'uffd-pagerd.8', 'uffd-pager.1'))
    # Keys by section, those of named sections from flags that say NAME=.
    defaults = output(pagerd, '--config', '/dev/null', '--print-config')
    section = ''
    documented = {}
    for line in conf.splitlines():
        if line.startswith('.Ss '):
            section = line[4:].split()[0].strip('[]')
        elif line.startswith('.It Cm '):
            documented.setdefault(section, set()).add(line.split()[2])
    wanted = {}
    for line in defaults.splitlines():
        if line.startswith('['):
            section = line[1:-1]
        elif line:
            wanted.setdefault(section, set()).add(line.split(' = ')[0])
    usage = output(pagerd, '--help')
    for kind, key in re.findall(r'--(group|listen)-([\w-]+)=NAME=', usage):
        wanted.setdefault(kind, set()).add(key.replace('-', '_'))
    for section in wanted.keys() | documented.keys():
        a, b = wanted.get(section, set()), documented.get(section, set())
        if a != b:
            wrong.append(f'uffd-pagerd.conf(5) [{section}]: not there: {sorted(a - b)}, too much: {sorted(b - a)}')
    for flag in ('check-config', 'print-config', 'config', 'version', 'help'):
        if not re.search(rf'\bFl Fl {flag}\b', daemon):
            wrong.append(f'uffd-pagerd(8): no --{flag}')
    for verb in ('firecracker', 'criu'):
        if not re.search(rf'^\.Cm {verb}$', daemon, re.M):
            wrong.append(f'uffd-pagerd(8): no verb {verb}')
    for flag in re.findall(r'--([a-z]+-[a-z-]+)', output(pagerd, 'criu', '--help')):
        if flag != 'lazy-pages' and not re.search(rf'Fl Fl {flag}\b', daemon):
            wrong.append(f'uffd-pagerd(8): no --{flag} of criu')
    usage = output(pager, '--help')
    verbs = set(re.findall(r'(?:Usage:|or:)\s+uffd-pager \[OPTION\.\.\.\] (\w+)', usage))
    found = set(re.findall(r'^\.It Cm (\w+)', tool, re.M))
    if verbs != found or len(verbs) < 8:
        wrong.append(f'uffd-pager(1): its verbs are {sorted(verbs)}, the page has {sorted(found)}')
    for flag in re.findall(r'--(\w+)', usage):
        if flag != 'usage' and not re.search(rf'Fl Fl {flag}\b', tool):
            wrong.append(f'uffd-pager(1): no --{flag}')
    for page in ('uffd-pagerd.8', 'uffd-pager.1', 'uffd-pagerd.conf.5'):
        if shutil.which('mandoc'):
            # References to pages that are not installed here are none of its business.
            said = [l for l in output('mandoc', '-Tlint', '-Wwarning', f'{directory}/{page}').splitlines() if 'STYLE' not in l]
            wrong += said
        elif shutil.which('groff'):
            wrong += output('groff', '-mdoc', '-Tutf8', '-ww', '-z', f'{directory}/{page}').splitlines()
    print('\n'.join(wrong) or 'all there')
    return bool(wrong)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

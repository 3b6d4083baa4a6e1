#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Add up a meson run: each Criterion program's own summary line, then the sum of all tests.

Meson counts programs; a program holds dozens of tests, and a skipped test hides in one that
passes.  So the numbers are taken from what the programs printed (testlog.json), and a program
that ended badly without saying which test it was (a timeout, a leak found at exit) counts as
one failure.  A test that is no Criterion program counts as one, by meson's verdict.
"""
import json
import re
import sys

ANSI = re.compile(r'\x1b\[[0-9;]*m')
SYNTHESIS = re.compile(r'Synthesis: Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)')
SKIP = re.compile(r'^\[SKIP\] (.*)$', re.M)


def verdict(run):
    """(summary line, passed, failed, skipped) of one program."""
    text = ANSI.sub('', (run.get('stdout') or '') + '\n' + (run.get('stderr') or ''))
    skips = SKIP.findall(text)
    for skip in skips:
        print('  skipped: ' + skip)
    found = SYNTHESIS.search(text)
    if found:
        tested, passed = int(found.group(1)), int(found.group(2))
        failed = tested - passed  # a crash is counted as failing, too
        if run['result'] != 'OK' and failed == 0:
            failed = 1
        return '[====] ' + found.group(0), passed, failed, len(skips)
    result = run['result']
    if result == 'SKIP':
        return 'SKIP', 0, 0, 1
    return result, int(result == 'OK'), int(result != 'OK'), 0


def main(path):
    passed = failed = skipped = 0
    with open(path, encoding='utf-8') as log:
        for line in log:
            run = json.loads(line)
            summary, p, f, s = verdict(run)
            name = run['name'].split(' / ')[-1]
            print(f'{name:<14} {summary}' + (f' | {run["result"]}' if f and run['result'] != 'FAIL' else ''))
            passed, failed, skipped = passed + p, failed + f, skipped + s
    print(f'{passed} passed, {failed} failed, {skipped} skipped')
    return failed != 0 or passed + skipped == 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))

#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The examples with --daemon: all of them right within a budget that is smaller than what each one works on."""
import os
import re
import signal
import subprocess
import sys
import unittest

import rig
from rig import DEADLINE, Daemon, wait_for

BIGGER, SORT, SNAPSHOT, IMAGE, MICROVM, TABLE = map(os.path.abspath, sys.argv[3:9])
BUDGET = '8M'


def run(*words, status=0):
    """(standard output, standard error) of a program that has to end with this status."""
    r = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=4 * DEADLINE, check=False)
    out, err = r.stdout.decode(errors='replace'), r.stderr.decode(errors='replace')
    assert r.returncode == status, f'{words}: exit status {r.returncode}, not {status}:\n{out}\n{err}'
    return out, err


def text_of(name):
    with open(name, encoding='utf-8', errors='replace') as f:
        return f.read()


class Examples(unittest.TestCase):
    def test_bigger_than_memory(self):
        with Daemon('--memory', BUDGET) as d:
            out, _ = run(BIGGER, '--daemon', d.path('pager.sock'), '--size', '48M')
            for line in ("the budget is the daemon's: 8 MiB", 'mismatches               0  none', '  held, by this client alone'):
                self.assertIn(line, out)
            self.assertTrue(out.endswith('\nPASS\n'), out)
            self.assertRegex(out, r'by the daemon +[0-7]\.\d MiB  now, of 48\.0 mapped')
            # What only the daemon knows is not made up.
            self.assertNotIn('p99', out)
            self.assertNotIn('written', out)
            major = int(re.search(r'\((\d+) major', out).group(1))
            self.assertGreater(major, 1000)
            self.assertGreaterEqual(d.ask('status')['status']['faults']['major'], major)

    def test_bigger_than_memory_fails_when_it_should(self):
        with Daemon('--memory', BUDGET) as d:
            sock = d.path('pager.sock')
            out, _ = run(BIGGER, '--daemon', sock, '--size', '16M', '--flip', '1000', status=1)
            self.assertIn('page 1000 version 1 at +2048', out)
            self.assertTrue(out.endswith('\nFAIL\n'), out)
            for own in ('--memory=8M', '--swap=/x', '--service-threads=2', '--delivery=inline', '--compress=lz4', '--trace'):
                _, err = run(BIGGER, '--daemon', sock, own, status=2)
                self.assertIn('not with --daemon', err)
            _, err = run(BIGGER, '--daemon', d.path('nobody.sock'), status=1)
            self.assertIn('is uffd-pagerd running?', err)

    def test_bigger_than_memory_says_when_the_daemon_dies(self):
        d = Daemon('--memory', BUDGET)
        try:
            name = d.dir + '/output'
            with open(name, 'wb') as f, subprocess.Popen([BIGGER, '--daemon', d.path('pager.sock'), '--size', '32M', '--rounds', '1000'],
                                                         stdout=f, stderr=f, stdin=subprocess.DEVNULL) as p:
                try:
                    wait_for('filled', lambda: p.poll() is not None or '\nfill ' in text_of(name))
                    d.signal(signal.SIGKILL)
                    self.assertEqual(p.wait(DEADLINE), 1, text_of(name))
                finally:
                    p.kill()
            self.assertRegex(text_of(name), r'SIGBUS at address 0x[0-9a-f]+ in thread \d, page \d+ of the region')
            self.assertNotIn('PASS', text_of(name))
        finally:
            d.clean()

    def test_external_sort(self):
        with Daemon('--memory', BUDGET) as d:
            name = d.dir + '/text'
            lines = [b'%08x line %d' % (i * 2654435761 % (1 << 32), i % 7) for i in range(400000)]
            with open(name, 'wb') as f:
                f.write(b'\n'.join(lines) + b'\n')
            r = subprocess.run([SORT, '--count', '--daemon', d.path('pager.sock'), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               timeout=4 * DEADLINE, check=False)
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertEqual(r.stdout, b'\n'.join(sorted(lines)) + b'\n')
            self.assertIn(b'limit of the daemon, for all: 8.0', r.stderr)
            self.assertNotIn(b'swap', r.stderr)
            for own in ('--memory=8M', '--inline', '--in-memory-of-kernel'):
                run(SORT, '--daemon', d.path('pager.sock'), own, name, status=2)

    def test_snapshot_writer(self):
        with Daemon('--memory', BUDGET) as d:
            sock = d.path('pager.sock')
            out, _ = run(SNAPSHOT, '--daemon', sock, '--size', '16M', '--seconds', '2', '--out', d.dir)
            self.assertIn('\nPASS: ', out)
            self.assertIn('16 MiB in 8 MiB, of the daemon', out)
            self.assertEqual(os.path.getsize(d.dir + '/snapshot-1'), 16 << 20)
            out, _ = run(SNAPSHOT, '--daemon', sock, '--size', '16M', '--seconds', '1', '--live', status=1)
            self.assertIn('\nFAIL: ', out)
            run(SNAPSHOT, '--daemon', sock, '--memory', '8M', status=2)

    def test_process_image(self):
        with Daemon('--memory', BUDGET) as d:
            out, _ = run(IMAGE, '--daemon', d.path('pager.sock'))
            self.assertIn('child: 14 of 14 pages are right', out)
            self.assertEqual(out.count('\nchild PID '), 2, out)
            self.assertIn('  over data at fork() ', out)
            self.assertIn('parent: 15 of 15 pages are right', out)
            self.assertTrue(out.endswith('\nPASS\n'), out)
            run(IMAGE, '--daemon', d.path('pager.sock'), '--memory', '8M', status=2)

    def test_string_table(self):
        with Daemon('--memory', BUDGET) as d:
            out, _ = run(TABLE, '--daemon', d.path('pager.sock'), '--size', '48M')
            self.assertEqual(len(re.findall(r'^looked up .* 0 wrong;', out, re.M)), 2, out)
            self.assertIn('the daemon has 8.0 for all, the heap has 48.0', out)
            self.assertIn('emptied       0 blocks left', out)
            self.assertTrue(out.endswith('\nall as it should be\n'), out)
            self.assertGreater(d.ask('status')['status']['faults']['major'], 1000)
            run(TABLE, '--daemon', d.path('pager.sock'), '--memory', '8M', status=2)

    def test_microvm(self):
        with Daemon() as d:
            source, other = d.dir + '/source', d.dir + '/other'
            run(MICROVM, '--make', source, '8')
            with open(source, 'rb') as f:
                text = bytearray(f.read())
            text[1234567] ^= 1
            with open(other, 'wb') as f:
                f.write(text)
            with Daemon('--memory', BUDGET, config=f'[listen vms]\ntype = firecracker\npath = vms.sock\nsource = {source}\n') as vms:
                out, _ = run(MICROVM, vms.path('vms.sock'), source)
                self.assertIn('2048 pages filled by the other side, 0 wrong', out)
                self.assertTrue(out.endswith('\nPASS\n'), out)
                out, _ = run(MICROVM, vms.path('vms.sock'), other, status=1)
                self.assertIn('2048 pages filled by the other side, 1 wrong', out)
                self.assertTrue(out.endswith('\nFAIL\n'), out)
            run(MICROVM, vms.path('vms.sock'), source, status=1)
            run(MICROVM, '--make', source, '0', status=2)
            run(MICROVM, status=2)


if __name__ == '__main__':
    rig.main()

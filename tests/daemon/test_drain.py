#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A daemon that is to end serves who is there until they have left.  Arguments: UFFD-PAGERD UFFD-PAGER SURVIVOR."""
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import rig
from rig import Daemon, wait_for

# SIGBUS is what a client may end of: its sanitizer shall not make a report of it.
os.environ['ASAN_OPTIONS'] = ':'.join(filter(None, (os.environ.get('ASAN_OPTIONS'), 'handle_sigbus=0')))

SURVIVOR = os.path.abspath(sys.argv[3])
FILLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'filled.py')
MEMORY = '48M' if rig.SANITIZED else '24M'
PAGES = 24576 if rig.SANITIZED else 12288  # twice as much
SEED = 5


class Program:
    """Says and hears lines, each within the deadline."""

    def __init__(self, *words):
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)

    def hears(self):
        """One line; what there is of it if it ends."""
        line = b''
        while not line.endswith(b'\n'):
            if not select.select([self.process.stdout], [], [], rig.DEADLINE)[0]:
                raise AssertionError(f'it has said nothing more for {rig.DEADLINE} s than {line}')
            byte = self.process.stdout.read(1)
            if not byte:
                break
            line += byte
        return line.decode().strip()

    def says(self, line):
        self.process.stdin.write(line.encode() + b'\n')

    def looks(self, what='look'):
        """All of its pages."""
        self.says(what)
        return self.hears()

    def leaves(self):
        self.process.stdin.close()
        return self.process.wait(rig.DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        rig.end(self.process)
        for f in (self.process.stdin, self.process.stdout):
            f.close()


class Held(Program):
    """A client with more pages than there is memory."""

    def __init__(self, d):
        super().__init__(SURVIVOR, d.path('pager.sock'), 'held', str(PAGES))
        first = self.hears()
        if first != 'ready':
            raise AssertionError(f'{first}\n{d.log()}')


def state(d):
    return d.ask('status')['status']


class Drain(unittest.TestCase):
    def refused(self, d, why):
        with Program(SURVIVOR, d.path('pager.sock'), 'held', '1') as late:
            self.assertIn('refused: ' + why, late.hears())
            self.assertEqual(late.leaves(), 2)

    def test_who_is_there_is_served_until_he_leaves(self):
        with Daemon('--memory', MEMORY) as d, Held(d) as p:
            self.assertGreater(state(d)['swap']['swapped'], 0)
            d.signal(signal.SIGTERM)
            asked, ms = p.hears().split()
            self.assertEqual(asked, 'leaving')
            self.assertLessEqual(int(ms), 30000)
            self.assertGreater(int(ms), 25000)
            st = state(d)
            self.assertEqual((st['state'], st['clients']), ('draining', 1))
            self.assertTrue(0 < st['ends_in'] <= 30, st['ends_in'])
            self.assertRegex(d.tool('status'), r'draining for .* 1 clients\nending +when they have left, in [0-9]+ s')
            self.refused(d, 'the daemon is ending, and takes no new clients')
            self.assertEqual(d.ask('drain', cancel=True)['errno'], 'EBUSY')
            self.assertEqual([p.looks() for _ in range(3)], ['right'] * 3)
            self.assertEqual(p.leaves(), 0)
            self.assertEqual(d.wait(10), 0)

    def test_who_does_not_leave_has_what_is_in_memory(self):
        with Daemon('--memory', MEMORY, '--drain-timeout', '2s') as d, Held(d) as p:
            begun = time.monotonic()
            d.signal(signal.SIGTERM)
            self.assertRegex(p.hears(), r'^leaving (2000|1\d\d\d)$')
            self.assertEqual(p.looks(), 'right')
            self.assertEqual(d.wait(), 0)
            self.assertGreater(time.monotonic() - begun, 1.9)
            self.assertIn('still there after drain_timeout', d.log())
            p.says('look')
            self.assertEqual(p.process.wait(rig.DEADLINE), -signal.SIGBUS)

    def test_a_second_signal_ends_it_at_once(self):
        d = Daemon('--memory', MEMORY, '--drain-timeout', '1h')
        try:
            with Held(d) as p:
                d.signal(signal.SIGINT)
                p.hears()
                d.signal(signal.SIGTERM)
                self.assertEqual(d.wait(10), 1)
                self.assertEqual(os.listdir(d.run), [])
        finally:
            d.clean()

    def test_a_child_whose_parent_has_left_is_served_as_well(self):
        with Daemon('--memory', MEMORY) as d, Held(d) as p:
            d.signal(signal.SIGTERM)
            p.hears()
            self.assertEqual(p.looks('fork'), 'right')
            p.process.wait(rig.DEADLINE)
            wait_for('no client', lambda: state(d)['clients'] == 0)
            self.assertEqual([p.looks() for _ in range(3)], ['right'] * 3)
            self.assertEqual(state(d)['state'], 'draining')
            p.leaves()
            self.assertEqual(d.wait(10), 0)

    def test_one_that_is_killed_meanwhile_has_a_successor_that_goes_on_with_it(self):
        with Daemon('--memory', MEMORY) as d, Held(d) as p:
            d.signal(signal.SIGTERM)
            p.hears()
            before = state(d)['ends_in']
            for times in (1, 2):
                os.kill(d.served_by(), signal.SIGKILL)
                wait_for('the next daemon', lambda n=times: d.log().count('ending, as the last daemon did') == n or d.process.poll() is not None)
                p.hears()
                self.assertEqual(p.looks(), 'right')
            self.assertLessEqual(state(d)['ends_in'], before)
            self.refused(d, 'the daemon is ending')
            self.assertEqual(p.leaves(), 0)
            self.assertEqual(d.wait(10), 0)

    def test_so_has_one_that_hangs_meanwhile(self):
        with Daemon('--memory', MEMORY, '--hang-timeout', '1s') as d, Held(d) as p:
            d.signal(signal.SIGTERM)
            p.hears()
            os.kill(d.served_by(), signal.SIGSTOP)
            d.wait_log('ending, as the last daemon did')
            self.assertIn('the daemon hangs', d.log())
            p.hears()
            self.assertEqual(p.looks(), 'right')
            self.assertEqual(p.leaves(), 0)
            self.assertEqual(d.wait(10), 0)

    def test_drain_asks_as_well_and_waits_however_long(self):
        with Daemon('--memory', MEMORY, '--drain-timeout', '0') as d, Held(d) as p:
            self.assertTrue(d.ask('drain')['draining'])
            self.assertEqual(p.hears(), 'leaving 0')
            self.assertNotIn('ends_in', state(d))
            self.refused(d, 'the daemon is drained')
            os.kill(d.served_by(), signal.SIGKILL)
            d.wait_log('draining, as the last daemon did')
            self.refused(d, 'the daemon is drained')
            self.assertEqual(p.looks(), 'right')
            self.assertFalse(d.ask('drain', cancel=True)['draining'])
            with Held(d) as q:
                self.assertEqual(q.leaves(), 0)
            os.kill(d.served_by(), signal.SIGKILL)
            wait_for('the next daemon', lambda: d.log().count('serving: a budget') == 3)
            self.assertEqual(state(d)['state'], 'serving')
            d.ask('drain')
            self.assertEqual(p.hears(), 'leaving 0')
            self.assertEqual(p.leaves(), 0)
            self.assertEqual(d.wait(10), 0)

    def test_a_microvm_has_all_of_its_memory_then(self):
        with tempfile.TemporaryDirectory(prefix='filled.', dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
            subprocess.run([sys.executable, FILLED, 'make', where, str(SEED)], check=True, timeout=rig.DEADLINE)
            config = f'[listen vms]\ntype = firecracker\npath = vms.sock\nsource = {where}/memfile\n'
            with Daemon(config=config) as d, Program(sys.executable, FILLED, 'firecracker', d.path('vms.sock'), where, str(SEED)) as p:
                first = p.hears()
                if first.startswith('skip:'):
                    self.skipTest(first)
                self.assertEqual(first, 'there')
                d.signal(signal.SIGTERM)
                self.assertEqual(d.wait(), 0)
                self.assertNotIn('still there', d.log())
                self.assertRegex(d.log(), r'gone after .* and [1-9][0-9]{0,4} faults')
                self.assertRegex(p.looks(), r'looks, 0 wrong$')
                self.assertEqual(p.leaves(), 0)


if __name__ == '__main__':
    rig.main()

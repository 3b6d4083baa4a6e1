#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""uffd-pager, from outside: what it prints, draws, and ends with."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unittest

import rig
from rig import Daemon, PUPPETS

MIB = 1 << 20


class Words(unittest.TestCase):
    def test_every_verb_for_people_and_as_json(self):
        with Daemon('--memory', '64M', config=PUPPETS + '[group db]\nlimit = 50%\n') as d:
            d.puppet('vm-1', mapped=64 * MIB, resident=16 * MIB, swapped=8 * MIB, major=5, p99=4000, group='db')
            out = d.tool('status')
            self.assertIn('serving', out)
            self.assertIn('of 64M used', out)
            self.assertIn('group     db: 1 clients, 0 in memory; limit 32M, minimum 0', out)
            self.assertRegex(d.tool('clients'), r'vm-1 +test +db +16M +64M +8.0M')
            out = d.tool('map', 'vm-1')
            self.assertEqual(len(re.findall(r'^ *[0-9a-f]+ +32M +[·░▒▓█]{64} +8.0M in memory$', out, re.M)), 2, out)
            self.assertNotIn('\x1b', out)
            self.assertIn('address', d.tool('map'))
            self.assertEqual(d.tool('evict', 'vm-1', '4M'), '4.0M thrown out\n')
            self.assertEqual(d.tool('limit'), '64M\n')
            self.assertEqual(d.tool('limit', 'vm-1', '32M'), '32M\n')
            d.tool('trace')
            for words in (['status'], ['clients'], ['top'], ['map', 'vm-1'], ['map'], ['evict', '#1', '1'], ['limit'], ['trace', '-n', '3']):
                self.assertTrue(json.loads(d.tool('--json', *words))['ok'])
            self.assertEqual(d.tool('limit', '32M'), '32M\n')
            self.assertEqual(json.loads(d.tool('--json', 'limit', '999G', status=1))['errno'], 'EINVAL')
            self.assertIn('draining', d.tool('drain'))
            self.assertIn('serving again', d.tool('drain', '--cancel'))

    def test_exit_statuses(self):
        with Daemon() as d:
            self.assertIn("there is no client 'nobody'", d.tool('map', 'nobody', status=1))
            self.assertIn('above memory_max', d.tool('limit', '999G', status=1))
            for words in ([], ['bogus'], ['evict'], ['evict', 'x'], ['evict', 'x', 'y'], ['status', 'x'], ['limit', 'a', 'b', 'c'],
                          ['--delay', '0', 'top'], ['--lines', 'x', 'trace'], ['evict', 'x', '9999999999T'], ['a', 'b', 'c', 'd', 'e']):
                d.tool(*words, status=2)
            self.assertIn('No such file', d.tool('--socket', d.dir + '/none', 'status', status=3))
            d.tool('--socket', d.dir + '/' + 'x' * 200, 'status', status=3)
            self.assertIn('Usage', d.tool('--help'))
            self.assertRegex(d.tool('--version'), r'^uffd-pager \d')

    def test_it_finds_the_daemon_by_itself(self):
        with Daemon() as d:
            r = subprocess.run([rig.PAGER, 'limit'], env=d.env, timeout=rig.DEADLINE, stdout=subprocess.PIPE, check=False)
            self.assertEqual(r.returncode, 0)

    def test_a_full_disk_is_told(self):
        with Daemon() as d, open('/dev/full', 'w', encoding='ascii') as full:
            r = subprocess.run([rig.PAGER, '-s', d.path('control.sock'), 'status'], stdout=full, stderr=subprocess.PIPE,
                               timeout=rig.DEADLINE, check=False)
            self.assertEqual(r.returncode, 1)


class Top(unittest.TestCase):
    def test_one_frame_for_pipes(self):
        with Daemon('--memory', '64M', config=PUPPETS) as d:
            s = d.puppet('vm-1', mapped=64 * MIB, resident=32 * MIB)
            d.puppet('idle')
            rig.wait_for('history', lambda: rig.obey(s, major=int(time.monotonic() * 1000)) or
                         sum(d.ask('status')['status']['history']['faults']) > 0)
            out = d.tool('top', '--once')
            self.assertNotIn('\x1b', out)
            lines = out.splitlines()
            self.assertRegex(lines[0], r'^uffd-pagerd \d.* serving  process \d+  up \d+s  2 clients$')
            self.assertRegex(lines[1], r'^memory    \[[■·]{30}\] \S+ of 64M: ')
            self.assertRegex(lines[3], r'^faults/s  [ ▁▂▃▄▅▆▇█]{60} +\d+')
            self.assertRegex(out, r'vm-1 +test +32M +64M \[■■■■····\]')
            self.assertLess(max(map(len, lines)), 101)
            plain = d.tool('top', '--once', env={'LC_ALL': 'C'})
            self.assertTrue(plain.isascii())
            self.assertIn('[####....]', plain)
            # Without --once, too, where nobody looks.
            self.assertIn('vm-1', d.tool('top'))

    def screen(self, d, columns, rows, script):
        """Run top in a terminal; script(read, keys, master, pid).  What is left of it at the end."""
        pid, master = pty.fork()
        if pid == 0:
            os.environ.update({'TERM': 'xterm', 'LC_ALL': 'C.UTF-8'})
            os.execv(rig.PAGER, [rig.PAGER, '-s', d.path('control.sock'), '-d', '0.1', 'top'])
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
        seen = ''

        def until(pattern):
            nonlocal seen
            end = time.monotonic() + rig.DEADLINE
            while not re.search(pattern, seen):
                if time.monotonic() > end:
                    raise AssertionError(f'no {pattern} on the screen: {seen[-2000:]!r}')
                if select.select([master], [], [], 0.1)[0]:
                    try:
                        seen += os.read(master, 65536).decode(errors='replace')
                    except OSError:
                        break
            return seen

        def forget():
            nonlocal seen
            seen = ''
        try:
            script(until, forget, master, pid)
            until(r'\x1b\[\?1049l')
            end = time.monotonic() + rig.DEADLINE
            while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
                self.assertLess(time.monotonic(), end)
                time.sleep(0.01)
            pid = 0
            return os.waitstatus_to_exitcode(found[1]), seen
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(master)

    def test_a_terminal_is_drawn_resized_and_given_back(self):
        with Daemon(config=PUPPETS) as d:
            for i in range(30):
                d.puppet(f'client-{i}', resident=MIB * (i + 1), mapped=64 * MIB)

            def script(until, forget, master, pid):
                until(r'\x1b\[\?1049h\x1b\[\?25l')
                self.assertIn('and 1', until(r'and \d+ more'))     # 24 rows or so
                forget()
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', 60, 140, 0, 0))
                until(r'client-0 (?s:.)*q quits')
                forget()
                os.write(master, b'x')
                until('client-29')
                os.write(master, b'q')
            status, seen = self.screen(d, 100, 24, script)
            self.assertEqual(status, 0)
            self.assertTrue(seen.endswith('\x1b[?25h\x1b[?1049l'), seen[-60:])

    def test_no_frame_is_higher_than_the_terminal(self):
        with Daemon(config=PUPPETS) as d:
            for i in range(30):
                d.puppet(f'client-{i}')

            def script(until, forget, master, pid):
                forget()
                time.sleep(0.5)     # the size has been set by then
                forget()
                seen = until(r'\x1b\[H(?s:.)*?\x1b\[J')
                frame = re.search(r'\x1b\[H((?s:.)*?)\x1b\[J', seen).group(1)
                self.assertLessEqual(frame.count('\n') + 1, 20)
                os.write(master, b'q')
            self.screen(d, 80, 20, script)

    def test_signals_give_the_terminal_back(self):
        with Daemon() as d:
            for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                def script(until, forget, master, pid, sig=sig):
                    until('q quits')
                    os.kill(pid, sig)
                self.assertEqual(self.screen(d, 80, 24, script)[0], 0)

    def test_it_outlives_a_restart(self):
        d = Daemon()

        def script(until, forget, master, pid):
            until('q quits')
            d.signal(signal.SIGKILL)
            d.wait()
            until('does not answer')
            forget()
            with Daemon(keep=d.dir) as e:
                until(rf'process {e.process.pid}')
                os.write(master, b'q')
                until(r'1049l')
        self.assertEqual(self.screen(d, 80, 24, script)[0], 0)


if __name__ == '__main__':
    rig.main()

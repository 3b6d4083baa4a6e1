#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The unit lets the daemon do what it does, and not much else.  Arguments: UFFD-PAGERD UFFD-PAGER UNIT TENANT."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import rig
from rig import Daemon, wait_for

UNIT, TENANT = map(os.path.abspath, sys.argv[3:5])
FILLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'filled.py')
SEED = 5


def groups():
    """Of system calls, as systemd has them."""
    text = subprocess.run(['systemd-analyze', '--no-pager', 'syscall-filter'], stdout=subprocess.PIPE, text=True, timeout=rig.DEADLINE, check=True)
    found = {}
    for line in text.stdout.splitlines():
        if line.startswith('@'):
            name = line.strip()
            found[name] = set()
        elif line.startswith('    ') and found and not line.strip().startswith('#'):
            found[name].add(line.strip())
    return found


def allowed():
    """What SystemCallFilter= leaves, line by line."""
    known = groups()

    def meant(word):
        return {word}.union(*map(meant, known.get(word, ())))
    calls = meant('@default')
    with open(UNIT, encoding='utf-8') as f:
        lines = re.findall(r'^SystemCallFilter=(~?)(.*)$', f.read(), re.M)
    assert lines
    for no, words in lines:
        named = set().union(*map(meant, words.split()))
        calls = calls - named if no else calls | named
    return calls


class Unit(unittest.TestCase):
    def setUp(self):
        if rig.SANITIZED:
            self.skipTest('its sanitizer calls what it likes')
        if shutil.which('systemd-analyze') is None:
            self.skipTest('no systemd-analyze')
        if shutil.which('strace') is None or subprocess.run(['strace', '-D', '-f', '-o', '/dev/null', 'true'], stderr=subprocess.DEVNULL,
                                                            timeout=rig.DEADLINE, check=False).returncode != 0:
            self.skipTest('no strace, or it may not trace')

    def test_it_keeps_out_what_the_daemon_has_no_use_for(self):
        calls = allowed()
        for call in ('process_vm_readv', 'process_vm_writev', 'pidfd_getfd', 'ptrace', 'bpf', 'keyctl', 'setuid', 'mount', 'chown', 'shmat',
                     'perf_event_open', 'io_submit', 'sched_setscheduler'):
            self.assertNotIn(call, calls)

    def test_it_allows_all_that_the_daemon_calls(self):
        with tempfile.TemporaryDirectory(dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
            subprocess.run([sys.executable, FILLED, 'make', where, str(SEED)], check=True, timeout=rig.DEADLINE)
            config = ('[daemon]\nmemory = 16M\nservice_threads = 2\ncompression = lz4\n'
                      f'[listen vms]\ntype = firecracker\npath = vms.sock\nsource = {where}/memfile\n')
            with Daemon(config=config, under=['strace', '-D', '-f', '-c', '-o', where + '/calls']) as d:
                self.work(d, where)
            wait_for('the sum', lambda: re.search(r' total$', read(where + '/calls'), re.M))
            rows = re.findall(r'^ *[\d.]+ .* (\w+)$', read(where + '/calls'), re.M)
        calls = set(rows) - {'total'}
        self.assertLess({'io_uring_enter', 'sendmsg', 'memfd_create', 'clone3' if 'clone3' in calls else 'clone'}, calls)
        self.assertEqual(calls - allowed(), set())

    def work(self, d, where):
        words = [TENANT, d.path('pager.sock')]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as t, \
                subprocess.Popen([sys.executable, FILLED, 'firecracker', d.path('vms.sock'), where, str(SEED)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True) as vm:
            def tell(*words):
                print(*words, file=t.stdin, flush=True)
                return t.stdout.readline().strip()
            try:
                self.assertEqual(t.stdout.readline().strip(), 'there')
                vm.stdout.readline()
                tell('map', 6144)
                self.assertEqual(tell('fill', 1), 'ok')
                for words in (('clone',), ('object', 'x', 256)):
                    self.assertEqual(tell(*words), 'ok')
                for verb in ('status', 'clients', 'trace'):
                    d.tool(verb)
                d.tool('limit', str(t.pid), '--limit', '10M')
                d.tool('map', str(t.pid))
                with d.connect('http.sock') as s:
                    s.sendall(b'GET /metrics HTTP/1.0\r\n\r\n')
                    self.assertIn(b'200', s.recv(65536))
                d.signal(signal.SIGHUP)
                d.wait_log('reload: done')
                for n, begin in enumerate((lambda: os.kill(d.served_by(), signal.SIGKILL), lambda: d.tool('upgrade'))):
                    begin()
                    wait_for('the next daemon', lambda n=n: d.log().count('serving: a budget') >= n + 2)
                    self.assertEqual(tell('fill', n + 2), 'ok')
                self.assertEqual(tell('unmap'), 'ok')
            finally:
                for p in (t, vm):
                    p.kill()


def read(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


if __name__ == '__main__':
    rig.main()

#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A monitor that hands its memory over, to the whole daemon: what an operator sees of it, and can do to it."""
import array
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import unittest

import rig
from rig import Daemon

MIB = 1 << 20
PAGE = 4096
NPAGES = 64 * MIB // PAGE
CONFIG = '[listen ch]\ntype = handoff\npath = ch.sock\n'

USERFAULTFD = 323  # x86_64
UFFDIO_API, UFFDIO_REGISTER = 0xc018aa3f, 0xc020aa00


def monitor(path, twice):
    """Another process; twice: its memory is mapped a second time, so that it can not be taken back: some pages before it hands over, the others after; says what was wrong at each line that it is told."""
    libc = ctypes.CDLL(None, use_errno=True)
    uffd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if uffd < 0:
        print('skip: userfaultfd:', errno.errorcode[ctypes.get_errno()], flush=True)
        return
    fcntl.ioctl(uffd, UFFDIO_API, bytearray(struct.pack('<QQQ', 0xaa, 0, 0)))
    memfd = os.memfd_create('guest')
    os.ftruncate(memfd, NPAGES * PAGE)
    memory = mmap.mmap(memfd, NPAGES * PAGE)
    again = mmap.mmap(memfd, NPAGES * PAGE) if twice else None
    os.close(memfd)
    at = ctypes.addressof((ctypes.c_char * (NPAGES * PAGE)).from_buffer(memory))
    for i in range(0, NPAGES, 4):
        ctypes.memset(at + i * PAGE, i % 251 + 1, PAGE)
    fcntl.ioctl(uffd, UFFDIO_REGISTER, bytearray(struct.pack('<QQQQ', at, NPAGES * PAGE, 3, 0)))
    region = {'guest_phys_addr': 0, 'host_virt_addr': at, 'size': NPAGES * PAGE, 'backing_file_offset': 0}
    text = json.dumps({'type': 'handoff', 'version': 0, 'vmm_pid': os.getpid(), 'mode': 'WP', 'regions': [region]}).encode()
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(rig.DEADLINE)
        s.connect(path)
        s.sendmsg([struct.pack('<I', len(text)) + text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [uffd]))])
        print('answer', s.recv(1), flush=True)
        for i in range(NPAGES):
            if i % 4:
                ctypes.memset(at + i * PAGE, i % 251 + 1, PAGE)
        for _ in sys.stdin:
            wrong = sum(ctypes.string_at(at + i * PAGE, PAGE) != bytes([i % 251 + 1]) * PAGE for i in range(NPAGES))
            print('wrong', wrong, flush=True)
    del again


class Handoff(unittest.TestCase):
    def test_its_memory_is_seen_limited_and_thrown_out(self):
        with Daemon('--memory', '16M', config=CONFIG) as d:
            with subprocess.Popen([sys.executable, __file__, rig.PAGERD, rig.PAGER, 'monitor', d.path('ch.sock')], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True) as vmm:
                try:
                    self.run_monitor(d, vmm)
                finally:
                    vmm.kill()
            rig.wait_for('all of it is given back', lambda: d.ask('status')['status']['clients'] == 0 and
                         d.ask('status')['status']['swap']['swapped'] == 0, 5)

    def test_what_was_filled_is_counted_when_it_has_gone(self):
        with Daemon(config=CONFIG) as d:
            with subprocess.Popen([sys.executable, __file__, rig.PAGERD, rig.PAGER, 'monitor', d.path('ch.sock'), 'twice'], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True) as vmm:
                self.addCleanup(vmm.kill)
                said = vmm.stdout.readline()
                if said.startswith('skip'):
                    self.skipTest(said)
                vmm.stdin.write('\n')
                vmm.stdin.flush()
                self.assertEqual(vmm.stdout.readline(), 'wrong 0\n')
                self.assertIn('it is filled where something is missing', d.log())
                before = sum(d.ask('clients')['clients'][0]['faults'].values())
                self.assertGreaterEqual(before, NPAGES // 4 * 3)
                vmm.stdin.close()
            d.wait_log(f'and {before} faults')
            self.assertEqual(sum(d.ask('status')['status']['faults'].values()), before)

    def run_monitor(self, d, vmm):
        said = vmm.stdout.readline()
        if said.startswith('skip'):
            self.skipTest(said)
        self.assertEqual(said, "answer b'\\x01'\n")
        for words in ((), ('limit', '8M'), ('evict', '4M'), ()):
            if words:
                d.tool(words[0], str(vmm.pid), words[1])
            vmm.stdin.write('\n')
            vmm.stdin.flush()
            self.assertEqual(vmm.stdout.readline(), 'wrong 0\n')
            status = d.ask('status')['status']
            self.assertLessEqual(status['budget']['used'], 16 * MIB)
            self.assertGreater(status['swap']['swapped'], 32 * MIB)
        self.assertRegex(d.tool('map', str(vmm.pid)), r'handoff')
        self.assertRegex(d.tool('map', str(vmm.pid)), r'64M +[·░▒▓█wsc]{64}')
        vmm.send_signal(signal.SIGKILL)


if __name__ == '__main__':
    if sys.argv[3:4] == ['monitor']:
        monitor(sys.argv[4], sys.argv[5:] == ['twice'])
    else:
        rig.main()

#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The daemon is killed, and its clients do not notice.  Arguments: UFFD-PAGERD UFFD-PAGER SURVIVOR MONITOR [SECONDS [SEED]]."""
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import rig
from rig import Daemon, wait_for

# SIGBUS is what a survivor may end of: its sanitizer shall not make a report of it.
os.environ['ASAN_OPTIONS'] = ':'.join(filter(None, (os.environ.get('ASAN_OPTIONS'), 'handle_sigbus=0', 'handle_segv=0')))

FILLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'filled.py')
SURVIVOR = os.path.abspath(sys.argv[3])
MONITOR = os.path.abspath(sys.argv[4])
SECONDS = int(sys.argv[5]) if len(sys.argv) > 5 else 3
SEED = int(sys.argv[6]) if len(sys.argv) > 6 else random.randrange(1 << 30)
RESTORES = 3 * SECONDS
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
CLONED = 3400  # pages: with a copy, more than 16M
MEMORY = '48M' if rig.SANITIZED else '24M'
GUEST = '12288' if rig.SANITIZED else '6144'  # pages, of each of two


def clients(d):
    return d.ask('status')['status']['clients']


PROGRAMS = []  # that a test has started: where it has failed they are still there


def run_program(words):
    """What it says is to be read; it may wait for a line."""
    PROGRAMS.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return PROGRAMS[-1]


def start(d, pages, seconds, seed, threads=2):
    return run_program([SURVIVOR, d.path('pager.sock'), str(pages), str(seconds), str(seed), str(threads)])


def kill_daemon(d, times):
    """Kill it; the next one serves when this returns."""
    os.kill(d.served_by(), signal.SIGKILL)
    wait_for('the next daemon', lambda: d.log().count('serving: a budget') == times + 1 or d.process.poll() is not None)
    if d.process.poll() is not None:
        raise AssertionError('the guardian has ended:\n' + d.log())


def waits_for_one(pid):
    """One of its threads is in poll() for a single descriptor, for as long as it takes."""
    for task in os.listdir(f'/proc/{pid}/task'):
        with contextlib.suppress(OSError), open(f'/proc/{pid}/task/{task}/syscall', encoding='ascii') as f:
            _, _, n, until = (f.read().split() + ['', '', '', ''])[:4]
            # poll(), of which -1 is no end, or ppoll(), of which NULL is.
            if n == '0x1' and until in ('0xffffffff', '0xffffffffffffffff', '0x0'):
                return True
    return False


@contextlib.contextmanager
def store_of(pid):
    """The memory that a daemon which stands still leaves to the next one: its descriptor, and the stretches of it that are there."""
    link = next(fd for fd in os.scandir(f'/proc/{pid}/fd') if 'uffd-pager-store' in os.readlink(fd.path))
    fd = os.open(link.path, os.O_RDWR)
    stretches, hole = [], 0
    with contextlib.suppress(OSError):  # the end
        while True:
            at = os.lseek(fd, hole, os.SEEK_DATA)
            hole = os.lseek(fd, at, os.SEEK_HOLE)
            stretches.append((at, hole))
    yield fd, stretches
    os.close(fd)


def spoil_entries(pid, length):
    """Map entries of that length get a next one at an address that is none."""
    found = 0
    with store_of(pid) as (fd, stretches):
        for at, hole in stretches:
            # struct map_entry (vm/map.h): start, end and six words more are a cache line, and next comes after it.
            for entry in range(at, hole, 64):
                first, last, thing = struct.unpack('<3Q', os.pread(fd, 24, entry))
                if thing != 0 and last - first == length and first > 1 << 32 and first % 4096 == 0:
                    os.pwrite(fd, struct.pack('<Q', 8), entry + 64)
                    found += 1
    assert found > 0


def spoil_pages(pid, npages):
    """Objects of that many pages get one at an address that is none."""
    def mapped_at():
        with open(f'/proc/{pid}/maps', encoding='ascii') as f:
            return [(int(m[1], 16), int(m[2], 16), int(m[3], 16)) for m in
                    (re.match(r'(\w+)-(\w+) \S+ (\w+) .*uffd-pager-store', line) for line in f) if m]

    maps = mapped_at()
    found = 0
    with store_of(pid) as (fd, stretches):
        def words(address, n):
            for start, end, offset in maps:
                if start <= address and address + 8 * n <= end:
                    return struct.unpack(f'<{n}Q', os.pread(fd, 8 * n, address - start + offset))
            return None

        for at, hole in stretches:
            data = os.pread(fd, hole - at, at)
            # struct leaf (vm/object.h): a lock of five words, the object, flags, base, nused, and 512 slots; an object's size is its tenth word.
            for leaf in range(0, len(data) - 521 * 8, 8):
                o, _, base, nused = struct.unpack_from('<4Q', data, leaf + 40)
                if base % 512 != 0 or base >= npages or nused & 0xffffffff not in range(1, 513) or o == 0:
                    continue
                what = words(o, 10)
                slots = struct.unpack_from('<512Q', data, leaf + 72)
                if what is None or what[9] != npages or sum(s != 0 for s in slots) != nused & 0xffffffff:
                    continue
                i = next(i for i in range(512) if slots[i] != 0)
                os.pwrite(fd, struct.pack('<Q', 16 | 1), at + leaf + 72 + 8 * i)
                found += 1
    assert found > 0


def finish(d, programs):
    for p in programs:
        try:
            out, _ = p.communicate(timeout=rig.DEADLINE)
        except subprocess.TimeoutExpired:
            p.kill()
            raise AssertionError(f'a client hangs:\n{p.communicate()[0]}\n{d.log()}') from None
        if p.returncode != 0:
            raise AssertionError(f'seed {SEED}: exit status {p.returncode}\n{out}\n{d.log()}')
        print(out.strip())


def there(program, d):
    """It is served."""
    late = threading.Timer(rig.DEADLINE, program.kill)
    late.start()
    line = program.stdout.readline()
    late.cancel()
    if line.startswith('skip:'):
        raise unittest.SkipTest(line)
    if line != 'there\n':
        raise AssertionError(f'{line}{program.communicate()[0]}\n{d.log()}')


def mib(text):
    return int(text[:-1]) << 20


def compressed(log):
    """How many pages were in the pool, each time that it was taken over; no page was lost."""
    lines = [line for line in log.splitlines() if 're-attached' in line]
    for line in lines:
        if not line.endswith('lost 0'):
            raise AssertionError(f'seed {SEED}: {line}\n{log}')
    return [int(re.search(r'compressed (\d+)', line).group(1)) for line in lines]


@contextlib.contextmanager
def files():
    """A directory with a snapshot and images in it (filled.py)."""
    with tempfile.TemporaryDirectory(prefix='filled.', dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
        subprocess.run([sys.executable, FILLED, 'make', where, str(SEED)], check=True, timeout=rig.DEADLINE)
        yield where


class Verb:
    """uffd-pagerd with a word of one protocol."""

    def __init__(self, *words):
        self.where = words[-1]
        self.logfile = tempfile.NamedTemporaryFile('r', prefix='verb.')
        with open(self.logfile.name, 'w', encoding='utf-8') as log:
            self.process = subprocess.Popen([rig.PAGERD, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self):
        with open(self.logfile.name, encoding='utf-8') as f:
            return f.read()

    def path(self, _name):
        return self.where + '/lazy-pages.socket'

    def kill(self, times):
        """It; the next one serves when this returns, unless the last one had nothing more to do."""
        try:
            with open(f'/proc/{self.process.pid}/task/{self.process.pid}/children', encoding='ascii') as f:
                os.kill(int(f.read().split()[0]), signal.SIGKILL)
        except (FileNotFoundError, IndexError, ProcessLookupError):
            return
        wait_for('the next one', lambda: self.log().count(': serving ') == times + 1 or self.process.poll() is not None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        rig.end(self.process)
        self.logfile.close()


class Systemd:
    """Who hears of the main process."""

    def __init__(self, where, seconds):
        self.seconds = seconds
        self.env = {'NOTIFY_SOCKET': where + '/notify', 'WATCHDOG_USEC': str(seconds * 1000000)}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(where + '/notify')
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.heard = []  # when, by whom
        self.thread = threading.Thread(target=self.hear)

    def hear(self):
        while True:
            text, control, _, _ = self.socket.recvmsg(4096, 256)
            if text == b'':
                return
            if b'WATCHDOG=1' in text.split(b'\n'):
                pid, = (struct.unpack('<i', data[:4])[0] for _, kind, data in control if kind == socket.SCM_CREDENTIALS)
                self.heard.append((time.monotonic(), pid))

    def check(self, main):
        times = [t for t, _ in self.heard] + [time.monotonic()]
        assert {pid for _, pid in self.heard} == {main}, (main, self.heard)
        assert len(times) > 3, times
        longest = max(b - a for a, b in zip(times, times[1:]))
        assert longest < self.seconds, f'systemd heard nothing for {longest} s'

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b'', self.env['NOTIFY_SOCKET'])
        self.thread.join(rig.DEADLINE)
        self.socket.close()


class Filled:
    """A client of filled.py."""

    def __init__(self, d, kind, where):
        self.d, self.kind = d, kind
        sock = {'firecracker': 'fc.sock', 'criu': 'criu.sock', 'sent': 'criu.sock'}[kind]
        self.program = run_program([sys.executable, FILLED, kind, d.path(sock), where, str(SEED)])

    def is_there(self):
        there(self.program, self.d)

    def finish(self):
        try:
            out, _ = self.program.communicate('\n', timeout=rig.DEADLINE)
        except subprocess.TimeoutExpired:
            self.program.kill()
            raise AssertionError(f'{self.kind} hangs:\n{self.program.communicate()[0]}\n{self.d.log()}') from None
        if self.program.returncode != 0:
            raise AssertionError(f'seed {SEED}: {self.kind}: exit status {self.program.returncode}\n{out}\n{self.d.log()}')
        print(self.kind, out.strip())


class Survive(unittest.TestCase):
    def tearDown(self):
        for p in PROGRAMS:
            rig.end(p)
        PROGRAMS.clear()

    def test_clients_go_on_with_every_byte_when_it_is_killed_at_any_moment(self):
        self.kill_at_any_moment()

    def test_so_they_do_with_compressed_memory(self):
        self.kill_at_any_moment('lz4')

    def test_clients_go_on_with_every_byte_when_it_is_killed_at_any_call(self):
        self.kill_at_any_call()

    def test_so_they_do_at_any_call_with_compressed_memory(self):
        self.kill_at_any_call('lz4')

    def kill_at_any_moment(self, compression='none'):
        rnd = random.Random(SEED)
        print(f'seed {SEED}')
        with Daemon('--memory', MEMORY, '--log-level', 'info', '--compression', compression) as d:
            # What it has is empty, and what the next one keeps is something else of that name.
            times = 1
            kill_daemon(d, times)
            # It takes a while to fill a pool, on a busy machine some seconds.
            seconds = SECONDS + (4 if compression != 'none' else 0)
            programs = [start(d, 6144, seconds, SEED + i) for i in range(3)]
            end = time.monotonic() + seconds - 1
            self.wait_used(d, len(programs))
            self.fill_pool(d, compression)
            end = min(end, time.monotonic() + SECONDS - 1)
            while times == 1 or time.monotonic() < end:
                times += 1
                kill_daemon(d, times)
                time.sleep(rnd.random() * rnd.choice((0.01, 0.1, 0.4)))
            finish(d, programs)
            wait_for('all are gone', lambda: clients(d) == 0)
            log = d.log()
            self.assertNotIn('can not be taken over', log)
            self.check_pool(compression, log, times, empty=1)

    def fill_pool(self, d, compression):
        if compression != 'none':
            wait_for('compressed pages', lambda: d.ask('status')['status']['budget']['compressed'] > 1000 * 4096)

    def check_pool(self, compression, log, times, empty=0):
        """There was something in the pool whenever it was killed, but for the first so many times; or the test would show nothing."""
        pages = compressed(log)[empty:]
        print(f'killed {times} times; compressed pages each time: {sum(pages) // max(len(pages), 1)}, at most {max(pages, default=0)}')
        if compression == 'none':
            self.assertEqual(sum(pages), 0)
        else:
            self.assertGreater(min(pages), 100, log)

    def kill_at_any_call(self, compression='none'):
        print(f'seed {SEED}')
        with tempfile.TemporaryDirectory(prefix='killed.') as killed, \
                Daemon('--memory', MEMORY, '--log-level', 'info', '--compression', compression,
                       env={'UFFD_PAGERD_ASSASSIN': f'{SEED}:14:{killed}/file'}) as d:
            programs = [start(d, 6144, SECONDS + 4, SEED + i) for i in range(3)]
            end = time.monotonic() + SECONDS + 4
            # Nobody is killed by a call before there is the file; the first is killed from outside.
            self.fill_pool(d, compression)
            with open(killed + '/file', 'w+', encoding='ascii') as f:
                os.kill(d.served_by(), signal.SIGKILL)
                # Some of them come late: until there was one, as long as there is something to do.
                time.sleep(SECONDS - 1)
                while time.monotonic() < end and os.stat(f.fileno()).st_size == 0:
                    time.sleep(0.1)
                times = f.readlines()
            os.unlink(killed + '/file')
            finish(d, programs)
            print(f'killed {len(times)} times, {sum(line.startswith("early") for line in times)} of them before it served')
            self.assertGreater(len(times), 0)
            self.assertNotIn('can not be taken over', d.log())
            self.check_pool(compression, d.log(), len(times))
            wait_for('all are gone', lambda: clients(d) == 0)

    def test_guests_go_on_with_every_byte_when_it_is_killed_at_any_moment(self):
        self.kill_under_guests()

    def test_so_guests_do_with_compressed_memory(self):
        self.kill_under_guests('--compression', 'lz4')

    def test_guests_go_on_with_every_byte_when_it_is_killed_at_any_call(self):
        with tempfile.TemporaryDirectory(prefix='killed.') as killed:
            self.kill_under_guests(killed=killed + '/file')

    def kill_under_guests(self, *flags, killed=None):
        """Machines whose memory is a memfd that the daemon takes pages out of, until they end."""
        rnd = random.Random(SEED)
        print(f'seed {SEED}')
        with tempfile.TemporaryDirectory(prefix='guests.', dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
            subprocess.run([MONITOR, 'make', where + '/memfile', GUEST, str(SEED)], check=True, timeout=rig.DEADLINE)
            config = (f'[listen fc]\ntype = firecracker\npath = fc.sock\nsource = {where}/memfile\n'
                      '[listen ch]\ntype = handoff\npath = ch.sock\n')
            with Daemon('--memory', MEMORY, '--log-level', 'info', *flags, config=config,
                        env={'UFFD_PAGERD_ASSASSIN': f'{SEED}:14:{killed}'} if killed else {}) as d:
                seconds = SECONDS + (2 if killed else 0)
                programs = [run_program([MONITOR, kind, d.path(sock), GUEST, str(seconds), str(SEED)])
                            for kind, sock in (('firecracker', 'fc.sock'), ('handoff', 'ch.sock'))]
                end = time.monotonic() + seconds - 0.5
                for p in programs:
                    there(p, d)
                if killed:
                    with open(killed, 'w+', encoding='ascii') as f:
                        os.kill(d.served_by(), signal.SIGKILL)
                        while time.monotonic() < end:
                            time.sleep(0.1)
                        times = len(f.readlines())
                    os.unlink(killed)
                else:
                    times = 0
                    while time.monotonic() < end:
                        times += 1
                        kill_daemon(d, times)
                        time.sleep(rnd.random() ** 2 * rnd.choice((0.01, 0.1, 0.4)))
                finish(d, programs)
                print(f'killed {times} times')
                self.assertGreater(times, 0)
                compressed(d.log())
                for word in ('waits', 'waited for', 'can not be', 'Another pager', 'nobody hears'):
                    self.assertNotIn(word, d.log())
                wait_for('all are gone', lambda: clients(d) == 0)
                wait_for('nothing is left of them', lambda: d.ask('status')['status']['swap']['swapped'] == 0)

    def test_what_a_guest_brought_is_held_to_the_budget_by_the_next_daemon(self):
        """Four times as much as there may be; it is killed while that is taken over, and page by page thrown out."""
        rnd = random.Random(SEED)
        print(f'seed {SEED}')
        with Daemon('--memory', MEMORY, '--log-level', 'info', config='[listen ch]\ntype = handoff\npath = ch.sock\n') as d:
            seconds = max(SECONDS - 1, 1)
            p = run_program([MONITOR, 'full', d.path('ch.sock'), str(4 * int(GUEST)), str(seconds + 2), str(SEED)])
            end = time.monotonic() + seconds
            there(p, d)
            times = 0
            while time.monotonic() < end:
                times += 1
                kill_daemon(d, times)
                time.sleep(rnd.random() ** 2 * rnd.choice((0.01, 0.1, 0.4)))
            fds = f'/proc/{p.pid}/fd'
            memory = next(f'{fds}/{fd}' for fd in os.listdir(fds) if os.readlink(f'{fds}/{fd}').startswith('/memfd:guest'))
            print(f'killed {times} times, {os.stat(memory).st_blocks >> 11} MiB are in memory yet')
            wait_for('it has no more than the budget, or has ended', lambda: p.poll() is not None or os.stat(memory).st_blocks * 512 <= mib(MEMORY))
            self.assertIsNone(p.poll())
            self.assertEqual(clients(d), 1)
            finish(d, [p])
            wait_for('it is gone', lambda: clients(d) == 0)

    def test_a_guest_that_can_not_be_served_again_waits(self):
        """Something that was kept of it is lost, and its monitor has closed its own copy of the userfaultfd: without ours what it misses would be zeros."""
        with self.forgetful({'UFFD_PAGERD_LOSES': '/removals'}) as (d, p, _):
            idle = len(os.listdir(f'/proc/{d.process.pid}/fd'))
            for times in range(1, 4):
                kill_daemon(d, times)
                self.assertEqual(d.log().count('what it misses is waited for'), 1)
                self.assertEqual(clients(d), 0)
            # A wrong page, or SIGBUS, is its end.
            with self.assertRaises(subprocess.TimeoutExpired):
                p.wait(0.5)
            p.kill()
            self.assertEqual(p.communicate()[0], '')
            kill_daemon(d, 4)
            # Its userfaultfd, memfd and so on; one more is a holder's.
            wait_for('nothing is kept of it', lambda: len(os.listdir(f'/proc/{d.process.pid}/fd')) <= idle - 3)

    def test_a_snapshot_that_was_cut_short_meanwhile_is_sigbus_and_not_zeros(self):
        with self.forgetful() as (d, p, where):
            d.process.send_signal(signal.SIGSTOP)
            os.kill(d.served_by(), signal.SIGKILL)
            os.truncate(where + '/memfile', 0)
            d.process.send_signal(signal.SIGCONT)
            self.assertEqual(p.wait(rig.DEADLINE), -signal.SIGBUS)
            self.assertEqual(p.communicate()[0], '')
            self.assertIn('past the end of the snapshot; SIGBUS', d.log())
            wait_for('it is gone', lambda: clients(d) == 0)

    @contextlib.contextmanager
    def forgetful(self, env=None):
        """A machine of a snapshot, at work for ten minutes, without a userfaultfd of its own."""
        with tempfile.TemporaryDirectory(prefix='guests.', dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
            subprocess.run([MONITOR, 'make', where + '/memfile', GUEST, str(SEED)], check=True, timeout=rig.DEADLINE)
            config = f'[listen fc]\ntype = firecracker\npath = fc.sock\nsource = {where}/memfile\n'
            with Daemon('--memory', MEMORY, '--log-level', 'info', config=config, env=env) as d:
                with run_program([MONITOR, 'forgetful', d.path('fc.sock'), GUEST, '600', str(SEED)]) as p:
                    try:
                        there(p, d)
                        yield d, p, where
                    finally:
                        p.kill()

    def test_memory_that_is_filled_is_never_zeros(self):
        """A microVM, and a task of which nobody but the daemon has the userfaultfd."""
        rnd = random.Random(SEED)
        print(f'seed {SEED}')
        with files() as where:
            config = (f'[listen fc]\ntype = firecracker\npath = fc.sock\nsource = {where}/memfile\n'
                      f'[listen criu]\ntype = criu\npath = criu.sock\nsource = {where}/images\n')
            with Daemon('--memory', MEMORY, '--log-level', 'info', config=config) as d:
                programs = [Filled(d, kind, where) for kind in ('firecracker', 'criu')]
                for p in programs:
                    p.is_there()
                end = time.monotonic() + SECONDS
                times = 0
                while time.monotonic() < end:
                    times += 1
                    kill_daemon(d, times)
                    time.sleep(rnd.random() ** 3 * 0.3)
                print(f'killed {times} times')
                for p in programs:
                    p.finish()
                missed = {what: re.findall(rf"\d+ {what}s? of the last daemon's: (\d+) pages are missing", d.log())
                          for what in ('region set', 'space')}
                print(missed)
                # Nothing comes to a microVM but what it asks for.  The task may have all before the first kill.
                self.assertGreater(int(missed['region set'][0]), 0)
                self.assertNotIn('waits', d.log())
                self.assertNotIn('reads as zeros', d.log())
                wait_for('all are gone', lambda: clients(d) == 0)

    def test_what_a_restore_has_said_is_not_lost(self):
        """CRIU gets no answer: what it has said, and nobody has read, or acted upon, is there all the same."""
        rnd = random.Random(SEED)
        print(f'seed {SEED}')
        with files() as where:
            config = f'[listen criu]\ntype = criu\npath = criu.sock\nsource = {where}/images\n'
            with Daemon('--memory', MEMORY, '--log-level', 'info', config=config) as d:
                for times in range(1, RESTORES + 1):
                    program = Filled(d, 'sent', where)
                    program.is_there()
                    time.sleep(rnd.random() ** 2 * 0.01)
                    kill_daemon(d, times)
                    program.finish()
                self.assertNotIn('failed', d.log())
                self.assertNotIn('refused', d.log())
                wait_for('all are gone', lambda: clients(d) == 0)

    def test_what_a_restore_has_said_is_not_lost_at_any_call(self):
        """Killed before and after a system call, those that have received something among them."""
        print(f'seed {SEED}')
        with files() as where, tempfile.TemporaryDirectory(prefix='killed.') as killed:
            config = f'[listen criu]\ntype = criu\npath = criu.sock\nsource = {where}/images\n'
            with Daemon('--memory', MEMORY, '--log-level', 'info', config=config,
                        env={'UFFD_PAGERD_ASSASSIN': f'{SEED}:8:{killed}/file'}) as d:
                kept = len(os.listdir(f'/proc/{d.process.pid}/fd'))
                with open(killed + '/file', 'w+', encoding='ascii') as f:
                    # The first may be past its number: there was no file yet.
                    os.kill(d.served_by(), signal.SIGKILL)
                    # So many, and on until one of them has met a kill.
                    times = []
                    for i in range(10 * RESTORES):
                        program = Filled(d, 'sent', where)
                        program.is_there()
                        program.finish()
                        times += f.readlines()
                        if i + 1 >= RESTORES and times:
                            break
                os.unlink(killed + '/file')
                print(f'killed {len(times)} times:', *(line.split(None, 2)[2].strip() for line in times), sep='\n  ')
                self.assertGreater(len(times), 0)
                self.assertNotIn('failed', d.log())
                self.assertNotIn('refused', d.log())
                wait_for('all are gone', lambda: clients(d) == 0)
                wait_for('nothing is kept of them', lambda: len(os.listdir(f'/proc/{d.process.pid}/fd')) <= kept)

    def test_a_verb_that_is_killed_goes_on(self):
        """uffd-pagerd criu: it ends with 0, when all is there."""
        with files() as where:
            with Verb('criu', '-D', where + '/images', '-W', where) as verb:
                wait_for('its socket', lambda: os.path.exists(where + '/lazy-pages.socket'))
                program = Filled(verb, 'criu', where)
                program.is_there()
                for times in range(1, 4):
                    verb.kill(times)
                program.finish()
                self.assertEqual(verb.process.wait(rig.DEADLINE), 0, verb.log())

    def test_a_verb_is_upgraded(self):
        with files() as where, Verb('firecracker', where + '/fc.sock', where + '/memfile') as verb:
            wait_for('it serves', lambda: verb.log().count(': serving ') == 1)
            verb.process.send_signal(signal.SIGUSR2)
            wait_for('the next one serves', lambda: verb.log().count(': serving ') == 2)
            self.assertIn('anew', verb.log())
            verb.process.send_signal(signal.SIGTERM)
            self.assertEqual(verb.process.wait(rig.DEADLINE), 0, verb.log())

    def test_a_daemon_that_hangs_is_killed_and_its_clients_go_on(self):
        """All of it, the keeper alone, a service thread, the loop; and systemd hears of the guardian all the time."""
        names = {'the keeper': 'uffd-keeper', 'a service thread': 'uffd-pager', 'the loop': os.path.basename(rig.PAGERD)[:15]}
        with tempfile.TemporaryDirectory(prefix='hangs.') as where, Systemd(where, 4) as systemd, \
                Daemon('--memory', MEMORY, '--hang-timeout', '2s', '--log-level', 'info',
                       env={'UFFD_PAGERD_STICKS': where + '/thread', **systemd.env}) as d:
            programs = [start(d, 6144, 16 + SECONDS, SEED + i) for i in range(2)]
            for times, who in enumerate(('all of it', *names), 1):
                self.wait_used(d, len(programs))
                before = d.served_by()
                if who == 'all of it':
                    os.kill(before, signal.SIGSTOP)
                else:
                    with open(where + '/new', 'w', encoding='ascii') as f:
                        f.write(names[who])
                    os.rename(where + '/new', where + '/thread')
                if who == 'the loop':
                    d.connect().close()
                self.wait_served(d, times)
                self.assertIn(f'the daemon hangs: {who} has not answered for', d.log())
                self.assertNotEqual(d.served_by(), before)
            finish(d, programs)
            # However much a client has it say meanwhile: the limit, and at most two of the guardian's looks.
            silences = [int(ms) for ms in re.findall(r'has not answered for (\d+) ms', d.log())]
            self.assertEqual(len(silences), 4, d.log())
            self.assertLess(max(silences), 3000)
            systemd.check(d.process.pid)

    def test_so_do_microvms_when_their_filler_hangs(self):
        with files() as where:
            with Daemon('--memory', MEMORY, '--hang-timeout', '1s', '--log-level', 'info', env={'UFFD_PAGERD_STICKS': where + '/thread'},
                        config=f'[listen fc]\ntype = firecracker\npath = fc.sock\nsource = {where}/memfile\n') as d:
                program = Filled(d, 'firecracker', where)
                program.is_there()
                with open(where + '/new', 'w', encoding='ascii') as f:
                    f.write('fill')
                os.rename(where + '/new', where + '/thread')
                self.wait_served(d, 1)
                self.assertIn('the daemon hangs: a filler has not answered for', d.log())
                program.finish()

    def test_without_a_guardian_systemd_is_told_no_more(self):
        with tempfile.TemporaryDirectory(prefix='hangs.') as where, Systemd(where, 2) as systemd:
            d = Daemon('--memory', '16M', '--guardian', 'no', env={'UFFD_PAGERD_STICKS': where + '/thread', **systemd.env})
            try:
                wait_for('systemd is told', lambda: len(systemd.heard) > 3)
                systemd.check(d.process.pid)
                with open(where + '/new', 'w', encoding='ascii') as f:
                    f.write(os.path.basename(rig.PAGERD)[:15])
                os.rename(where + '/new', where + '/thread')
                d.connect().close()
                wait_for('it is not', lambda: time.monotonic() - systemd.heard[-1][0] > 2)
                self.assertIn('the loop does not answer', d.log())
            finally:
                d.clean()

    def test_who_only_stands_still_with_its_guardian_does_not_hang(self):
        """Both are stopped, as by a suspended machine or a frozen cgroup, and nothing was amiss; nor is it when nothing happens."""
        with Daemon('--memory', '16M', '--hang-timeout', '2s') as d:
            before = d.served_by()
            d.signal(signal.SIGSTOP)
            os.kill(before, signal.SIGSTOP)
            time.sleep(3)  # for longer than that
            d.signal(signal.SIGCONT)
            time.sleep(0.1)  # the guardian has looked
            os.kill(before, signal.SIGCONT)
            time.sleep(3)
            self.assertEqual(d.served_by(), before)
            self.assertNotIn('hangs', d.log())

    def test_a_daemon_that_hangs_is_left_to_its_debugger(self):
        libc = ctypes.CDLL(None, use_errno=True)
        with Daemon('--memory', '16M', '--hang-timeout', '1s') as d:
            pid = d.served_by()
            self.assertEqual(libc.ptrace(PTRACE_SEIZE, pid, None, None), 0, os.strerror(ctypes.get_errno()))
            os.kill(pid, signal.SIGSTOP)
            d.wait_log('is left to who is tracing it')
            self.assertEqual(d.served_by(), pid)
            os.waitpid(pid, 0)
            self.assertEqual(libc.ptrace(PTRACE_DETACH, pid, None, signal.SIGSTOP), 0, os.strerror(ctypes.get_errno()))
            d.wait_log('the daemon hangs: the loop')
            self.wait_served(d, 1)

    def test_how_long_a_daemon_may_hang_can_be_reloaded(self):
        with Daemon('--memory', '16M', config='[daemon]\nhang_timeout = off\n') as d:
            d.configure('[daemon]\nhang_timeout = 1s\n')
            d.signal(signal.SIGHUP)
            d.wait_log('reload: daemon.hang_timeout is 1s now, was off')
            d.ask('status')  # the reload is over
            os.kill(d.served_by(), signal.SIGSTOP)
            self.wait_served(d, 1)
            # And off again, which the next one reads.
            d.configure('[daemon]\nhang_timeout = off\n')
            d.signal(signal.SIGHUP)
            d.wait_log('reload: daemon.hang_timeout is off now, was 1s')
            d.ask('status')
            pid = d.served_by()
            os.kill(pid, signal.SIGSTOP)
            time.sleep(2.5)  # more than it was
            os.kill(pid, signal.SIGCONT)
            self.assertEqual(clients(d), 0)
            self.assertEqual(d.served_by(), pid)

    def test_a_daemon_that_can_not_start_is_tried_again(self):
        """There is an error in its file; who is served by nobody waits, until it has been put right."""
        with Daemon('--memory', MEMORY, '--away-timeout', '60s', config='[daemon]\ncompression = none\n') as d:
            program = start(d, 6144, SECONDS, SEED)
            self.wait_used(d, 1)
            d.configure('[daemon]\ncompresion = none\n')
            os.kill(d.served_by(), signal.SIGKILL)
            d.wait_log('the daemon has not started')
            d.configure('[daemon]\ncompression = none\n')
            self.wait_served(d, 1)
            finish(d, [program])

    def test_an_upgrade_is_not_noticed(self):
        with Daemon('--memory', MEMORY) as d:
            program = start(d, 4096, 3, SEED)
            for times in range(1, 6):
                self.wait_used(d, 1)
                before = d.served_by()
                d.signal(signal.SIGUSR2)
                self.wait_served(d, times)
                self.assertNotEqual(d.served_by(), before)
            finish(d, [program])

    @contextlib.contextmanager
    def own_program(self, *flags, **more):
        """A daemon whose program is a copy of its own; put(suffix) puts another one in its place, with a file of that name beside it."""
        before = rig.PAGERD
        with tempfile.TemporaryDirectory(prefix='upgrade.', dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
            path = where + '/uffd-pagerd'

            def put(suffix=None, source=before):
                for mark in ('.other', '.broken'):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path + mark)
                if suffix:
                    with open(path + suffix, 'w', encoding='ascii'):
                        pass
                shutil.copy(source, path + '.new')
                os.rename(path + '.new', path)

            put()
            rig.PAGERD = path
            try:
                with Daemon('--memory', MEMORY, *flags, **more) as d:
                    yield d, put
            finally:
                rig.PAGERD = before

    def program_of(self, d):
        return os.stat(f'/proc/{d.served_by()}/exe').st_ino

    def test_an_upgrade_to_what_can_not_take_over_is_refused_and_all_are_served(self):
        """Another version, a configuration that it does not understand, what is no such program or none at all, nothing."""
        with self.own_program(config='[daemon]\ncompression = none\n') as (d, put):
            program = start(d, 4096, 6 + SECONDS, SEED)
            self.wait_used(d, 1)
            pid, ino = d.served_by(), self.program_of(d)
            put('.other')
            self.assertIn('not upgraded: it is another version', d.tool('upgrade', status=1))
            put()
            d.configure('[daemon]\ncompresion = none\n')
            self.assertIn('not upgraded: its configuration has errors', d.tool('upgrade', status=1))
            self.assertIn("there is no 'compresion'", d.log())
            d.configure('[daemon]\ncompression = none\n')
            put(source='/bin/true')
            self.assertIn('not upgraded: exit status 0', d.tool('upgrade', status=1))
            put(source=rig.__file__)
            self.assertIn('not upgraded: ', d.tool('upgrade', status=1))
            os.unlink(rig.PAGERD)
            self.assertIn('not upgraded: No such file', d.tool('upgrade', status=1))
            # By the signal as well; it is said in the log.
            put('.other')
            before = d.log().count('is not started, and the daemon goes on')
            self.assertEqual(before, 5)
            d.signal(signal.SIGUSR2)
            wait_for('it is refused', lambda: d.log().count('is not started, and the daemon goes on') == before + 1)
            self.assertEqual((d.served_by(), clients(d)), (pid, 1))
            # And after a crash it is not what nobody has asked for that is started.
            kill_daemon(d, 1)
            self.assertEqual(self.program_of(d), ino)
            self.wait_used(d, 1)
            finish(d, [program])

    def test_an_upgrade_by_command_is_another_program(self):
        with self.own_program() as (d, put):
            program = start(d, 4096, 3 + SECONDS, SEED)
            for times in range(1, 4):
                self.wait_used(d, 1)
                before = self.program_of(d)
                put()
                self.assertRegex(d.tool('upgrade'), r'^uffd-pagerd [0-9.]+ serves$')
                self.wait_served(d, times)
                self.assertNotEqual(self.program_of(d), before)
            finish(d, [program])

    def test_an_upgrade_that_does_not_come_to_serve_is_taken_back(self):
        with self.own_program() as (d, put):
            program = start(d, 4096, 3 + SECONDS, SEED)
            self.wait_used(d, 1)
            before = self.program_of(d)
            put('.broken')
            self.assertIn('not upgraded: it does not come to serve', d.tool('upgrade', status=1))
            self.assertEqual((self.program_of(d), clients(d)), (before, 1))
            # Nothing of that is left.
            put()
            d.tool('upgrade')
            self.assertNotEqual(self.program_of(d), before)
            self.wait_used(d, 1)
            finish(d, [program])

    def test_so_is_one_while_it_takes_leave_of_its_clients(self):
        with self.own_program() as (d, put):
            program = start(d, 4096, 3 + SECONDS, SEED)
            self.wait_used(d, 1)
            before = self.program_of(d)
            d.signal(signal.SIGTERM)
            wait_for('it drains', lambda: d.ask('status')['status']['state'] != 'serving')
            put('.broken')
            self.assertIn('not upgraded: it does not come to serve', d.tool('upgrade', status=1))
            self.assertEqual(self.program_of(d), before)
            finish(d, [program])
            self.assertEqual(d.wait(), 0)

    def test_an_upgrade_may_change_how_pages_are_compressed(self):
        rnd = random.Random(SEED)
        # So many threads that there are not enough free frames for what zstd needs more in each.
        with Daemon('--memory', MEMORY, '--service-threads', '8', '--log-level', 'info', config='[daemon]\ncompression = lz4\n') as d:
            programs = [start(d, 6144, SECONDS, SEED + i) for i in range(3)]
            end = time.monotonic() + SECONDS - 1
            was = 'lz4'
            history = []
            self.fill_pool(d, was)
            while time.monotonic() < end:
                now = rnd.choice(('none', 'lz4', 'zstd'))
                d.configure(f'[daemon]\ncompression = {now}\n')
                kill_daemon(d, len(history) + 1)
                budget = d.ask('status')['status']['budget']
                self.assertEqual(budget['limit'], mib(MEMORY))
                self.assertLessEqual(budget['used'], budget['limit'])
                history.append((was, compressed(d.log())[-1]))
                was = now
                time.sleep(0.2 + rnd.random() / 2)
            finish(d, programs)
            wait_for('all are gone', lambda: clients(d) == 0)
            print(history)
            for was, n in history:
                self.assertTrue(was == 'none' or n > 100, d.log())

    def test_sixty_clients_are_back_within_two_seconds(self):
        with Daemon('--memory', MEMORY) as d:
            programs = [start(d, 64, 4, SEED + i, threads=1) for i in range(60)]
            # One that has not said hello yet has nothing, and comes again.
            wait_for('all are there', lambda: sum(c['mapped'] > 0 for c in d.ask('clients')['clients']) == 60)
            t0 = time.monotonic()
            kill_daemon(d, 1)
            took = time.monotonic() - t0
            self.assertEqual(clients(d), 60)
            if not rig.SANITIZED:
                self.assertLess(took, 2)
            print(f'{took * 1000:.0f} ms')
            finish(d, programs)

    def test_a_guardian_that_is_behind_keeps_everything(self):
        with Daemon('--memory', MEMORY) as d:
            daemon = d.served_by()
            # More than its queue has room for: the daemon waits for it.
            d.signal(signal.SIGSTOP)
            programs = [start(d, 64, 4, SEED + i, threads=1) for i in range(60)]
            wait_for('its queue is full', lambda: waits_for_one(daemon))
            d.signal(signal.SIGCONT)
            wait_for('all are there', lambda: sum(c['mapped'] > 0 for c in d.ask('clients')['clients']) == 60)
            kill_daemon(d, 1)
            self.assertEqual(clients(d), 60)
            self.assertNotIn('the guardian does not take', d.log())
            finish(d, programs)

    def test_a_page_is_not_taken_for_one_that_had_its_address_before(self):
        with Daemon('--memory', '16M') as d:
            p, late = self.start_cloned(d)
            kill_daemon(d, 1)
            out, _ = p.communicate('\n')
            late.cancel()
            self.assertEqual(p.returncode, 0, out + d.log())

    def test_what_a_daemon_has_left_is_not_believed(self):
        """An entry of a map is followed by none that there is: its client is told, and nobody else is."""
        with Daemon('--memory', '16M') as d:
            p, late = self.start_cloned(d)
            other = start(d, 512, 3, SEED)
            wait_for('both are there', lambda: clients(d) == 2)
            os.kill(d.served_by(), signal.SIGSTOP)
            spoil_entries(d.served_by(), CLONED << 12)
            kill_daemon(d, 1)
            self.assertIn(f'process {p.pid} can not be re-attached: EINVAL', d.log())
            finish(d, [other])
            out, _ = p.communicate('\n')
            late.cancel()
            self.assertIn(p.returncode, (2, -signal.SIGBUS), out)

    def test_pages_that_can_not_be_cost_who_sees_them(self):
        """Of a client, of its clone, and of an object with a name; nobody else is told anything."""
        with Daemon('--memory', '16M') as d:
            def once(*words):
                return subprocess.run([SURVIVOR, d.path('pager.sock'), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      timeout=rig.DEADLINE, text=True, check=False)

            self.assertEqual(once('write', 'sound', '301', str(SEED)).returncode, 0)
            self.assertEqual(once('write', 'unsound', str(CLONED), str(SEED)).returncode, 0)
            p, late = self.start_cloned(d)
            other = start(d, 512, 3, SEED)
            wait_for('both are there', lambda: clients(d) == 2)
            os.kill(d.served_by(), signal.SIGSTOP)
            spoil_pages(d.served_by(), CLONED)
            kill_daemon(d, 1)
            self.assertIn(f'process {p.pid} can not be re-attached: EINVAL', d.log())
            self.assertIn('the object "unsound" is no more', d.log())
            finish(d, [other])
            out, _ = p.communicate('\n')
            late.cancel()
            self.assertIn(p.returncode, (2, -signal.SIGBUS), out)
            self.assertEqual(once('compare', 'sound', '301', str(SEED)).returncode, 0)
            self.assertIn('ENOENT', once('compare', 'unsound', str(CLONED), str(SEED)).stdout)
            wait_for('all are gone', lambda: clients(d) == 0)
            kill_daemon(d, 2)
            self.assertEqual(once('remove', 'sound', '301', str(SEED)).returncode, 0)
            kill_daemon(d, 3)
            self.assertIn('pages in place 0, staged 0, compressed 0, in swap 0',
                          [line for line in d.log().splitlines() if 're-attached' in line][-1])

    def test_a_file_that_is_shorter_by_then_costs_what_is_cut_off(self):
        with Daemon('--memory', '16M') as d, tempfile.NamedTemporaryFile(dir=d.dir) as f:
            f.truncate(256 << 12)
            p, late = self.start_waiting(d, 'cut', f.name, '256')
            f.truncate(128 << 12)
            kill_daemon(d, 1)
            out, _ = p.communicate('\n')
            late.cancel()
            self.assertEqual((p.returncode, out), (0, 'gone 128\n'), d.log())

    @unittest.skipUnless(rig.can_throttle(), 'no blkio cgroup (v1) to slow a disk down with')
    def test_what_a_daemon_was_writing_to_a_file_does_not_overtake_the_next_one(self):
        # The kernel goes on with it when the process is gone: here for some two seconds, while the next daemon's disk is not slow.
        # Its own files are not on that disk, where ext4 would have the next daemon wait for its lock's file.
        with (Daemon('--memory', '32M', keep=tempfile.mkdtemp(prefix='uffd-pagerd.', dir='/dev/shm')) as d,
              tempfile.NamedTemporaryFile(prefix='uffd-pagerd.', dir=rig.WORK) as f):
            f.write(bytes(1024 << 12))
            f.flush()
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            p, late = self.start_waiting(d, 'late', f.name, '1024')
            with rig.slow_disk(d.served_by(), f.name, 1 << 20) as written:
                p.stdin.write('\n')
                p.stdin.flush()
                self.assertEqual(p.stdout.readline(), 'writing\n')
                wait_for('the rest is under way', lambda: written() > 0)
                kill_daemon(d, 1)
                p.stdin.write('\n')
                p.stdin.flush()
                self.assertEqual(p.stdout.readline(), 'written\n', d.log())
            # This waits for whatever goes past the page cache to that file.
            os.posix_fallocate(f.fileno(), 1024 << 12, 1 << 12)
            out, _ = p.communicate('\n')
            late.cancel()
            self.assertEqual((p.returncode, out), (0, ''), d.log())

    def test_what_has_a_name_is_still_there(self):
        with Daemon('--memory', MEMORY) as d:
            def run(*words):
                r = subprocess.run([SURVIVOR, d.path('pager.sock'), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   timeout=rig.DEADLINE, text=True, check=False)
                self.assertEqual(r.returncode, 0, r.stdout + d.log())
            run('write', 'a name', '5000', str(SEED))
            kill_daemon(d, 1)
            run('compare', 'a name', '5000', str(SEED))
            run('remove', 'a name', '5000', str(SEED))
            kill_daemon(d, 2)
            self.assertIn('in swap 0', [line for line in d.log().splitlines() if 're-attached' in line][-1])

    def test_without_a_guardian_nobody_waits_for_ever(self):
        d = Daemon('--memory', MEMORY)
        try:
            program = start(d, 6144, 20, SEED)
            self.wait_used(d, 1)
            d.signal(signal.SIGKILL)
            self.told(program)
        finally:
            d.clean()

    def test_a_daemon_that_does_not_come_back_is_not_waited_for_for_ever(self):
        d = Daemon('--memory', MEMORY, '--away-timeout', '500ms', config='')
        try:
            program = start(d, 6144, 20, SEED)
            wait_for('it is there', lambda: clients(d) == 1)
            d.configure('[daemon]\nno_such_key = 1\n')
            os.kill(d.served_by(), signal.SIGKILL)
            self.assertEqual(d.wait(), 1)
            self.assertIn('nobody has served', d.log())
            self.told(program)
        finally:
            d.clean()

    def told(self, program):
        """A call that says so, or SIGBUS; other bytes (1) never."""
        out, _ = program.communicate(timeout=rig.DEADLINE)
        self.assertIn(program.returncode, (2, -signal.SIGBUS), out)

    def start_cloned(self, d):
        """A client with a region and its copy, which waits for a line; and who kills it if that does not come."""
        return self.start_waiting(d, 'cloned', str(CLONED))

    def start_waiting(self, d, *words):
        p = run_program([SURVIVOR, d.path('pager.sock'), *words])
        late = threading.Timer(rig.DEADLINE, p.kill)
        late.start()
        self.assertEqual(p.stdout.readline(), 'ready\n')
        return p, late

    @staticmethod
    def wait_used(d, n):
        """So many are there, and this daemon has served faults of each."""
        wait_for('clients at work', lambda: sum(sum(c['faults'].values()) > 0 for c in d.ask('clients')['clients']) == n)

    @staticmethod
    def wait_served(d, times):
        wait_for('the next daemon', lambda: d.log().count('serving: a budget') == times + 1)


if __name__ == '__main__':
    rig.main()

# SPDX-License-Identifier: BSD-2-Clause
"""rig.py: a daemon of a test's own, in directories of its own, that leaves nothing behind.

Every wait has a deadline.  A program that uses it is run as  TEST.py UFFD-PAGERD UFFD-PAGER  with the build that has the protocol
"test" (tests/daemon/puppet.c); it is skipped (77) where no userfaultfd or io_uring is allowed.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

PAGERD, PAGER = map(os.path.abspath, sys.argv[1:3])
DEADLINE = 60.0
WORK = os.environ.get('TMPDIR', '/var/tmp')
BLKIO = '/sys/fs/cgroup/blkio'
# Its memory is its sanitizer's, and says nothing.
with open(PAGERD, 'rb') as f:
    SANITIZED = b'__asan_init' in f.read()
SKIPPED = 77
NOT_ALLOWED = re.compile(r'can not be started: (Operation not permitted|Function not implemented)')


def wait_for(what, check, deadline=DEADLINE):
    """What check() returns once it is something; fails after the deadline."""
    end = time.monotonic() + deadline
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f'{what}: not within {deadline} s')
        time.sleep(0.01)


def set_bps(group, path, bps):
    device = os.stat(path).st_dev
    with open(os.path.join(group, 'blkio.throttle.write_bps_device'), 'w', encoding='ascii') as f:
        f.write(f'{os.major(device)}:{os.minor(device)} {bps}')


@contextlib.contextmanager
def slow_disk(pid, path, bps):
    """
    What the process has written to the disk of that path, so many bytes a second; at the end what is still under way is no longer held up.
    As: how many bytes have got through, of which the first wait as well.
    """
    def written():
        with open(os.path.join(group, 'blkio.throttle.io_service_bytes'), encoding='ascii') as f:
            return sum(int(line.split()[2]) for line in f if line.split()[1] == 'Write')

    group = tempfile.mkdtemp(prefix='uffd-pager.', dir=BLKIO)
    try:
        set_bps(group, path, bps)
        if pid is not None:
            with open(os.path.join(group, 'cgroup.procs'), 'w', encoding='ascii') as f:
                f.write(str(pid))
        yield written
    finally:
        with contextlib.suppress(OSError):
            set_bps(group, path, 0)
        # Who is not gone yet would keep it there.
        with open(os.path.join(group, 'cgroup.procs'), encoding='ascii') as f:
            left = f.read().split()
        for one in left:
            with contextlib.suppress(OSError), open(os.path.join(BLKIO, 'cgroup.procs'), 'w', encoding='ascii') as f:
                f.write(one)
        with contextlib.suppress(OSError):
            os.rmdir(group)


def can_throttle():
    try:
        with slow_disk(None, WORK, 1 << 20):
            return True
    except OSError:
        return False


def end(process):
    if process.poll() is None:
        process.kill()
        process.wait(DEADLINE)


class Daemon:
    """uffd-pagerd with these flags, serving; `config` is the text of its file, `under` a command that becomes it."""

    def __init__(self, *flags, config=None, env=None, wait=True, preexec=None, keep=None, pass_fds=(), under=()):
        self.dir = keep or tempfile.mkdtemp(prefix='uffd-pagerd.', dir=WORK)
        self.run = self.dir + '/uffd-pagerd'
        self.state = self.dir + '/state'
        self.file = self.dir + '/conf'
        self.logfile = self.dir + '/log'
        self.puppets = []
        flags = list(flags)
        if config is not None:
            self.configure(config)
            flags = ['--config', self.file] + flags
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(('XDG_', 'LISTEN_', 'NOTIFY_', 'WATCHDOG_'))
                    and k not in ('RUNTIME_DIRECTORY', 'JOURNAL_STREAM')}
        self.env.update({'XDG_RUNTIME_DIR': self.dir, 'STATE_DIRECTORY': self.state, 'LC_ALL': 'C.UTF-8',
                         'UP_TEST_JOURNAL': self.dir + '/journal'})
        self.env.update(env or {})
        try:
            with open(self.logfile, 'wb') as log:
                self.process = subprocess.Popen([*under, PAGERD] + flags, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                                preexec_fn=preexec, pass_fds=pass_fds, cwd=self.dir)
        except BaseException:
            shutil.rmtree(self.dir, ignore_errors=True)
            raise
        if wait:
            try:
                wait_for('serving', lambda: 'serving: a budget' in self.log() or self.process.poll() is not None)
                if self.process.poll() is not None:
                    if NOT_ALLOWED.search(self.log()):
                        print('skipped: no userfaultfd or io_uring here')
                        self.clean()
                        os._exit(SKIPPED)
                    raise AssertionError('it did not start:\n' + self.log())
            except BaseException:
                self.clean()
                raise

    def configure(self, text):
        with open(self.file, 'w', encoding='utf-8') as f:
            f.write(text)

    def log(self):
        with open(self.logfile, encoding='utf-8', errors='replace') as f:
            return f.read()

    def wait_log(self, text, deadline=DEADLINE):
        try:
            wait_for(f'"{text}" in the log', lambda: text in self.log(), deadline)
        except AssertionError as e:
            raise AssertionError(f'{e}\n{self.log()}') from None

    def path(self, name):
        return f'{self.run}/{name}'

    def served_by(self):
        """The daemon itself: the guardian's only child."""
        with open(f'/proc/{self.process.pid}/task/{self.process.pid}/children', encoding='ascii') as f:
            return int(f.read().split()[0])

    def signal(self, sig):
        self.process.send_signal(sig)

    def wait(self, deadline=DEADLINE):
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'still there after {deadline} s:\n{self.log()}') from None

    def stop(self):
        """Ends as it should, and has left nothing behind."""
        for p in self.puppets:
            p.close()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        status = self.wait()
        log = self.log()
        left = [d + '/' + f for d in (self.run, self.state) for f in (os.listdir(d) if os.path.isdir(d) else [])]
        self.clean()
        assert status == 0, f'exit status {status}:\n{log}'
        assert 'Sanitizer' not in log and 'runtime error' not in log, log
        assert not left, f'left behind: {left}'

    def clean(self):
        for p in self.puppets:
            p.close()
        end(self.process)
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if kind is None:
            self.stop()
        else:
            print(self.log(), file=sys.stderr)
            self.clean()

    # ---- who talks to it ----

    def connect(self, name='control.sock', kind=socket.SOCK_STREAM):
        s = socket.socket(socket.AF_UNIX, kind)
        s.settimeout(DEADLINE)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                s.connect(self.path(name))
                return s
            except BlockingIOError:     # its queue is full
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def ask(self, verb, **more):
        with self.connect() as s:
            s.sendall(json.dumps({'verb': verb, **more}).encode() + b'\n')
            return json.loads(read_line(s))

    def puppet(self, name, **counts):
        """A client without memory; needs PUPPETS in the configuration."""
        s = self.connect('puppets.sock')
        self.puppets.append(s)
        obey(s, name=name, **counts)
        return s

    def tool(self, *words, status=0, text=None, env=None):
        """What uffd-pager prints, both streams."""
        r = subprocess.run([PAGER, '--socket', self.path('control.sock'), *words], env={**self.env, **(env or {})},
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE, text=True, encoding='utf-8',
                           input=text, check=False)
        assert r.returncode == status, f'{words}: exit status {r.returncode}, not {status}:\n{r.stdout}'
        return r.stdout


PUPPETS = '[listen puppets]\ntype = test\npath = puppets.sock\n'


def obey(s, **what):
    for key, value in what.items():
        s.sendall(f'{key} {value}\n'.encode())
        answer = read_line(s)
        assert answer == b'ok\n', answer


def read_line(s):
    """One line, and nothing of the next; what there is of it if the other side hangs up."""
    line = b''
    while not line.endswith(b'\n'):
        part = s.recv(65536, socket.MSG_PEEK)
        if not part:
            return line
        line += s.recv(part.find(b'\n') + 1 or len(part))
    return line


def fields(datagram):
    """A line as journald reads it."""
    found = {}
    while datagram:
        name, datagram = datagram.split(b'\n', 1)
        if b'=' in name:
            name, value = name.split(b'=', 1)
        else:
            n, = struct.unpack_from('<Q', datagram)
            value, datagram = datagram[8:8 + n], datagram[8 + n:]
            assert datagram[:1] == b'\n', datagram
            datagram = datagram[1:]
        found[name.decode()] = value.decode()
    return found


def run_pagerd(*flags, env=None):
    """(exit status, standard output, standard error) of a run that ends by itself."""
    r = subprocess.run([PAGERD, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                       timeout=DEADLINE, text=True, errors='replace', env={**os.environ, **(env or {})}, check=False)
    return r.returncode, r.stdout, r.stderr


def main():
    runner = unittest.TextTestRunner(verbosity=2)
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules['__main__'])
    sys.exit(0 if runner.run(suite).wasSuccessful() else 1)

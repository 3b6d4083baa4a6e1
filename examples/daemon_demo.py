#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""daemon_demo.py BUILD: one daemon, three clients, one of which is killed, and then the daemon.  `./dev demo daemon` builds, and runs this.

A uffd-pagerd of its own, in a directory of its own, with a budget of 64 MiB, pages for

    native     bigger_than_memory --daemon: 256 MiB, every byte verified
    microVM    a client as Firecracker is one: 32 MiB restored from a snapshot
    victim     as native, 96 MiB; in the middle of its work it gets SIGKILL

What the victim had has to be given back within a second, and the other two must not notice.  Then it is the daemon that gets SIGKILL, twice, while
native works, which must not notice either.  In the end SIGTERM: nothing may be left behind.
Every wait has a deadline.  Exit status: 0 all of that is so, 1 it is not, 2 bad usage, 77 this machine does not allow userfaultfd or io_uring.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
BUDGET, NATIVE, VICTIM, MICROVM = 64, 256, 96, 32       # MiB
DEADLINE = 60           # seconds, for what takes less than one
WORK = 200              # for what works under load
GIVEN_BACK = 1.0
SLACK = 4 * MIB
NOT_ALLOWED = re.compile(r'can not be started: (Operation not permitted|Function not implemented)')


class Wrong(Exception):
    pass


class Skipped(Exception):
    pass


def say(text):
    print(f'\n== {text}', flush=True)


def wait_for(what, check, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise Wrong(f'{what}: not within {deadline} s')
        time.sleep(0.005)


def text_of(name):
    with open(name, encoding='utf-8', errors='replace') as f:
        return f.read()


def show(text):
    print(''.join(f'    {line}\n' for line in text.rstrip('\n').split('\n')), end='', flush=True)


class Demo:
    def __init__(self, build):
        self.pagerd, self.pager, self.bigger, self.microvm = (
            os.path.join(os.path.abspath(build), *p) for p in (('daemon', 'uffd-pagerd'), ('tools', 'uffd-pager'),
                                                               ('examples', 'bigger_than_memory'), ('examples', 'microvm')))
        self.dir = tempfile.mkdtemp(prefix='uffd-demo.', dir=os.environ.get('TMPDIR', '/var/tmp'))
        self.run, self.state, self.snapshot = (f'{self.dir}/{name}' for name in ('run', 'state', 'snapshot'))
        self.started = {}

    def start(self, name, *words, **more):
        with open(f'{self.dir}/{name}.log', 'wb') as log:
            self.started[name] = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.dir, **({'stdin': subprocess.DEVNULL} | more))
        print(f'   {name}: process {self.started[name].pid}: {" ".join(map(os.path.basename, words[:1]))} {" ".join(words[1:])}', flush=True)
        return self.started[name]

    def log(self, name):
        return text_of(f'{self.dir}/{name}.log')

    def alive(self, name):
        if self.started[name].poll() is not None:
            raise Wrong(f'{name} has ended, with {self.started[name].returncode}:\n{self.log(name)}')
        return True

    def ended(self, name, deadline, status=0):
        try:
            got = self.started[name].wait(deadline)
        except subprocess.TimeoutExpired:
            raise Wrong(f'{name} is still there after {deadline} s:\n{self.log(name)}') from None
        if got != status:
            raise Wrong(f'{name} has ended with {got}, not {status}:\n{self.log(name)}')

    def ask(self, *words):
        r = subprocess.run([self.pager, '--socket', f'{self.run}/control.sock', *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           timeout=DEADLINE, check=False)
        text = r.stdout.decode(errors='replace')
        if r.returncode != 0:
            raise Wrong(f'uffd-pager {" ".join(words)}: {text}')
        return text

    def clients(self):
        return {c['pid']: c for c in json.loads(self.ask('--json', 'clients'))['clients']}

    def promised(self):
        """Swap that is set aside for what clients have mapped, bytes."""
        return json.loads(self.ask('--json', 'status'))['status']['swap']['reserve_used']

    def in_memory(self):
        """(of native clients, by the daemon's count; what those that are there have), bytes, at one moment."""
        top = json.loads(self.ask('--json', 'top'))
        return top['status']['budget']['resident'], sum(c['resident'] for c in top['clients'] if c['kind'] == 'native')

    def all_is_accounted_for(self):
        resident, theirs = self.in_memory()
        return resident <= theirs + SLACK       # pages come and go while they are counted

    def serving(self):
        if self.started['daemon'].poll() is not None:
            if NOT_ALLOWED.search(self.log('daemon')):
                raise Skipped
            self.alive('daemon')
        return 'serving: a budget' in self.log('daemon')

    def works(self, name, mib):
        """It has that much mapped, and is beyond its first phase."""
        self.alive(name)
        mapped = self.clients().get(self.started[name].pid, {}).get('mapped', 0)
        return mapped == mib * MIB and re.search(r'^fill ', self.log(name), re.MULTILINE)

    def play(self):
        say(f'A snapshot of a microVM, {MICROVM} MiB, and a daemon with a budget of {BUDGET} MiB.')
        subprocess.run([self.microvm, '--make', self.snapshot, str(MICROVM)], check=True, timeout=DEADLINE)
        with open(f'{self.dir}/conf', 'w', encoding='ascii') as f:
            f.write(f'[daemon]\nmemory = {BUDGET}M\nrun_dir = {self.run}\nstate_dir = {self.state}\n'
                    f'[listen vms]\ntype = firecracker\npath = vms.sock\nsource = {self.snapshot}\n')
        show(text_of(f'{self.dir}/conf'))
        self.start('daemon', self.pagerd, '--config', f'{self.dir}/conf')
        wait_for('the daemon serves', self.serving)

        say('Three clients.')
        sock = f'{self.run}/pager.sock'
        self.start('native', self.bigger, '--daemon', sock, '--size', f'{NATIVE}M', '--seed', '1', '--rounds', '2')
        self.start('victim', self.bigger, '--daemon', sock, '--size', f'{VICTIM}M', '--seed', '2', '--rounds', '1000')
        self.start('microVM', self.microvm, '--hold', f'{self.run}/vms.sock', self.snapshot, stdin=subprocess.PIPE)
        wait_for('native works', lambda: self.works('native', NATIVE), WORK)
        wait_for('victim works', lambda: self.works('victim', VICTIM), WORK)
        wait_for('the microVM is filled', lambda: self.alive('microVM') and 'pages filled' in self.log('microVM'), WORK)
        show(self.log('microVM'))

        say('What the daemon says of them.')
        victim = self.started['victim']
        for words in (['status'], ['clients'], ['map', str(victim.pid)]):
            print(f'$ uffd-pager {" ".join(words)}')
            show(self.ask(*words))

        say('SIGKILL for the victim, in the middle of its work.')
        self.alive('victim')
        self.alive('native')
        before, had = self.promised(), self.clients()[victim.pid]
        killed = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        wait_for('the killed client is forgotten', lambda: victim.pid not in self.clients())
        wait_for('its swap is free', lambda: self.promised() <= before - VICTIM * MIB)
        wait_for('its memory is nobody\'s', self.all_is_accounted_for)
        took = time.monotonic() - killed
        self.ended('victim', DEADLINE, -signal.SIGKILL)
        print(f'   It had {had["resident"] / MIB:.1f} MiB in memory, of {had["mapped"] / MIB:.0f} mapped.  After {took * 1000:.0f} ms the daemon has '
              f'forgotten it,\n   and of {before / MIB:.0f} MiB of swap that were promised to clients {self.promised() / MIB:.0f} are left.')
        if took > GIVEN_BACK:
            raise Wrong(f'it took {took:.2f} s until the memory was given back')
        resident, theirs = self.in_memory()
        print(f'   In memory are {resident / MIB:.1f} MiB; native, who is left, has {theirs / MIB:.1f} of them.')

        say('SIGKILL for the daemon, twice, while native works.')
        for times in (1, 2):
            self.kill_daemon(times)
            self.alive('native')
            self.alive('microVM')
        wait_for('native is served', lambda: self.clients().get(self.started['native'].pid))
        print('$ uffd-pager status')
        show(self.ask('status'))

        say('The others go on, and verify every byte.')
        self.alive('microVM')
        self.ended('native', WORK)
        show(self.log('native'))
        if not self.log('native').endswith('\nPASS\n'):
            raise Wrong('native did not pass')
        self.started['microVM'].stdin.close()
        self.ended('microVM', WORK)
        show(self.log('microVM'))
        if not self.log('microVM').endswith('\nPASS\n'):
            raise Wrong('the microVM did not pass')
        used = json.loads(self.ask('--json', 'status'))['status']['budget']['used_max']
        print(f'   The daemon has never used more than {used / MIB:.1f} MiB, of {BUDGET}.')
        if used > BUDGET * MIB:
            raise Wrong('the budget was not held')

        say('SIGTERM for the daemon.')
        self.started['daemon'].send_signal(signal.SIGTERM)
        self.ended('daemon', DEADLINE)
        self.nothing_left()

    def kill_daemon(self, times):
        """The guardian, which was started, has one child."""
        guardian = self.started['daemon'].pid
        with open(f'/proc/{guardian}/task/{guardian}/children', encoding='ascii') as f:
            pid = int(f.read().split()[0])
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        line = wait_for('the next daemon', lambda: self.alive('daemon') and re.findall(r're-attached.*', self.log('daemon'))[times - 1:])[0]
        wait_for('it serves', lambda: self.log('daemon').count('serving: a budget') > times)
        print(f'   Process {pid} was killed; {(time.monotonic() - killed) * 1000:.0f} ms later the next one serves.  It says: {line}')
        if not line.endswith('lost 0'):
            raise Wrong('pages were lost')

    def nothing_left(self):
        left = [f'{d}/{name}' for d in (self.run, self.state) if os.path.isdir(d) for name in os.listdir(d)]
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open(f'/proc/{pid}/cmdline', 'rb') as f:
                    if self.dir.encode() in f.read():
                        left.append(f'process {pid}')
            except OSError:
                continue
        if left:
            raise Wrong(f'left behind: {", ".join(left)}')
        print('   It has ended with status 0: no socket, no process, no swap is left.')

    def clean(self):
        for p in self.started.values():
            if p.poll() is None:
                p.kill()
                p.wait(DEADLINE)
        shutil.rmtree(self.dir, ignore_errors=True)


def main():
    if len(sys.argv) != 2:
        print('usage: daemon_demo.py BUILD', file=sys.stderr)
        return 2
    demo = Demo(sys.argv[1])
    status = 1
    # Who stops us by a signal gets his prompt back, and no process stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        demo.play()
        status = 0
    except Skipped:
        print('skipped: no userfaultfd or io_uring here')
        return 77
    except (Wrong, OSError, subprocess.SubprocessError, KeyError, ValueError) as e:
        print(f'\ndaemon_demo: {e}', file=sys.stderr)
        if os.path.exists(f'{demo.dir}/daemon.log'):
            print(f'\nThe daemon said:\n{demo.log("daemon")}', file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    finally:
        demo.clean()
    if status == 0:
        print('\nPASS: two clients with every byte right in 64 MiB, one killed and its memory given back, the daemon killed twice, nothing left behind')
    else:
        print('\nFAIL')
    return status


if __name__ == '__main__':
    sys.exit(main())

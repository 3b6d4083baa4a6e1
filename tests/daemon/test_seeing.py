#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""test_seeing.py: what operators are told of programs that are connected, and of microVMs: that it is so, and whose it is."""
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import rig
from rig import Daemon

TOLD, MONITOR = map(os.path.abspath, sys.argv[3:5])
MIB = 1 << 20
PAGE = 4096


class Client:
    """A connected program (told.c)."""

    def __init__(self, d):
        self.process = subprocess.Popen([TOLD, d.path('pager.sock')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        said = self.process.stdout.readline()
        assert said == 'connected\n', said

    def tell(self, *words):
        self.process.stdin.write(' '.join(map(str, words)) + '\n')
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def at(self, *words):
        said = self.tell(*words)
        assert said.startswith('at '), said
        return int(said[3:], 16)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.process.kill()
        self.process.wait(rig.DEADLINE)
        self.process.stdin.close()
        self.process.stdout.close()


def get(d, path):
    with d.connect('http.sock') as s:
        s.sendall(f'GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'.encode())
        data = b''
        while part := s.recv(65536):
            data += part
    head, _, body = data.partition(b'\r\n\r\n')
    assert head.split()[1] == b'200', head
    return body.decode()


def metric(d, name, **labels):
    """The values of that metric, of all sets of labels that have these."""
    found = []
    for line in get(d, '/metrics').splitlines():
        if line.startswith(('uffd_pager_' + name + '{', 'uffd_pager_' + name + ' ')) and \
                all(f'{k}="{v}"' in line for k, v in labels.items()):
            found.append(float(line.rsplit(' ', 1)[1]))
    return found


def client_of(d, pid):
    (c,) = [c for c in d.ask('clients')['clients'] if c['pid'] == pid]
    return c


class Lost(unittest.TestCase):
    def test_sigbus_is_counted_and_logged_of_the_client_that_got_it(self):
        with Daemon('--memory', '32M') as d, Client(d) as other, Client(d) as c:
            name = d.dir + '/file'
            with open(name, 'wb') as f:
                f.truncate(16 * PAGE)
            at = c.at('shared', name)
            self.assertEqual(c.tell('read', at), 'ok')
            os.truncate(name, PAGE)
            for page in (9, 12):
                self.assertEqual(c.tell('read', at + page * PAGE), 'SIGBUS')
                d.wait_log(f'page at {at + page * PAGE:#x} of client told, process {c.pid}: past the end of the file; SIGBUS')
            # It is told before it is counted.
            rig.wait_for('two', lambda: client_of(d, c.pid)['lost'] == 2)
            self.assertEqual(client_of(d, other.pid)['lost'], 0)
            self.assertEqual(metric(d, 'client_lost_pages', pid=c.pid), [2])
            self.assertEqual(metric(d, 'client_lost_pages', pid=other.pid), [0])
            self.assertEqual(metric(d, 'fault_sigbus_total'), [2])
            status = d.ask('status')['status']
            self.assertEqual(status['fault_counts']['sigbus'], 2)
            self.assertIn('told', d.tool('top', '--once'))
            self.assertIn('2 LOST', d.tool('clients'))
            c.__exit__()
            rig.wait_for('gone', lambda: d.ask('status')['status']['clients'] == 1)
            self.assertEqual(d.ask('status')['status']['fault_counts']['sigbus'], 2)


class Guests(unittest.TestCase):
    def test_what_the_runtime_serves_is_counted_once(self):
        with tempfile.TemporaryDirectory(prefix='guests.', dir=os.environ.get('TMPDIR', '/var/tmp')) as where:
            subprocess.run([MONITOR, 'make', where + '/memfile', '4096', '1'], check=True, timeout=rig.DEADLINE)
            config = (f'[listen fc]\ntype = firecracker\npath = fc.sock\nsource = {where}/memfile\n'
                      '[listen ch]\ntype = handoff\npath = ch.sock\n')
            with Daemon('--memory', '16M', config=config) as d:
                machines = [subprocess.Popen([MONITOR, kind, d.path(sock), '4096', '600', '1'], stdout=subprocess.DEVNULL)
                            for kind, sock in (('firecracker', 'fc.sock'), ('handoff', 'ch.sock'))]
                try:
                    self.look(d, machines)
                finally:
                    for m in machines:
                        m.kill()
                        m.wait(rig.DEADLINE)

    def look(self, d, machines):
        def faults(of):
            return sum(of['faults'].values())

        def busy():
            for m in machines:
                if m.poll() == rig.SKIPPED:
                    self.skipTest('no userfaultfd here')
            found = d.ask('clients')['clients']
            return len(found) == 2 and all(faults(c) > 1000 and c['recent'] for c in found)
        rig.wait_for('two busy machines', busy)
        # Each only grows, and is read after what stands before it.
        answer, after = d.ask('top'), d.ask('status')['status']
        one, clients = answer['status'], answer['clients']
        # Of a few that are being answered the runtime has counted some, and nobody the client's.
        self.assertLessEqual(faults(one), sum(map(faults, clients)) + 32)
        self.assertLessEqual(sum(map(faults, clients)), faults(after))
        counts = one['fault_counts'], after['fault_counts']
        for word in 'again', 'exists', 'deferred':
            # The runtime meets some of these without a fault of anybody.
            self.assertLessEqual(sum(c[word] for c in clients), counts[1][word], word)
        for c in clients:
            self.assertGreater(c['p99_ns'], 0, c['kind'])
            self.assertGreater(sum(metric(d, 'client_fault_seconds_count', kind=c['kind'])), 1000)
            self.assertGreater(c['recent']['all']['count'], 0)


class Log(unittest.TestCase):
    def test_lines_that_repeat_are_counted(self):
        with Daemon('--memory', '32M') as d, Client(d) as c:
            name = d.dir + '/file'
            with open(name, 'wb') as f:
                f.truncate(1000 * PAGE)
            at = c.at('shared', name)
            os.truncate(name, PAGE)
            start = time.monotonic()
            for page in range(100, 1000):
                self.assertEqual(c.tell('read', at + page * PAGE), 'SIGBUS')
            seconds = time.monotonic() - start

            def told():
                said = len(re.findall(r'error: pager: page at 0x[0-9a-f]+ of client told', d.log()))
                more = sum(map(int, re.findall(r'error: (\d+) more like "pager: page at 0x[0-9a-f]+ of client told', d.log())))
                self.assertLessEqual(said, 20 * (seconds + 2))
                return said + more == 900 and said >= 20
            rig.wait_for('all are accounted for', told)
            self.assertEqual(client_of(d, c.pid)['lost'], 900)

    def test_nobody_waits_for_who_does_not_read_it(self):
        reads, writes = os.pipe()
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, PAGE)
        os.set_blocking(reads, False)
        with Daemon('--memory', '32M', config=rig.PUPPETS, wait=False, pass_fds=(writes,), preexec=lambda: os.dup2(writes, 2)) as d:
            os.close(writes)
            rig.wait_for('its socket', lambda: os.path.exists(d.path('control.sock')))
            # More than fits.
            for i in range(60):
                d.puppet('a client with quite a long name ' + chr(65 + i % 26))
            with Client(d) as c:
                self.assertEqual(c.tell('write', c.at('map', PAGE)), 'ok')
            self.assertEqual(d.ask('status')['status']['state'], 'serving')
            text = b''

            def read():
                nonlocal text
                try:
                    text += os.read(reads, 65536)
                except BlockingIOError:
                    pass
                come = len(re.findall(rb'info: client \d+: a client with[^\n]*: come ', text))
                missing = sum(map(int, re.findall(rb'warning: (\d+) lines are missing here', text)))
                self.assertLess(come, 60)
                return come + missing >= 60 and missing
            # The count is shorter than a line, and may fit where that does not: there may be more than one.
            rig.wait_for('what is missing', read)
            for p in d.puppets:
                p.close()
            d.signal(signal.SIGTERM)
            rig.wait_for('its end', lambda: (read(), d.process.poll())[1] is not None)
        os.close(reads)


class Map(unittest.TestCase):
    def in_time(self, what, ask):
        start = time.monotonic()
        answer = ask()
        took = time.monotonic() - start
        self.assertLess(took, 5 if rig.SANITIZED else 1, what)
        return answer

    def test_terabytes_with_a_few_pages_are_drawn_at_once(self):
        with Daemon('--memory', '32M', '--limits-mapped', '32T') as d, Client(d) as c:
            length = 16 << 40
            at = c.at('noreserve', length)
            for cell in 0, 20, 63:
                self.assertEqual(c.tell('write', at + cell * length // 64 + 5 * PAGE), 'ok')
            # Its neighbours may be on their way yet.
            rig.wait_for('all is at rest', lambda: d.ask('map', client=str(c.pid))['client']['map'][0]['staged'] == 0)
            state = json.loads(self.in_time('state.json', lambda: get(d, '/state.json')))
            (asked,) = self.in_time('map', lambda: d.ask('map', client=str(c.pid)))['client']['map']
            (r,) = state['clients'][0]['map']
            self.assertEqual(asked, r)
            self.assertEqual(r['strip'], ''.join('1' if i in (0, 20, 63) else '0' for i in range(64)))
            self.assertEqual(r['rest'], '.' * 64)
            # With those that came along.
            self.assertIn(r['resident'] // PAGE, range(3, 64))
            self.assertEqual((r['length'], r['resident'], r['swapped']), (length, state['clients'][0]['resident'], 0))
            out = self.in_time('uffd-pager map', lambda: d.tool('map', str(c.pid)))
            self.assertRegex(out, r'16T +░·{19}░·{42}░ +\d+K in memory\n +rw private, object \d+ \(anonymous\)\n')

    def test_what_is_not_drawn_is_told(self):
        with Daemon('--memory', '32M') as d, Client(d) as c:
            for _ in range(300):
                c.at('map', PAGE)
            client = d.ask('map', client=str(c.pid))['client']
            self.assertEqual(client['regions'], 300)
            self.assertEqual((len(client['map']), client['more']), (256, 44))
            self.assertIn('  and 44 ranges more\n', d.tool('map', str(c.pid)))
            self.assertEqual(json.loads(get(d, '/state.json'))['clients'][0]['more'], 44)

    def test_many_viewers_cost_as_much_as_one(self):
        with Daemon(config=rig.PUPPETS) as d:
            d.puppet('vm', mapped=MIB, resident=MIB)
            start = time.monotonic()
            seen = []
            while time.monotonic() < start + 2.5:
                seen.append(json.loads(get(d, '/state.json'))['status']['uptime'])
            self.assertGreater(len(set(seen)), 1)
            self.assertLess(len(set(seen)), min(len(seen), (time.monotonic() - start) / 0.9 + 2))
            # Who has come or gone is seen at once.
            d.puppet('another')
            self.assertEqual(len(json.loads(get(d, '/state.json'))['clients']), 2)

    def test_where_pages_are_and_what_of_is_told(self):
        with Daemon('--memory', '16M') as d, Client(d) as c:
            n = 8192
            at = c.at('map', n * PAGE)
            for page in range(n):
                self.assertEqual(c.tell('write', at + page * PAGE), 'ok')
            name = d.dir + '/file'
            with open(name, 'wb') as f:
                f.truncate(64 * PAGE)
            shared = c.at('shared', name)
            self.assertEqual(c.tell('read', shared), 'ok')
            os.truncate(name, PAGE)
            self.assertEqual(c.tell('read', shared + 40 * PAGE), 'SIGBUS')
            copy = c.at('clone', at, n * PAGE)
            ranges = {r['start']: r for r in d.ask('map', client=str(c.pid))['client']['map']}
            self.assertEqual(set(ranges), {at, shared, copy})
            r = ranges[at]
            self.assertEqual((r['prot'], r['shared'], r['pager'], r['depth'], r['wired'], r['lost']), ('rw', False, 'anonymous', 1, False, 0))
            # All of it is beneath both; nothing can be touched yet.
            self.assertEqual(r['resident'] + r['staged'] + r['swapped'], n * PAGE)
            self.assertGreater(r['swapped'], 16 * MIB)
            self.assertLessEqual(set(r['rest']), set('ws'))
            self.assertEqual([ranges[copy][k] for k in ('depth', 'staged', 'swapped')], [r[k] for k in ('depth', 'staged', 'swapped')])
            r = ranges[shared]
            self.assertEqual((r['shared'], r['pager'], r['depth'], r['lost']), (True, 'file', 0, PAGE))
            self.assertEqual((r['strip'][0], r['rest'][40]), ('9', '!'))
            self.assertEqual(c.tell('write', copy + 9 * PAGE), 'ok')
            out = d.tool('map', str(c.pid))
            self.assertRegex(out, r'rw private, object \d+ \(anonymous\) over 1\n')
            self.assertRegex(out, r'█[·░▒▓█]{39}!·{23} .* in memory, 4.0K LOST\n +rw shared, object \d+ \(file\)\n')


class Metrics(unittest.TestCase):
    def test_groups_limits_and_refusals(self):
        config = '[limits]\nclients = 2\n[group db]\nlimit = 24M\nminimum = 4M\nusers = root\n'
        with Daemon('--memory', '32M', config=config) as d, Client(d) as c:
            at = c.at('map', 64 * PAGE)
            for page in range(64):
                c.tell('write', at + page * PAGE)
            d.tool('limit', str(c.pid), '20M')
            self.assertEqual(metric(d, 'client_limit_bytes', pid=c.pid), [20 * MIB])
            self.assertEqual(metric(d, 'client_minimum_bytes', pid=c.pid), [0])
            self.assertEqual(metric(d, 'client_regions', pid=c.pid), [1])
            self.assertEqual([metric(d, 'group_' + m, group='db') for m in ('limit_bytes', 'minimum_bytes', 'clients')], [[24 * MIB], [4 * MIB], [1]])
            self.assertEqual(metric(d, 'group_resident_bytes', group='db'), metric(d, 'client_resident_bytes', pid=c.pid))
            self.assertGreaterEqual(metric(d, 'group_resident_bytes', group='db')[0], 64 * PAGE)
            with Client(d):
                self.assertEqual(metric(d, 'refused_connections_total', reason='clients'), [0])
                said = subprocess.run([TOLD, d.path('pager.sock')], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=rig.DEADLINE,
                                      text=True, check=False)
                self.assertEqual(said.returncode, 1)
                # It has tried more than once.
                self.assertGreater(metric(d, 'refused_connections_total', reason='clients')[0], 0)
            d.ask('drain')
            subprocess.run([TOLD, d.path('pager.sock')], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=rig.DEADLINE, check=False)
            self.assertGreater(metric(d, 'refused_connections_total', reason='draining')[0], 0)
            self.assertEqual(metric(d, 'refused_connections_total', reason='failed'), [0])
            d.ask('drain', cancel=True)

    def process(self, d, name):
        (line,) = [l for l in get(d, '/metrics').splitlines() if l.startswith(f'process_{name} ')]
        return float(line.split()[1])

    def test_a_restart_is_seen_and_who_was_taken_over(self):
        with Daemon('--memory', '32M') as d, Client(d) as c:
            at = c.at('map', 64 * PAGE)
            self.assertEqual(c.tell('write', at), 'ok')
            self.assertEqual(metric(d, 'restarts_total') + metric(d, 'guardian') + metric(d, 'clients_taken_over'), [0, 1, 0])
            # With that of who asks.
            self.assertIn(self.process(d, 'open_fds') - len(os.listdir(f'/proc/{d.served_by()}/fd')), (0, 1))
            self.assertGreater(self.process(d, 'max_fds'), 0)
            self.assertGreater(self.process(d, 'resident_memory_bytes'), MIB)
            began = self.process(d, 'start_time_seconds')
            self.assertLess(abs(began - time.time()), 60)
            os.kill(d.served_by(), signal.SIGKILL)
            rig.wait_for('the next daemon', lambda: d.log().count('serving: a budget') == 2)
            self.assertEqual(metric(d, 'restarts_total') + metric(d, 'guardian') + metric(d, 'clients_taken_over'), [1, 1, 1])
            self.assertGreater(self.process(d, 'start_time_seconds'), began)
            self.assertEqual(c.tell('read', at + PAGE), 'ok')
            # By its process it is the same.
            self.assertEqual(len(metric(d, 'client_mapped_bytes', pid=c.pid)), 1)


class Trace(unittest.TestCase):
    def test_events_have_a_time_and_a_client(self):
        with Daemon('--memory', '32M') as d, Client(d) as a, Client(d) as b:
            places = {c.pid: c.at('map', 64 * PAGE) + 7 * PAGE for c in (a, b)}
            before = time.time_ns()
            for c in a, b:
                self.assertEqual(c.tell('write', places[c.pid]), 'ok')
            after = time.time_ns()

            def zeros():
                return [ev['pid'] for ev in d.ask('trace')['trace'] if ev['kind'] == 'fault-zero' and 'pid' in ev]
            # A fault is answered before that is noted.
            rig.wait_for('both', lambda: sorted(zeros()) == sorted(places))
            trace = d.ask('trace')['trace']
            for c in a, b:
                (ev,) = [ev for ev in trace if ev.get('pid') == c.pid and ev['kind'] == 'fault-zero']
                self.assertEqual((ev['at'], ev['name'], ev['arg']), (places[c.pid], 'told', 1))
                # The two clocks are read one after the other.
                self.assertTrue(before - 10**8 < ev['time_ns'] < after + 10**8, ev)
                only = d.ask('trace', client=str(c.pid))['trace']
                self.assertIn(ev['at'], [e['at'] for e in only])
                self.assertEqual({e['pid'] for e in only}, {c.pid})
            self.assertEqual(trace, sorted(trace, key=lambda ev: ev['time_ns']))
            out = d.tool('trace', '--client', str(b.pid))
            self.assertRegex(out, rf'(?m)^\d\d:\d\d:\d\d\.\d{{6}} fault-zero +0x0*{places[b.pid]:x} +1  told, process {b.pid}$')
            self.assertNotIn(f'process {a.pid}', out)
            name = d.dir + '/file'
            with open(name, 'wb') as f:
                f.truncate(16 * PAGE)
            at = a.at('shared', name)
            self.assertEqual(a.tell('read', at), 'ok')
            os.truncate(name, PAGE)
            self.assertEqual(a.tell('read', at + 9 * PAGE), 'SIGBUS')
            events = rig.wait_for('it', lambda: [e for e in d.ask('trace', client=str(a.pid))['trace'] if e['kind'] == 'fault-sigbus'])
            self.assertEqual([e['at'] for e in events], [at + 9 * PAGE])
            # What was read for it was read for an address of its own, too.
            rig.wait_for('the read', lambda: at in [e['at'] for e in d.ask('trace', client=str(a.pid))['trace'] if e['kind'] == 'fault-major'])
            # Whose place in the tables it gets is not who it was.
            old = a.pid
            a.__exit__()
            rig.wait_for('gone', lambda: d.ask('status')['status']['clients'] == 1)
            with Client(d) as new:
                self.assertEqual(d.ask('trace', client=str(new.pid))['trace'], [])
                self.assertNotIn(old, [e.get('pid') for e in d.ask('trace')['trace']])


class Recent(unittest.TestCase):
    def test_latencies_are_those_of_the_last_second(self):
        with Daemon(config=rig.PUPPETS) as d:
            s = d.puppet('vm', major=1000000, p99=900000000)
            n = 1000000

            def now(ns):
                nonlocal n
                n += 10
                rig.obey(s, major=n, p99=ns)
                (c,) = d.ask('clients')['clients']
                recent = c['recent'].get('major', {'p99_ns': 0})['p99_ns']
                history = d.ask('status')['status']['history']['p99_ns'][-1:]
                # Known to a factor of two.
                return recent and ns / 2 <= recent <= ns * 2 and history == [recent]
            rig.wait_for('900 ms', lambda: now(900000000))
            s.close()
            rig.wait_for('gone', lambda: d.ask('status')['status']['clients'] == 0)
            s = d.puppet('vm', major=0)
            n = 0
            rig.wait_for('5 us', lambda: now(5000))
            # And none if there are none.
            rig.wait_for('nothing', lambda: d.ask('status')['status']['history']['p99_ns'][-1] == 0)
            (c,) = d.ask('clients')['clients']
            self.assertEqual((c['recent'], c['p99_ns']), ({}, 5000))
            self.assertIn('no faults now', d.tool('top', '--once'))


if __name__ == '__main__':
    rig.main()

#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The control socket: its verbs, who may use it, and what does not bring it down."""
import json
import os
import random
import signal
import socket
import tempfile
import time
import unittest

import rig
from rig import Daemon, PUPPETS

MIB = 1 << 20


def alive(d):
    return d.ask('status')['ok']


class Verbs(unittest.TestCase):
    def test_status_and_clients(self):
        with Daemon('--memory', '64M', config=PUPPETS) as d:
            d.puppet('vm-1', mapped=64 * MIB, resident=16 * MIB, swapped=MIB, major=12, p99=4000)
            status = d.ask('status')['status']
            self.assertEqual(status['budget']['limit'], 64 * MIB)
            self.assertEqual(status['clients'], 1)
            self.assertEqual(status['faults']['major'], 12)
            self.assertEqual(set(status['latency']), {'minor', 'zero', 'soft', 'major', 'wp'})
            (c,) = d.ask('clients')['clients']
            self.assertEqual((c['name'], c['pid'], c['uid'], c['kind']), ('vm-1', os.getpid(), os.getuid(), 'test'))
            self.assertEqual((c['mapped'], c['resident'], c['swapped'], c['p99_ns']), (64 * MIB, 16 * MIB, MIB, 4000))

    def test_map(self):
        with Daemon(config=PUPPETS) as d:
            d.puppet('vm-1', mapped=64 * MIB, resident=16 * MIB)
            for who in ('vm-1', os.getpid(), str(os.getpid()), '#1'):
                client = d.ask('map', client=who)['client']
                self.assertEqual(client['name'], 'vm-1')
                self.assertEqual(sum(r['length'] for r in client['map']), 64 * MIB)
                for r in client['map']:
                    self.assertRegex(r['strip'], r'^[0-9]{64}$')
            self.assertIn('address', d.ask('map')['runtime'][0])

    def test_evict_and_limit(self):
        with Daemon('--memory', '64M', config=PUPPETS) as d:
            d.puppet('vm-1', mapped=64 * MIB, resident=16 * MIB)
            self.assertEqual(d.ask('evict', client='vm-1', bytes=4 * MIB)['evicted'], 4 * MIB)
            self.assertEqual(d.ask('evict', client='vm-1', bytes=1 << 40)['evicted'], 12 * MIB)
            self.assertEqual(d.ask('limit')['limit'], 64 * MIB)
            self.assertEqual(d.ask('limit', client='vm-1', bytes=MIB)['limit'], MIB)
            self.assertEqual(d.ask('limit', client='vm-1', bytes=1)['errno'], 'EINVAL')

    def test_a_restore_by_criu_is_a_client(self):
        with tempfile.TemporaryDirectory() as images:
            config = f'[listen restores]\ntype = criu\npath = lazy-pages.socket\nsource = {images}\n'
            with open(images + '/inventory.img', 'wb') as f:
                f.write(b'\x16\x31\x31\x58\x02\0\0\0\x08\x02')
            # One task, number 5; it has no memory: a zombie.
            with open(images + '/pstree.img', 'wb') as f:
                f.write(b'\x19CVT00\x27P\x02\0\0\0\x08\x05')
            with Daemon(config=config) as d, socket.socket(socket.AF_UNIX) as s:
                s.connect(d.path('lazy-pages.socket'))
                (c,) = rig.wait_for('a client', lambda: d.ask('clients')['clients'])
                self.assertEqual((c['kind'], c['pid'], c['mapped']), ('criu', os.getpid(), 0))
                self.assertEqual(d.ask('map', client='#1')['client']['map'], [])
                self.assertEqual(d.ask('evict', client='#1', bytes=MIB)['errno'], 'ENOTSUP')
                s.sendall((-5).to_bytes(4, 'little', signed=True) + b'FTSR')
                rig.wait_for('gone', lambda: not d.ask('clients')['clients'])
                d.wait_log('nothing is missing any more')

    def test_trace(self):
        with Daemon() as d:
            self.assertIsInstance(d.ask('trace', lines=5)['trace'], list)
            self.assertEqual(d.ask('trace', client='nobody')['errno'], 'ESRCH')

    def test_who_is_meant(self):
        with Daemon(config=PUPPETS) as d:
            d.puppet('twin')
            d.puppet('twin')
            self.assertEqual(d.ask('map', client='twin')['errno'], 'ENOTUNIQ')
            self.assertEqual(d.ask('map', client='#2')['client']['id'], 2)
            self.assertEqual(d.ask('map', client='nobody')['errno'], 'ESRCH')
            self.assertEqual(d.ask('map', client='#99')['errno'], 'ESRCH')
            self.assertEqual(d.ask('map', client=['x'])['errno'], 'EINVAL')
            self.assertEqual(d.ask('evict', client='#1')['errno'], 'EINVAL')
            self.assertEqual(d.ask('evict', client='#1', bytes=-1)['errno'], 'EINVAL')
            self.assertEqual(d.ask('evict', client='#1', bytes=1.5)['errno'], 'EINVAL')

    def test_names_that_are_not_printable_are_made_so(self):
        with Daemon(config=PUPPETS) as d:
            s = d.connect('puppets.sock')
            s.sendall(b'name \xff\x1b[2Jevil\x07\n')
            rig.read_line(s)
            (c,) = d.ask('clients')['clients']
            self.assertEqual(c['name'], '??[2Jevil?')
            self.assertNotIn('\x1b', d.log())
            s.close()

    def test_rates_are_of_the_last_second(self):
        with Daemon(config=PUPPETS) as d:
            s = d.puppet('busy')
            n = 0

            def rate():
                nonlocal n
                n += 100
                rig.obey(s, major=n)
                time.sleep(0.05)
                (c,) = d.ask('clients')['clients']
                return c['rate'] > 0 and d.ask('status')['status']['rate']['major'] > 0
            rig.wait_for('a rate', rate)
            self.assertGreater(max(d.ask('status')['status']['history']['faults']), 0)

    def test_counters_do_not_go_back_when_a_client_leaves(self):
        with Daemon(config=PUPPETS) as d:
            d.puppet('short', major=500).close()
            rig.wait_for('gone', lambda: d.ask('status')['status']['clients'] == 0)
            self.assertEqual(d.ask('status')['status']['faults']['major'], 500)


class Budget(unittest.TestCase):
    def test_it_goes_up_and_down(self):
        with Daemon('--memory', '64M', '--memory-max', '96M') as d:
            for mib in (16, 96, 8, 64):
                self.assertEqual(d.ask('limit', bytes=mib * MIB + 1), {'ok': True, 'limit': mib * MIB})
                self.assertEqual(d.ask('limit')['limit'], mib * MIB)
                budget = d.ask('status')['status']['budget']
                self.assertEqual((budget['limit'], budget['limit_max']), (mib * MIB, 96 * MIB))
                self.assertLessEqual(budget['used_max'], mib * MIB)
            self.assertIn('the budget is 8 MiB now, was 96 MiB', d.log())
            for bad in (97 * MIB, 1 << 20, 0):
                self.assertEqual(d.ask('limit', bytes=bad)['errno'], 'EINVAL')
            self.assertEqual(d.ask('limit')['limit'], 64 * MIB)

    def test_groups_follow(self):
        users = f'users = {os.getuid()}'
        with Daemon(config=f'[daemon]\nmemory = 64M\n[group a]\n{users}\nlimit = 50%\nminimum = 40%\n') as d:
            self.assertTrue(d.ask('limit', bytes=32 * MIB)['ok'])
            group = d.ask('status')['status']['groups'][0]
            self.assertEqual((group['limit'], group['minimum']), (16 * MIB, 32 * MIB * 40 // 100 // 4096 * 4096))

    def test_what_is_said_meanwhile_is_answered_in_order(self):
        with Daemon('--memory', '64M') as d, d.connect() as s:
            s.sendall(b'{"verb":"limit","bytes":33554432}\n{"verb":"limit"}\n{"verb":"limit","bytes":16777216}\n')
            s.shutdown(socket.SHUT_WR)
            answers = [json.loads(rig.read_line(s) or 'null')]
            self.assertEqual(answers[0], {'ok': True, 'limit': 32 * MIB})
        with Daemon('--memory', '64M') as d, d.connect() as s:
            s.sendall(b'{"verb":"limit","bytes":33554432}\n{"verb":"limit"}\n{"verb":"limit","bytes":16777216}\n')
            self.assertEqual([json.loads(rig.read_line(s))['limit'] for _ in range(3)], [32 * MIB, 32 * MIB, 16 * MIB])

    def test_who_asks_and_goes_has_asked_all_the_same(self):
        with Daemon('--memory', '64M') as d:
            with d.connect() as s:
                s.sendall(b'{"verb":"limit","bytes":16777216}\n')
            d.wait_log('the budget is 16 MiB now')
            self.assertTrue(alive(d))

    def test_a_reload_changes_it(self):
        with Daemon(config='[daemon]\nmemory = 64M\nmemory_max = 96M\n') as d:
            d.configure('[daemon]\nmemory = 80M\nmemory_max = 96M\n')
            d.signal(signal.SIGHUP)
            d.wait_log('the budget is 80 MiB now, was 64 MiB')
            self.assertEqual(d.ask('limit')['limit'], 80 * MIB)
            # More than there are addresses for: refused, and once more when it is asked for once more.
            for n in (1, 2):
                d.configure('[daemon]\nmemory = 128M\nmemory_max = 128M\n')
                d.signal(signal.SIGHUP)
                rig.wait_for('a refusal', lambda n=n: d.log().count('the budget stays 80 MiB, 128 MiB: Invalid argument') == n)
            self.assertEqual(d.ask('limit')['limit'], 80 * MIB)


class Junk(unittest.TestCase):
    def refuses(self, d, data, errno):
        with d.connect() as s:
            s.sendall(data)
            answer = json.loads(rig.read_line(s))
            self.assertEqual((answer['ok'], answer['errno']), (False, errno), data[:40])

    def test_what_is_no_request_is_refused(self):
        with Daemon() as d:
            for data in (b'hello\n', b'{}x\n', b'\xff\xfe\0\0\n', b'[' * 5000 + b'\n', b'{"verb":"status","verb":"drain"}\n', b'"status"\n{\n'[9:]):
                self.refuses(d, data, 'EBADMSG')
            for data in (b'{}\n', b'[]\n', b'{"verb":1}\n', b'{"verb":"explode"}\n', b'{"verb":"' + b'x' * 9000 + b'"}\n'):
                self.refuses(d, data, 'EINVAL')
            self.assertTrue(alive(d))

    def test_a_connection_survives_its_mistakes(self):
        with Daemon() as d, d.connect() as s:
            s.sendall(b'nonsense\n\n\n{"verb":"limit"}\n')
            self.assertIn(b'EBADMSG', rig.read_line(s))
            self.assertIn(b'"ok":true', rig.read_line(s))

    def test_ten_megabytes_without_a_newline(self):
        with Daemon() as d:
            before = self.memory(d)
            with d.connect() as s:
                sent = 0
                try:
                    for _ in range(160):
                        sent += s.send(b'x' * 65536)
                except OSError:
                    pass    # hung up on
                try:
                    self.assertIn(b'EMSGSIZE', rig.read_line(s))
                except OSError:
                    pass
            self.assertTrue(alive(d))
            if not rig.SANITIZED:
                self.assertLess(self.memory(d) - before, 4 << 20)

    def test_random_bytes(self):
        with Daemon() as d:
            rng = random.Random(1)
            for _ in range(200):
                with d.connect() as s:
                    try:
                        s.sendall(rng.randbytes(rng.randrange(1, 3000)) + b'\n')
                        if rng.random() < 0.5:
                            s.recv(4096)
                    except OSError:
                        pass
            self.assertTrue(alive(d))

    def test_a_request_in_pieces(self):
        with Daemon() as d, d.connect() as s:
            for b in b'{"verb":"limit"}\n':
                s.sendall(bytes([b]))
            self.assertIn(b'"ok":true', rig.read_line(s))

    def test_many_requests_at_once_are_all_answered(self):
        with Daemon() as d, d.connect() as s:
            s.sendall(b'{"verb":"status"}\n' * 500)
            s.shutdown(socket.SHUT_WR)
            data = b''
            while part := s.recv(1 << 20):
                data += part
            # Who has shut down is owed what it had asked for before that was read.
            self.assertGreater(data.count(b'\n'), 0)
            for line in data.splitlines():
                self.assertTrue(json.loads(line)['ok'])

    def test_who_reads_late_gets_all(self):
        with Daemon() as d, d.connect() as s:
            n = 3000
            s.setblocking(False)
            todo, got = b'{"verb":"status"}\n' * n, 0
            end = time.monotonic() + rig.DEADLINE
            while got < n and time.monotonic() < end:
                try:
                    todo = todo[s.send(todo[:65536]):] if todo else todo
                except BlockingIOError:
                    pass
                try:
                    got += s.recv(1 << 16).count(b'\n')
                except BlockingIOError:
                    time.sleep(0.001)
            self.assertEqual(got, n)

    def test_who_never_reads_is_dropped_and_holds_no_memory(self):
        with Daemon() as d, d.connect() as s:
            before = self.memory(d)
            s.settimeout(1)
            dropped = False
            end = time.monotonic() + 40
            while time.monotonic() < end and not dropped:
                try:
                    s.send(b'{"verb":"status"}\n' * 1000)
                except TimeoutError:
                    pass
                except OSError:
                    dropped = True
            self.assertTrue(dropped)
            self.assertTrue(alive(d))
            if not rig.SANITIZED:
                self.assertLess(self.memory(d) - before, 8 << 20)

    def test_many_connections(self):
        with Daemon() as d:
            kept = []
            refused = 0
            for _ in range(100):
                s = d.connect()
                kept.append(s)
            for s in kept[32:]:
                answer = json.loads(rig.read_line(s))
                self.assertEqual(answer['errno'], 'EBUSY')
                refused += 1
            self.assertEqual(refused, 68)
            for s in kept:
                s.close()
            rig.wait_for('an answer', lambda: alive(d))

    def test_connections_that_say_nothing_and_go(self):
        with Daemon() as d:
            for _ in range(500):
                d.connect().close()
            rig.wait_for('an answer', lambda: alive(d))

    @staticmethod
    def memory(d):
        with open(f'/proc/{d.served_by()}/statm', encoding='ascii') as f:
            return int(f.read().split()[1]) * 4096


@unittest.skipIf(os.getuid() != 0, 'needs root, to be somebody else')
class Peers(unittest.TestCase):
    """Whoever gets through the mode of the socket is looked at all the same."""

    def ask_as(self, d, uid, gid, groups=()):
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(r)
            os.setgroups(list(groups))
            os.setgid(gid)
            os.setuid(uid)
            try:
                with d.connect() as s:
                    try:
                        s.sendall(b'{"verb":"status"}\n')
                    except OSError:
                        pass
                    os.write(w, rig.read_line(s)[:200])
            finally:
                os._exit(0)
        os.close(w)
        with os.fdopen(r, 'rb') as f:
            answer = f.read()
        os.waitpid(pid, 0)
        return answer

    def test_strangers_are_refused_members_are_not(self):
        with Daemon('--control-group', '54321', '--control-mode', '0666') as d:
            os.chmod(d.dir, 0o755)
            self.assertIn(b'EACCES', self.ask_as(d, 12345, 12345))
            self.assertIn(b'"ok":true', self.ask_as(d, 12345, 54321))
            self.assertIn(b'"ok":true', self.ask_as(d, 12345, 12345, [54321]))
            self.assertIn('refused: neither root', d.log())
            self.assertEqual(os.stat(d.path('control.sock')).st_gid, 54321)

    def test_the_socket_itself_keeps_them_out(self):
        with Daemon() as d:
            os.chmod(d.dir, 0o755)
            self.assertEqual(self.ask_as(d, 12345, 12345), b'')
            self.assertTrue(alive(d))


if __name__ == '__main__':
    rig.main()

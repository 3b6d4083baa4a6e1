#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""How the daemon starts, reloads and ends."""
import errno
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
import unittest

import rig
from rig import Daemon, PUPPETS


class Starting(unittest.TestCase):
    def test_it_starts_with_no_arguments(self):
        with Daemon() as d:
            for name, mode in (('pager.sock', 0o660), ('control.sock', 0o600), ('http.sock', 0o660)):
                st = os.lstat(d.path(name))
                self.assertTrue(stat.S_ISSOCK(st.st_mode))
                self.assertEqual(stat.S_IMODE(st.st_mode), mode, name)
            status = d.ask('status')['status']
            memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGESIZE')
            self.assertLessEqual(status['budget']['limit'], memory // 4 + 4096)
            self.assertGreater(status['budget']['limit'], 2 << 20)
            self.assertEqual(status['pid'], d.process.pid)
            self.assertEqual(stat.S_IMODE(os.stat(d.state).st_mode), 0o700)

    def test_two_daemons_on_one_socket_refuse_clearly(self):
        with Daemon() as d:
            env = {'XDG_RUNTIME_DIR': d.dir, 'STATE_DIRECTORY': d.dir + '/other'}
            status, _, err = rig.run_pagerd(env=env)
            self.assertEqual(status, 1)
            self.assertIn(f'another uffd-pagerd serves there, process {d.process.pid}', err)
            # Another native socket, but this one's control socket.
            status, _, err = rig.run_pagerd('--socket', 'b.sock', env=env)
            self.assertEqual(status, 1)
            self.assertIn('control.sock: another program listens there', err)
            self.assertTrue(d.ask('status')['ok'])

    def test_two_daemons_on_one_swap_refuse_clearly(self):
        with Daemon() as d:
            status, _, err = rig.run_pagerd('--run-dir', d.dir + '/b', env={'STATE_DIRECTORY': d.state})
            self.assertEqual(status, 1)
            self.assertIn('can not be started', err)
            self.assertTrue(d.ask('status')['ok'])
            self.assertEqual(os.listdir(d.dir + '/b'), [])

    def test_what_a_killed_daemon_left_is_replaced(self):
        d = Daemon()
        d.signal(signal.SIGKILL)
        d.wait()
        self.assertTrue(os.path.exists(d.path('pager.sock')))
        with Daemon(keep=d.dir) as e:
            self.assertIn('left behind by a daemon that was killed', e.log())
            self.assertTrue(e.ask('status')['ok'])

    def test_a_file_in_the_way_is_not_touched(self):
        with Daemon() as d:
            os.mkdir(d.dir + '/b')
            with open(d.dir + '/b/pager.sock', 'w', encoding='ascii') as f:
                f.write('precious')
            status, _, err = rig.run_pagerd('--run-dir', d.dir + '/b', '--state-dir', d.dir + '/bs')
            self.assertEqual(status, 1)
            self.assertIn('is there already, and is no socket', err)
            with open(d.dir + '/b/pager.sock', encoding='ascii') as f:
                self.assertEqual(f.read(), 'precious')
            self.assertEqual(os.listdir(d.dir + '/b'), ['pager.sock'])

    def test_bad_places_are_told(self):
        with Daemon() as d, socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen()
            for flags, says in ((['--run-dir', '/proc/x'], '/proc/x'), (['--run-dir', d.dir + '/' + 'y' * 120], 'longer than'),
                                (['--run-dir', d.dir + '/c', '--metrics-listen', '127.0.0.1:%d' % taken.getsockname()[1]], 'Address already in use')):
                status, _, err = rig.run_pagerd('--state-dir', d.dir + '/cs', *flags)
                self.assertEqual(status, 1, flags)
                self.assertIn(says, err)
                if os.path.isdir(d.dir + '/c'):
                    self.assertEqual(os.listdir(d.dir + '/c'), [])

    def test_sockets_that_are_handed_over(self):
        with Daemon() as first:
            path = first.dir + '/handed.sock'
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s, socket.socket(socket.AF_UNIX) as c:
                s.bind(path)
                s.listen()
                c.bind(path + '2')
                c.listen()

                def activate():
                    # Where LISTEN_FDS says: the first two above standard error.
                    os.dup2(s.fileno(), 50)
                    os.dup2(c.fileno(), 51)
                    os.dup2(50, 3)
                    os.dup2(51, 4)
                    os.set_inheritable(3, True)
                    os.set_inheritable(4, True)

                # LISTEN_PID is only known in the child: a shell says it, and becomes the daemon.
                wrapper = first.dir + '/wrapper'
                with open(wrapper, 'w', encoding='ascii') as f:
                    f.write(f'#!/bin/sh\nLISTEN_PID=$$ exec {rig.PAGERD} "$@"\n')
                os.chmod(wrapper, 0o755)
                real, rig.PAGERD = rig.PAGERD, wrapper
                try:
                    d = Daemon(env={'LISTEN_FDS': '2', 'LISTEN_FDNAMES': 'native:control'}, preexec=activate, pass_fds=(3, 4))
                finally:
                    rig.PAGERD = real
                if 'handed over' not in d.log() and 'libsystemd' not in subprocess.run(
                        ['ldd', rig.PAGERD], stdout=subprocess.PIPE, text=True, check=False, timeout=60).stdout:
                    d.stop()
                    self.skipTest('built without libsystemd')
                self.assertFalse(os.path.exists(d.path('pager.sock')))
                with socket.socket(socket.AF_UNIX) as k:
                    k.settimeout(rig.DEADLINE)
                    k.connect(path + '2')
                    k.sendall(b'{"verb":"status"}\n')
                    self.assertIn(b'"ok":true', rig.read_line(k))
                d.stop()
                self.assertTrue(os.path.exists(path), 'the socket is systemd\'s, and stays')

    def test_a_manager_that_does_not_read_stops_nobody(self):
        with tempfile.TemporaryDirectory(prefix='uffd-pagerd.') as where, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s, \
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
            s.bind(where + '/notify')
            full.setblocking(False)
            with self.assertRaises(BlockingIOError):
                while True:
                    full.sendto(b'STATUS=full', where + '/notify')
            with Daemon('--guardian', 'no', env={'NOTIFY_SOCKET': where + '/notify', 'WATCHDOG_USEC': '100000'}) as d:
                self.assertEqual(d.ask('status')['status']['state'], 'serving')
                s.close()  # what it says at its end nobody waits for

    def test_systemd_is_told(self):
        with Daemon() as other:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.bind(other.dir + '/notify')
                s.settimeout(0.2)
                heard = []

                def hears(text):
                    try:
                        while True:
                            heard.append(s.recv(4096).decode())
                    except TimeoutError:
                        pass
                    return any(text in h for h in heard)

                d = Daemon(env={'NOTIFY_SOCKET': other.dir + '/notify', 'WATCHDOG_USEC': '400000'}, config='')
                if not hears('READY=1'):
                    d.stop()
                    self.skipTest('built without libsystemd')
                rig.wait_for('WATCHDOG', lambda: hears('WATCHDOG=1'))
                d.signal(signal.SIGHUP)
                rig.wait_for('RELOADING', lambda: hears('RELOADING=1\nMONOTONIC_USEC='))
                d.configure('[daemon]\ndrain_timeout = 100s\n')
                d.signal(signal.SIGHUP)
                d.wait_log('reload: daemon.drain_timeout is 100s now')
                d.stop()
                # What the unit has may be less than it takes.
                rig.wait_for('STOPPING', lambda: hears('STOPPING=1\nEXTEND_TIMEOUT_USEC=130000000\nSTATUS=draining'))

    def test_logs_for_the_journal(self):
        with Daemon('--log-to', 'journal') as d:
            for line in d.log().splitlines():
                self.assertRegex(line, r'^<[3467]>')

    def test_logs_to_the_journal(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as at, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(at + '/journal')
            journal.settimeout(rig.DEADLINE)
            with Daemon('--log-to', 'journal', config=PUPPETS, env={'UP_TEST_JOURNAL': at + '/journal'}, wait=False) as d:
                heard = [rig.fields(journal.recv(65536))]
                while 'serving: a budget' not in heard[-1]['MESSAGE']:
                    heard.append(rig.fields(journal.recv(65536)))
                a = d.puppet('a b')
                while ': come' not in heard[-1]['MESSAGE']:
                    heard.append(rig.fields(journal.recv(65536)))
                self.assertEqual({f['PRIORITY'] for f in heard if f['MESSAGE'].startswith('serving')}, {'6'})
                self.assertEqual({f['SYSLOG_IDENTIFIER'] for f in heard}, {'uffd-pagerd'})
                self.assertEqual({k: v for k, v in heard[-1].items() if k.startswith('UFFD_')},
                                 {'UFFD_PAGER_CLIENT': '1', 'UFFD_PAGER_PID': str(os.getpid()), 'UFFD_PAGER_NAME': 'a b'})
                self.assertEqual([f for f in heard[:-1] if 'UFFD_PAGER_PID' in f], [])
                rig.obey(a, log='c|d')
                heard.append(rig.fields(journal.recv(65536)))
                # What has an end of line in it is told by its length.
                self.assertEqual((heard[-1]['MESSAGE'], heard[-1]['UFFD_PAGER_NAME'], heard[-1]['PRIORITY']), (r'c\x0ad', 'c\nd', '4'))
                self.assertEqual(d.log(), '')
                # It is not read any more: nobody waits for it, and nothing is missing.
                os.remove(at + '/journal')
                d.puppet('c')
                d.wait_log(': c,')
                self.assertRegex(d.log(), r'^<6>client 2: c, process ')

    def test_a_journal_that_is_not_read_keeps_nobody_waiting(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as at, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(at + '/journal')
            with Daemon('--log-to', 'journal', config=PUPPETS, env={'UP_TEST_JOURNAL': at + '/journal'}, wait=False) as d:
                rig.wait_for('a socket', lambda: os.path.exists(d.path('puppets.sock')))
                n = 0
                while ': come' not in d.log() and n < 2000:
                    d.puppet('more').close()
                    n += 1
                self.assertIn(': come', d.log(), 'its queue is never full')

    def test_logs_to_the_journal_where_standard_error_is_that(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as at, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(at + '/journal')
            journal.settimeout(rig.DEADLINE)
            env = {'UP_TEST_JOURNAL': at + '/journal', 'JOURNAL_STREAM': '1:1'}
            with Daemon(env=env) as d:
                self.assertNotRegex(d.log(), '^<')
            os.mkdir(at + '/daemon')
            with open(at + '/daemon/log', 'wb') as log:
                st = os.fstat(log.fileno())
            env['JOURNAL_STREAM'] = f'{st.st_dev}:{st.st_ino}'
            with Daemon(keep=at + '/daemon', env=env, wait=False) as d:
                while 'serving: a budget' not in rig.fields(journal.recv(65536))['MESSAGE']:
                    pass
                self.assertEqual(d.log(), '')

    def test_logs_for_people(self):
        with Daemon('--log-level', 'debug') as d:
            for line in d.log().splitlines():
                self.assertRegex(line, r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warning|info|debug): ')

    def test_the_daemon_sleeps_when_nothing_happens(self):
        with Daemon() as d:
            def ticks():
                with open(f'/proc/{d.served_by()}/stat', encoding='ascii') as f:
                    fields = f.read().rsplit(')', 1)[1].split()
                return int(fields[11]) + int(fields[12])
            before = ticks()
            time.sleep(2)
            self.assertLess(ticks() - before, os.sysconf('SC_CLK_TCK') // 2)


class Reloading(unittest.TestCase):
    def test_limits_are_reloaded_and_the_rest_is_told(self):
        with Daemon(config='[limits]\nclients = 7\n' + PUPPETS) as d:
            d.puppet('a')
            d.configure('[daemon]\ncompression = lz4\n[limits]\nclients = 1\n[group all]\nusers = ' + str(os.getuid()) +
                        '\nlimit = 16M\n' + PUPPETS)
            d.signal(signal.SIGHUP)
            d.wait_log('reload: done')
            self.assertIn('reload: limits.clients is 1 now, was 7', d.log())
            self.assertIn('reload: daemon.compression stays none: lz4 takes a restart', d.log())
            status = d.ask('status')['status']
            self.assertEqual(status['limits']['clients'], 1)
            self.assertEqual(status['groups'], [{'name': 'all', 'limit': 16 << 20, 'minimum': 0, 'swap_limit': 0, 'promised': 0, 'clients': 1, 'resident': 0,
                                                 'configured': {'limit': 16 << 20, 'minimum': 0}, 'refused': ''}])
            with d.connect('puppets.sock') as s:
                s.sendall(b'name b\n')
                self.assertIn(b'1 are allowed', rig.read_line(s))

    def reload(self, d, text):
        times = d.log().count('reload: done')
        d.configure(text)
        d.signal(signal.SIGHUP)
        rig.wait_for('reloaded', lambda: d.log().count('reload: done') > times)

    def test_further_sockets_come_and_go_and_their_clients_stay(self):
        other = PUPPETS.replace('puppets', 'others')
        with Daemon(config=PUPPETS) as d:
            one = d.puppet('one')
            self.reload(d, PUPPETS + other)
            with d.connect('others.sock') as two:
                rig.obey(two, name='two')
                self.reload(d, other)
                self.assertIn('reload: [listen puppets] is closed', d.log())
                self.assertEqual(sorted(os.listdir(d.run)), ['control.sock', 'http.sock', 'others.sock', 'pager.sock', 'pager.sock.pid'])
                self.assertEqual(d.ask('status')['status']['clients'], 2)
                rig.obey(one, mapped=4096)
                # Of another daemon as well: what was closed is not there again, and what was opened is.
                os.kill(d.served_by(), signal.SIGKILL)
                rig.wait_for('the next daemon', lambda: d.log().count('serving: a budget') == 2)
                self.assertEqual({l['name'] for l in d.ask('status')['status']['listeners']}, {'native', 'control', 'others'})
            self.reload(d, PUPPETS + other)
            d.puppet('three')

    def test_what_changes_of_a_further_socket_is_for_those_who_come(self):
        with Daemon(config=PUPPETS + '[group a]\n[group b]\n') as d:
            d.puppet('before')
            inode = os.lstat(d.path('puppets.sock')).st_ino
            self.reload(d, PUPPETS + 'group = b\nmode = 0600\n[group a]\n[group b]\n')
            st = os.lstat(d.path('puppets.sock'))
            self.assertEqual((st.st_ino, stat.S_IMODE(st.st_mode)), (inode, 0o600))
            d.puppet('after')
            self.assertEqual([(c['name'], c['group']) for c in d.ask('clients')['clients']], [('before', ''), ('after', 'b')])
            # Another protocol at the same path, and another path.
            self.reload(d, PUPPETS.replace('type = test', 'type = native'))
            with d.connect('puppets.sock', socket.SOCK_SEQPACKET):
                pass
            self.reload(d, PUPPETS.replace('puppets.sock', 'moved.sock'))
            self.assertFalse(os.path.exists(d.path('puppets.sock')))
            with d.connect('moved.sock') as s:
                rig.obey(s, name='moved')

    def test_a_further_socket_that_can_not_be_is_told_and_tried_again(self):
        with Daemon(config=PUPPETS) as d:
            with open(d.path('late.sock'), 'w', encoding='ascii'):
                pass
            for section in ('late', 'puppets'):
                self.reload(d, PUPPETS + f'[listen {section}]\ntype = test\npath = late.sock\n')
                self.assertIn('late.sock: is there already, and is no socket', d.log())
            self.assertIn('reload: [listen late] is not there', d.log())
            self.assertIn('reload: [listen puppets] is as it was', d.log())
            d.puppet('here')
            os.unlink(d.path('late.sock'))
            self.reload(d, PUPPETS + '[listen late]\ntype = test\npath = late.sock\n')
            with d.connect('late.sock') as s:
                rig.obey(s, name='late')

    def test_a_bad_file_changes_nothing(self):
        with Daemon(config='[limits]\nclients = 7\n') as d:
            d.configure('[limits]\nclients = 8\nfoo = 1\n')
            d.signal(signal.SIGHUP)
            d.wait_log('reload: refused')
            self.assertRegex(d.log(), r"reload: .*conf:3: there is no 'foo'")
            self.assertEqual(d.ask('status')['status']['limits']['clients'], 7)

    def test_flags_stay_over_the_file(self):
        with Daemon('--limits-clients', '9', config='') as d:
            d.configure('[limits]\nclients = 8\nfds = 5\n')
            d.signal(signal.SIGHUP)
            d.wait_log('reload: done')
            limits = d.ask('status')['status']['limits']
            self.assertEqual((limits['clients'], limits['fds']), (9, 5))


class Ending(unittest.TestCase):
    def test_sigterm_and_sigint_end_it(self):
        for sig in (signal.SIGTERM, signal.SIGINT):
            with Daemon() as d:
                d.signal(sig)
                self.assertEqual(d.wait(), 0)
                self.assertIn('ended', d.log())

    def test_clients_are_asked_to_leave(self):
        with Daemon(config=PUPPETS) as d:
            s, t = d.puppet('one'), d.puppet('two')
            d.signal(signal.SIGTERM)
            for k in (s, t):
                self.assertRegex(rig.read_line(k), rb'^leave (30|29)\d\d\d\n$')
            s.close()
            d.wait_log(': one, ')
            rig.wait_for('one client', lambda: d.ask('status')['status']['clients'] == 1)
            t.close()
            self.assertEqual(d.wait(10), 0)

    def test_drain_timeout_ends_what_does_not_leave(self):
        with Daemon('--drain-timeout', '300ms', config=PUPPETS) as d:
            d.puppet('mule').sendall(b'stubborn\n')
            s = d.puppet('last')
            d.signal(signal.SIGTERM)
            self.assertEqual(d.wait(), 0)
            for name in ('mule', 'last'):
                self.assertRegex(d.log(), f'{name}, process [0-9]+: still there after drain_timeout')
            self.assertRegex(rig.read_line(s), rb'^leave')
            self.assertEqual(s.recv(1), b'')
            self.assertRegex(d.log(), r'client 2: last, .* gone')

    def test_no_time_to_leave_is_none(self):
        with Daemon('--drain-timeout', '0', config=PUPPETS) as d:
            s = d.puppet('one')
            d.signal(signal.SIGTERM)
            self.assertEqual(d.wait(10), 0)
            self.assertEqual(s.recv(100), b'')

    def test_the_control_socket_works_until_the_end(self):
        with Daemon('--drain-timeout', '60s', config=PUPPETS) as d:
            s = d.puppet('mule')
            d.signal(signal.SIGTERM)
            d.wait_log('ending')
            status = d.ask('status')['status']
            self.assertEqual((status['state'], status['clients']), ('draining', 1))
            self.assertTrue(50 < status['ends_in'] <= 60, status['ends_in'])
            with d.connect('puppets.sock') as k:
                k.sendall(b'name late\n')
                self.assertIn(b'the daemon is ending', rig.read_line(k))
            self.assertEqual(d.ask('drain')['errno'], 'EBUSY')
            s.close()
            self.assertEqual(d.wait(), 0)

    def test_a_second_sigterm_ends_it_at_once(self):
        d = Daemon('--drain-timeout', '10m', config=PUPPETS)
        s = d.puppet('mule')
        s.sendall(b'stubborn\n')
        rig.read_line(s)
        d.signal(signal.SIGTERM)
        d.wait_log('ending')
        d.signal(signal.SIGTERM)
        self.assertEqual(d.wait(10), 1)
        self.assertIn('at once', d.log())
        # The control socket goes with the rest; nothing else either.
        self.assertEqual(os.listdir(d.run), [])
        self.assertEqual(os.listdir(d.state), [])
        d.clean()

    def test_drain_ends_when_the_last_client_has_left(self):
        with Daemon(config=PUPPETS) as d:
            s = d.puppet('one')
            self.assertEqual(d.ask('drain'), {'ok': True, 'draining': True, 'clients': 1})
            with d.connect('puppets.sock') as k:
                k.sendall(b'name late\n')
                self.assertIn(b'drained', rig.read_line(k))
            self.assertFalse(d.ask('drain', cancel=True)['draining'])
            d.puppet('in time').close()
            rig.wait_for('one client', lambda: d.ask('status')['status']['clients'] == 1)
            d.ask('drain')
            s.close()
            self.assertEqual(d.wait(), 0)

    def test_drain_without_clients_ends_after_its_answer(self):
        with Daemon() as d:
            self.assertEqual(d.ask('drain')['clients'], 0)
            self.assertEqual(d.wait(), 0)

    def test_no_descriptors_are_left(self):
        with Daemon(config=PUPPETS) as d:
            def fds():
                return len(os.listdir(f'/proc/{d.served_by()}/fd'))
            d.ask('status')
            before = rig.wait_for('quiet', fds)
            for i in range(50):
                d.ask('status')
                d.puppet(f'p{i}').close()
                with d.connect('http.sock') as s:
                    s.sendall(b'GET /healthz HTTP/1.0\r\n\r\n')
                    while s.recv(4096):
                        pass
            rig.wait_for('as many as before', lambda: fds() <= before + 1)

    def test_no_descriptors_left_is_no_end(self):
        with Daemon() as d:
            import resource
            pid = d.served_by()
            used = len(os.listdir(f'/proc/{pid}/fd'))
            soft = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 4, soft[1]))
            kept = [d.connect() for _ in range(12)]
            d.wait_log('a connection was refused')
            self.assertEqual(json.loads(rig.read_line(kept[-1]))['errno'], 'EMFILE')
            kept.append(d.connect('pager.sock', socket.SOCK_SEQPACKET))
            self.assertEqual(refusal(kept[-1]), (errno.EMFILE, 'the daemon has no file descriptors left'))
            for s in kept:
                s.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, soft)
            rig.wait_for('an answer', lambda: self.answers(d))

    @staticmethod
    def answers(d):
        try:
            return d.ask('status')['ok']
        except (OSError, ValueError):
            return False


def refusal(s):
    """What up_runtime_connect() would return, and say (lib/childmsg.h)."""
    kind, _, status, _, _ = struct.unpack_from('=IIiII', answer := s.recv(65536))
    assert kind == 8 and status < 0, answer
    return -status, answer[24 + 4 * 4 + 8 * 4:].split(b'\0')[0].decode()


class Native(unittest.TestCase):
    def test_as_many_as_there_can_be_is_told(self):
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 5000:
            self.skipTest(f'{hard} descriptors at most')
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with Daemon('--memory', '256M', '--limits-clients', '2048', '--limits-clients-per-user', 'none', '--log-level', 'warning', wait=False) as d:
            rig.wait_for('a socket', lambda: os.path.exists(d.path('control.sock')))
            kept = [d.connect('pager.sock', socket.SOCK_SEQPACKET) for _ in range(2049)]
            error, why = refusal(kept[-1])
            self.assertEqual(error, errno.EUSERS)
            self.assertIn('there are 2048 clients', why)
            self.assertIn('refused: there are 2048 clients', d.log())
            for s in kept:
                s.close()
            rig.wait_for('all gone', lambda: d.ask('status')['status']['clients'] == 0)

    def test_the_native_socket_takes_connections(self):
        with Daemon() as d:
            with d.connect('pager.sock', socket.SOCK_SEQPACKET) as s:
                try:
                    s.sendall(b'\0' * 64)
                    self.assertEqual(s.recv(4096)[:0], b'')
                except OSError:
                    pass    # hung up on, as it should be
            self.assertTrue(d.ask('status')['ok'])


if __name__ == '__main__':
    rig.main()

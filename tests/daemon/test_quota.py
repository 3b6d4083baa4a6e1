#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""What clients and groups may have, with real ones.  Arguments: UFFD-PAGERD UFFD-PAGER TENANT."""
import os
import signal
import socket
import tempfile
import unittest

import rig
from rig import Daemon, wait_for
from tenant import Tenant

MIB = 1 << 20
PAGE = 4096
UID = os.getuid()
MEMORY = '[daemon]\nmemory = 64M\nservice_threads = 2\n'


def pages(mib):
    return mib * MIB // PAGE


def groups(d):
    return {g['name']: g for g in d.ask('status')['status']['groups']}


def quota(g):
    return g['limit'], g['minimum']


def reload(d, config):
    n = d.log().count('reload: done')
    d.configure(config)
    d.signal(signal.SIGHUP)
    wait_for('the reload', lambda: d.log().count('reload: done') > n)


class Groups(unittest.TestCase):
    def filled(self, tenant, tag):
        self.assertEqual(tenant.tell('fill', tag), 'ok')

    def test_a_percentage_is_in_force_before_the_first_client(self):
        for more in ([], ['--guardian', 'no']):
            with Daemon(*more, config=MEMORY + f'[group a]\nusers = {UID}\nlimit = 25%\n') as d:
                self.assertEqual(quota(groups(d)['a']), (16 * MIB, 0))
                self.assertEqual(groups(d)['a']['refused'], '')
                with Tenant(d) as t:
                    t.tell('map', pages(40))
                    self.filled(t, 1)
                    self.assertLessEqual(groups(d)['a']['resident'], 16 * MIB)
                    self.assertGreater(groups(d)['a']['resident'], 8 * MIB)

    def test_a_group_that_is_removed_limits_nobody(self):
        with Daemon(config=MEMORY + f'[group a]\nusers = {UID}\nlimit = 12M\nminimum = 10M\n[group b]\nminimum = 20M\n') as d, \
                Tenant(d) as t:
            t.tell('map', pages(40))
            self.filled(t, 1)
            self.assertLessEqual(d.ask('clients')['clients'][0]['resident'], 12 * MIB)
            # With what a had been promised; and it is 30 of 32 MiB.
            reload(d, MEMORY + '[group b]\nminimum = 30M\n')
            self.assertEqual(quota(groups(d)['b']), (0, 30 * MIB))
            self.filled(t, 2)
            self.assertGreater(d.ask('clients')['clients'][0]['resident'], 24 * MIB)
            self.assertEqual(d.ask('clients')['clients'][0]['group'], '')

    def test_a_reload_moves_those_who_are_there(self):
        a, b = (f'[group {name}]\nlimit = {limit}\nusers = ' for name, limit in (('a', '12M'), ('b', '24M')))
        door = '[listen door]\npath = door.sock\ngroup = a\n'
        with Daemon(config=MEMORY + f'{a}{UID}\n{b}none\n{door}') as d, Tenant(d) as t, Tenant(d, socket='door.sock') as guest:
            for one in (t, guest):
                one.tell('map', pages(20))
            self.filled(t, 1)
            self.assertEqual(groups(d)['a']['clients'], 2)
            reload(d, MEMORY + f'{a}none\n{b}{UID}\n{door}')
            self.assertEqual([c['group'] for c in d.ask('clients')['clients']], ['b', 'a'])
            self.assertEqual(groups(d)['a']['resident'], 0)
            self.filled(t, 2)
            self.filled(guest, 2)
            self.assertGreater(groups(d)['b']['resident'], 12 * MIB)
            self.assertLessEqual(groups(d)['a']['resident'], 12 * MIB)
            self.assertGreater(groups(d)['a']['resident'], 4 * MIB)
            # And out of all of them.
            reload(d, MEMORY)
            self.assertEqual([c['group'] for c in d.ask('clients')['clients']], ['', ''])

    def test_what_can_not_be_in_force_is_shown(self):
        group = f'[group a]\nusers = {UID}\n'
        with Daemon(config=MEMORY + group) as d, Tenant(d) as t:
            t.tell('map', pages(8))
            self.assertEqual(t.tell('wire', pages(6)), 'ok')
            reload(d, MEMORY + group + 'limit = 10M\nminimum = 1M\n')
            g = groups(d)['a']
            self.assertEqual((quota(g), quota(g['configured'])), ((0, 0), (10 * MIB, MIB)))
            self.assertIn('half of that wired', g['refused'])
            self.assertIn('group a: limit 10485760, minimum 1048576: not in force: its clients have more than half', d.log())
            self.assertRegex(d.tool('status'), r'NOT IN FORCE: limit 10M, minimum 1.0M: .*half of that wired')
            reload(d, MEMORY + group + 'limit = 12M\n')
            g = groups(d)['a']
            self.assertEqual((quota(g), g['refused']), ((12 * MIB, 0), ''))

    def test_the_next_daemon_has_them_where_the_file_says(self):
        with Daemon(config=MEMORY + f'[group a]\nusers = {UID}\nlimit = 25%\n') as d, Tenant(d) as t:
            t.tell('map', pages(40))
            self.filled(t, 1)
            for n, (text, name, most) in enumerate((('[group a]\nlimit = 25%\n', 'a', 16), ('[group c]\nlimit = 12M\n', 'c', 12))):
                d.configure(MEMORY + text + f'users = {UID}\n')
                os.kill(d.served_by(), signal.SIGKILL)
                wait_for('the next daemon', lambda n=n: d.log().count('serving: a budget') == n + 2)
                self.assertEqual(d.ask('clients')['clients'][0]['group'], name)
                self.assertEqual(quota(groups(d)[name]), (most * MIB, 0))
                self.filled(t, n)
                self.assertLessEqual(groups(d)[name]['resident'], most * MIB)
                self.assertGreater(groups(d)[name]['resident'], 6 * MIB)


class Orders(unittest.TestCase):
    def test_a_client_has_a_limit_and_a_minimum(self):
        with Daemon(config=MEMORY) as d, Tenant(d) as t, Tenant(d) as other:
            who = str(t.p.pid)
            self.assertEqual(d.tool('limit', who, '--limit', '20M', '--minimum', '16M'), 'limit 20M, minimum 16M\n')
            for one, size in ((t, 40), (other, 200)):
                one.tell('map', pages(size))
            self.assertEqual(t.tell('fill', 1), 'ok')
            # Others go through all that there is, and it keeps what it was promised.
            self.assertEqual(other.tell('fill', 1), 'ok')
            one = next(c for c in d.ask('clients')['clients'] if c['pid'] == t.p.pid)
            self.assertEqual((one['limit'], one['minimum']), (20 * MIB, 16 * MIB))
            self.assertTrue(15 * MIB < one['resident'] <= 20 * MIB, one)
            # One at a time, the other stays; and as it has always been said.
            self.assertEqual(d.tool('limit', who, '--minimum', 'none'), 'limit 20M, minimum 0\n')
            self.assertEqual(d.tool('limit', who, '12M'), '12M\n')
            self.assertEqual(d.tool('limit', who, '--minimum=8M'), 'limit 12M, minimum 8.0M\n')
            self.assertEqual(d.tool('limit', who, '--limit=none'), 'limit none, minimum 8.0M\n')
            self.assertIn('half of the budget at most', d.tool('limit', who, '--minimum', '33M', status=1))
            self.assertIn('below what its clients are served with', d.tool('limit', who, '--limit', '1M', status=1))
            for words in (['--limit', '9M'], [who, '9M', '--limit', '8M'], ['--group', 'a'], [who, '--group=a', '9M'], ['--minimum=1M']):
                self.assertIn('usage', d.tool('limit', *words, status=2))
            self.assertIn('usage', d.tool('map', who, '--limit', '9M', status=2))

    def test_a_client_has_them_as_long_as_it_is_there(self):
        config = MEMORY + '[limits]\nclient_limit = 24M\n'
        with Daemon(config=config) as d, Tenant(d) as t, Tenant(d) as other:
            for one in (t, other):
                one.tell('map', pages(40))
                self.assertEqual(one.tell('fill', 1), 'ok')
            d.tool('limit', str(t.p.pid), '--limit', '12M', '--minimum', '8M')

            def now():
                found = {c['pid']: (c['limit'], c['minimum'], c['resident']) for c in d.ask('clients')['clients']}
                self.assertEqual((found[t.p.pid][:2], found[other.p.pid][:2]), ((12 * MIB, 8 * MIB), (24 * MIB, 0)))
                return found[t.p.pid][2]
            reload(d, config + 'client_minimum = 1M\n')
            wait_for('the rest to go', lambda: now() <= 12 * MIB)
            for n in range(2):
                os.kill(d.served_by(), signal.SIGKILL)
                wait_for('the next daemon', lambda n=n: d.log().count('serving: a budget') == n + 2)
                for one in (t, other):
                    self.assertEqual(one.tell('fill', n + 2), 'ok')
                self.assertTrue(6 * MIB < now() <= 12 * MIB)
            d.tool('limit', str(t.p.pid), '--limit', 'none', '--minimum', 'none')
            os.kill(d.served_by(), signal.SIGKILL)
            wait_for('the next daemon', lambda: d.log().count('serving: a budget') == 4)
            (one,) = [c for c in d.ask('clients')['clients'] if c['pid'] == t.p.pid]
            self.assertEqual((one['limit'], one['minimum']), (0, 0))

    def test_a_group_has_them_until_the_next_reload(self):
        config = MEMORY + f'[group a]\nusers = {UID}\nlimit = 50%\n'
        with Daemon(config=config) as d, Tenant(d) as t:
            t.tell('map', pages(40))
            self.assertEqual(d.tool('limit', '--group', 'a', '--limit', '12M', '--minimum', '8M'), 'limit 12M, minimum 8.0M\n')
            self.assertEqual(t.tell('fill', 1), 'ok')
            self.assertLessEqual(groups(d)['a']['resident'], 12 * MIB)
            self.assertEqual(d.tool('limit', '--group', 'a', '16M'), 'limit 16M, minimum 8.0M\n')
            # Another budget is no other word of the operator's.
            d.tool('limit', '48M')
            self.assertEqual(quota(groups(d)['a']), (16 * MIB, 8 * MIB))
            self.assertIn('there is no [group b]', d.tool('limit', '--group', 'b', '16M', status=1))
            self.assertIn('half of the budget', d.tool('limit', '--group', 'a', '--limit', 'none', '--minimum', '25M', status=1))
            self.assertEqual(quota(groups(d)['a']), (16 * MIB, 8 * MIB))
            reload(d, config)
            self.assertEqual(quota(groups(d)['a']), (24 * MIB, 0))


class Limits(unittest.TestCase):
    def refused(self, d, text, **kind):
        t = Tenant(d, **kind)
        with t:
            self.assertIn(text, t.said)
            self.assertIn(text, d.log())

    def test_clients_of_one_user(self):
        with Daemon('--limits-clients-per-user', '2', '--limits-clients', '3', '--socket-mode', '0666', config=MEMORY,
                    preexec=lambda: os.umask(0o022)) as d:
            os.chmod(d.dir, 0o755)
            with Tenant(d) as a, Tenant(d) as b:
                self.assertEqual((a.said, b.said), ('there', 'there'))
                self.refused(d, f'user {UID} has 2 clients, and 2 are allowed ([limits] clients_per_user)')
                if UID == 0:
                    with Tenant(d, 12345) as other:
                        self.assertEqual(other.said, 'there')
                        self.refused(d, 'there are 3 clients, and 3 are allowed ([limits] clients)')

    def test_forks_of_one_client_and_of_one_user_leave_places(self):
        with Daemon('--socket-mode', '0666', config=MEMORY, preexec=lambda: os.umask(0o022)) as d:
            os.chmod(d.dir, 0o755)
            with Tenant(d) as a, Tenant(d) as b, Tenant(d) as c:
                for t in (a, b, c):
                    self.assertEqual(t.tell('map', 1, 'noreserve'), 'ok')

                def forks(t, n, why=''):
                    was = d.log().count('refused: a fork')
                    said = t.tell('fork', n)
                    found = int(said.split()[0])
                    self.assertEqual(d.log().count('refused: a fork') - was, 1 if found < n else 0)
                    self.assertIn(why, d.log())
                    return found
                # A client has 512 places with itself, and its user's clients 1024 for what they fork.
                self.assertEqual(forks(a, 600, 'there are 512 processes of its client'), 511)
                self.assertEqual(forks(b, 512), 511)
                self.assertEqual(forks(c, 10, f'1024 forked ones of user {UID}'), 2)
                # Whoever comes is served all the same, and what other users fork.
                with Tenant(d) as t:
                    self.assertEqual((t.said, t.tell('map', 1, 'noreserve'), t.tell('fill', 1)), ('there', 'ok', 'ok'))
                    self.assertEqual(forks(t, 1, f'1024 forked ones of user {UID}'), 0)
                if UID == 0:
                    with Tenant(d, 12345) as other:
                        self.assertEqual((other.said, other.tell('map', 1, 'noreserve')), ('there', 'ok'))
                        self.assertEqual(forks(other, 20), 20)
                # The places of those who go are free again.
                self.assertEqual(forks(a, 0), 0)
                wait_for('places', lambda: forks(c, 10) == 10)

    def test_addresses_and_swap(self):
        text = '[limits]\nmapped = 256M\nswap = 10%\n'
        with Daemon(config=MEMORY + f'swap_size = 1G\n{text}[group g]\nusers = {UID}\nswap = 160M\n') as d, \
                Tenant(d) as a, Tenant(d) as b:
            self.assertIn('257 MiB mapped, and 256 are allowed (mapped)', a.tell('map', pages(257), 'noreserve'))
            self.assertIn('104 MiB of swap promised, and 103 are allowed (swap)', a.tell('map', pages(104)))
            self.assertEqual(a.tell('map', pages(100)), 'ok')
            self.assertIn('EDQUOT', a.tell('clone'))
            self.assertIn('promised to names of user', a.tell('object', 'x', pages(104)))
            self.assertEqual(a.tell('object', 'x', pages(100)), 'ok')
            self.assertIn('161 MiB of swap promised to group g, and 160 are allowed (swap)', b.tell('map', pages(61)))
            self.assertEqual(b.tell('map', pages(60)), 'ok')
            self.assertRegex(d.log(), r'client tenant, process \d+: refused: 161 MiB of swap promised to group g')
            one = d.ask('clients')['clients'][0]
            self.assertEqual((one['promised'], one['swap_limit']), (100 * MIB, (1 << 30) // 10 // PAGE * PAGE))
            self.assertEqual((groups(d)['g']['promised'], groups(d)['g']['swap_limit']), (160 * MIB, 160 * MIB))
            # The next daemon counts the same.
            os.kill(d.served_by(), signal.SIGKILL)
            wait_for('the next daemon', lambda: d.log().count('serving: a budget') == 2)
            now = next(c for c in d.ask('clients')['clients'] if c['pid'] == one['pid'])
            self.assertEqual((now['promised'], now['swap_limit']), (one['promised'], one['swap_limit']))
            self.assertIn('104 MiB of swap promised, and 103', a.tell('map', pages(4)))
            self.assertIn('161 MiB of swap promised to group g', b.tell('map', pages(1)))
            self.assertEqual(a.tell('unmap'), 'ok')
            self.assertEqual(b.tell('map', pages(40)), 'ok')

    def test_the_journal_is_told_who_was_refused(self):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as at, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(at + '/journal')
            journal.settimeout(rig.DEADLINE)
            config = MEMORY + '[limits]\nmapped = 16M\n'
            with Daemon('--log-to', 'journal', config=config, env={'UP_TEST_JOURNAL': at + '/journal'}, wait=False) as d:
                while 'serving: a budget' not in rig.fields(journal.recv(65536))['MESSAGE']:
                    pass
                with Tenant(d) as t:
                    self.assertIn('EDQUOT', t.tell('map', pages(17), 'noreserve'))
                    heard = {'MESSAGE': ''}
                    while 'refused' not in heard['MESSAGE']:
                        heard = rig.fields(journal.recv(65536))
                    self.assertEqual((heard['UFFD_PAGER_NAME'], heard['UFFD_PAGER_PID'], heard['PRIORITY']), ('tenant', str(t.p.pid), '4'))

    def test_each_client_has_a_quota_from_the_beginning(self):
        text = f'[limits]\nclient_limit = 16M\nclient_minimum = 10%\n[group g]\nusers = {UID}\nclient_limit = 12M\n'
        with Daemon(config=MEMORY + text) as d, Tenant(d) as a:
            a.tell('map', pages(40))
            self.assertEqual(a.tell('fill', 1), 'ok')
            (one,) = d.ask('clients')['clients']
            self.assertEqual((one['limit'], one['minimum']), (12 * MIB, 64 * MIB // 10 // PAGE * PAGE))
            self.assertLessEqual(one['resident'], 12 * MIB)
            with Tenant(d), Tenant(d), Tenant(d), Tenant(d):
                t = Tenant(d)
                with t:
                    self.assertIn('ENOSPC', t.said)
                    self.assertIn('client_minimum', t.said)
                d.wait_log('refused: limit 12582912, minimum 6710886: half of the budget at most can be promised')


if __name__ == '__main__':
    rig.main()

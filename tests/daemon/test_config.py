#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The file, the flags, and what is said of mistakes in them.  test_config.py UFFD-PAGERD-TEST UFFD-PAGER EXAMPLE UFFD-PAGERD"""
import os
import re
import sys
import tempfile
import unittest

import rig
from rig import run_pagerd


class Config(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def file(self, text):
        path = self.dir.name + '/conf'
        mode = 'wb' if isinstance(text, bytes) else 'w'
        with open(path, mode) as f:
            f.write(text)
        return path

    def printed(self, text, *flags):
        status, out, err = run_pagerd('--config', self.file(text), '--print-config', *flags)
        self.assertEqual(status, 0, err)
        return out

    def refused(self, text, *says, flags=()):
        path = self.file(text)
        status, _, err = run_pagerd('--config', path, '--check-config', *flags)
        self.assertEqual(status, 1, err)
        for line in says:
            self.assertIn(f'{path}:{line}' if re.match(r'\d+: ', line) else line, err)

    def test_the_unit_waits_longer_than_a_drain(self):
        with open(os.path.dirname(sys.argv[3]) + '/uffd-pagerd.service.in', encoding='utf-8') as f:
            waits = int(re.search(r'^TimeoutStopSec=(\d+)s$', f.read(), re.M).group(1))
        drains = int(re.search(r'^drain_timeout = (\d+)s$', self.printed(''), re.M).group(1))
        self.assertGreaterEqual(waits, drains + 30)

    def test_an_empty_file_is_the_defaults(self):
        status, out, err = run_pagerd('--config', self.file(''), '--check-config')
        self.assertEqual((status, err), (0, ''))
        self.assertIn('as it should be', out)
        self.assertIn('drain_timeout = 30s', self.printed(''))

    def test_the_example_is_accepted_and_says_the_defaults(self):
        with open(sys.argv[3], encoding='utf-8') as f:
            example = f.read()
        defaults = self.printed('')
        self.assertEqual(self.printed(example), defaults)
        # Up to the named sections, which have no defaults, with every key as it stands there.
        plain = example[:example.index('#[group')]
        plain = re.sub(r'^# Groups.*\n', '', plain, flags=re.M)
        self.assertEqual(self.printed(re.sub(r'^#(\w+ = )', r'\1', plain, flags=re.M)), defaults)
        keys = set(re.findall(r'^(\w+) = ', defaults, re.M))
        self.assertEqual(keys, set(re.findall(r'^#(\w+) = ', plain, re.M)))
        # And all of it.
        every = re.sub(r'^#(\w+ = |\[)', r'\1', example, flags=re.M).replace('postgres,redis', 'root, 0')
        out = self.printed(every)
        self.assertIn('[group databases]', out)
        self.assertIn('minimum = 25%', out)
        self.assertIn('[listen vms]', out)

    def test_what_is_printed_means_the_same(self):
        text = '[daemon]\nmemory = 1536M\ndrain_timeout = 1500ms\ncompression=zstd\n[group a]\nlimit=10%\n[listen b]\npath=/x\n'
        once = self.printed(text)
        self.assertEqual(self.printed(once), once)
        for line in ('memory = 1536M', 'drain_timeout = 1500ms', 'compression = zstd', 'limit = 10%', 'path = /x'):
            self.assertIn(line, once)

    def test_every_key_is_a_flag(self):
        defaults = self.printed('')
        help_text = run_pagerd('--help')[1]
        section = ''
        for line in defaults.splitlines():
            if line.startswith('['):
                section = line[1:-1]
            elif line:
                key, value = line.split(' = ')
                flag = '--' + (key if section == 'daemon' else f'{section}-{key}').replace('_', '-')
                self.assertRegex(help_text, re.escape(flag) + r'\b')
                self.assertEqual(run_pagerd('--config', self.file(''), '--check-config', flag, value)[0], 0, flag)
        self.assertIn('memory = 2G', self.printed('[daemon]\nmemory = 1G\n', '--memory', '2G'))
        self.assertIn('limit = 1G', self.printed('', '--group-limit', 'web=1G'))

    def test_errors_say_file_and_line(self):
        self.refused('[daemon]\n\nmemory = lots\n', "3: memory: 'lots' is not a size")
        self.refused('[daemon]\nmemory = 1Q\n', '2: memory:', 'unit')
        self.refused('[daemon]\nmemory = 1M\n', '2: memory:', 'not between')
        self.refused('[daemon]\nmemory = 101%\n', '2: memory:', '100%')
        self.refused('[daemon]\nmemory =\n', "2: memory: '' is empty")
        self.refused('[daemon]\nmemory = 99999999999999999999T\n', '2: memory:')
        self.refused('[daemon]\nswap_size = 10%\n', '2: swap_size:', 'unit')
        self.refused('[limits]\nclients = -1\n', '2: clients:', 'not a number')
        self.refused('[daemon]\nsocket_mode = 0999\n', '2: socket_mode:', 'mode')
        self.refused('[daemon]\nsocket_mode = 4755\n', '2: socket_mode:', '0777')
        self.refused('[daemon]\nfault_timeout = 3 weeks\n', '2: fault_timeout:')
        self.refused('[daemon]\novercommit = perhaps\n', '2: overcommit:', 'neither yes nor no')
        self.refused('[log]\nlevel = loud\n', '2: level:', 'error|warning|info|debug')
        self.refused('[metrics]\nlisten = 0.0.0.0:80\n', "2: listen: '0.0.0.0:80' is not the loopback")
        for bad in ('x', '127.0.0.1', '127.0.0.1:', '127.0.0.1:65536', '[::1]', 'example.org:80', '[127.0.0.1]:80'):
            self.refused(f'[metrics]\nlisten = {bad}\n', f"2: listen: '{bad}' is not ADDRESS:PORT")
        self.refused('[metrics]\nlisten = [::2]:80\n', 'is not the loopback')
        for good in ('127.0.0.1:0', '[::1]:9100', 'localhost:80', 'none'):
            self.assertIn(f'listen = {good}\n', self.printed(f'[metrics]\nlisten = {good}\n'))

    def test_users_and_groups_are_looked_up(self):
        self.refused('[group a]\n\nusers = root, no-such-user\n', "3: users: ", "has a user that there is not: 'no-such-user'")
        self.refused('[group a]\nusers = root,,0\n', "2: users: ", "''")
        for section, key in (('daemon', 'socket_group'), ('daemon', 'control_group'), ('metrics', 'group')):
            self.refused(f'[{section}]\n{key} = no-such-group\n', f"2: {key}: 'no-such-group' is no group that there is")
            self.assertIn(f'{key} = 0\n', self.printed(f'[{section}]\n{key} = 0\n'))
        self.assertIn('users = root , 12345\n', self.printed('[group a]\nusers = root , 12345\n'))

    def test_unknown_keys_are_errors_with_a_suggestion(self):
        self.refused('[daemon]\nmemroy = 1G\n', "2: there is no 'memroy' in [daemon]; did you mean 'memory'?")
        self.refused('[daemon]\nclients = 3\n', "2: there is no 'clients' in [daemon]; it belongs into [limits]")
        self.refused('[daemon]\nlimit = 3\n', "it belongs into [group NAME]")
        self.refused('[deamon]\nmemory = 1G\n', '1: there is no section [deamon]; did you mean [daemon]?')
        self.refused('[zzzzzz]\n', '1: there is no section [zzzzzz]\n')
        self.refused('memory = 1G\n', "1: 'memory' stands before the first section")

    def test_all_errors_are_told_not_only_the_first(self):
        self.refused('[daemon]\nmemory=x\n[limits]\nfds=y\nfoo\n', '2: memory:', '4: fds:', "5: neither a section")
        path = self.file('[daemon]\n' + 'x = 1\n' * 50)
        self.assertIn('and 30 more errors', run_pagerd('--config', path, '--check-config')[2])

    def test_lines_that_are_no_lines(self):
        self.refused('[daemon]\nstate_dir = /' + 'x' * 5000 + '\nmemory = x\n', '2: the line is longer', '3: memory:')
        self.refused('[daemon\nmemory = 1G\n', "1: the section has no end")
        self.refused('[group]\nlimit = 1G\n', '1: [group NAME]')
        self.refused('[group a/b]\n', '1: [group NAME]')
        self.refused('[daemon x]\n', '1: [daemon] has no name')
        self.refused(b'[daemon]\n\xff\xfe\x00\x01garbage\nmemory = x\n', '2: ', '3: memory')
        self.refused(os.urandom(4096).replace(b'=', b'x'))
        self.refused('[daemon]\nmemory = 1G\nmemory = 2G\n', '3: memory: set in line 2 already')

    def test_indented_lines_are_lines(self):
        self.assertIn('memory = 1G', self.printed('  [daemon]\n  memory = 1G ; a comment\n\n   \n\tsocket_mode = 0600\r\n'))

    def test_groups_must_fit(self):
        self.refused('[group a]\nminimum = 20%\n[group b]\nminimum = 31%\n',
                     '4: [group b]: with it the groups are promised 51% of the budget')
        self.refused('[daemon]\nmemory = 64M\n[group a]\nminimum = 20M\n[group b]\nminimum = 20%\n',
                     '6: [group b]: with it the groups are promised 51% of the budget (64 MiB)')
        self.refused('[group a]\nusers = 0\n', '--group-minimum: [group a]: with it the groups are promised 51% of the budget',
                     flags=['--group-minimum', 'a=51%'])
        self.refused('[group a]\nminimum = 2G\nlimit = 1G\n', '2: [group a]: its minimum is above its limit')
        self.refused('[daemon]\nmemory = 1G\n[group a]\nlimit = 100M\nminimum = 10%\n', '5: [group a]: its minimum is above its limit')
        self.refused('[daemon]\nmemory = 1G\nservice_threads = 4\n[group a]\nlimit = 15M\n', '5: [group a]: a limit is at least 16 MiB')
        # As many threads as there would be here.
        self.refused('[daemon]\nmemory = 1G\n[group a]\nlimit = 3M\n', '4: [group a]: a limit is at least')
        self.refused('[daemon]\nmemory = 1G\nservice_threads = 4\n[limits]\nclient_limit = 15M\n', '5: client_limit: a limit is at least 16 MiB')
        self.refused('[group a]\nclient_minimum = 51%\n', '2: [group a]: each client is promised more than half')
        self.refused('[limits]\nclients = 5000\n', "2: clients: '5000' is not between 1 and 2048")
        for fits in ('minimum = 50%', 'limit = 16M\nminimum = 16M', 'limit = 2%'):
            self.printed('[daemon]\nmemory = 1G\nservice_threads = 4\n[group a]\n' + fits)
        self.refused('[daemon]\nmemory = 2G\nmemory_max = 1G\n', '2: memory is above memory_max')

    def test_further_sockets_must_be_whole(self):
        self.refused('[log]\n[listen a]\ntype = native\n', '2: [listen a] has no path')
        self.refused('[listen a]\ntype = criu\npath = a.sock\n', '1: [listen a] has no source')
        self.refused('[listen a]\npath = /x\ngroup = none-such\n', '3: [listen a]: there is no [group none-such]')
        self.refused('[listen control]\npath = /x\n', '1: [listen control]: that is the name of a socket of [daemon]')
        # What is not there yet may come, and is no reason not to start.
        path = self.file('[listen a]\ntype = firecracker\npath = /x\nsource = /none/such\n')
        status, _, err = run_pagerd('--config', path, '--check-config')
        self.assertEqual((status, err), (0, f'{path}:4: warning: [listen a]: source: /none/such: No such file or directory\n'))

    def test_a_protocol_that_is_not_built_in_is_an_error(self):
        text = '[listen a]\npath = /x\ntype = test\n'
        self.assertIn('type = test', self.printed(text))
        ours, rig.PAGERD = rig.PAGERD, os.path.abspath(sys.argv[4])
        try:
            self.refused(text, '3: [listen a]: this build does not speak the test protocol')
        finally:
            rig.PAGERD = ours

    def test_bad_usage_is_2(self):
        for flags in (['--bogus'], ['stray'], ['--memory', 'x'], ['--group-limit', 'x'], ['--group-limit', '=1G'], ['--log-level', 'x'],
                      ['--socket-group', 'no-such-group'], ['--metrics-listen', '0.0.0.0:0'], ['--group-users', 'a=no-such-user']):
            status, _, err = run_pagerd(*flags)
            self.assertEqual(status, 2, flags)
            self.assertTrue(err, flags)

    def test_a_missing_file_is_an_error(self):
        status, _, err = run_pagerd('--config', self.dir.name + '/none', '--check-config')
        self.assertEqual(status, 1)
        self.assertIn('No such file', err)
        self.assertEqual(run_pagerd('--config', self.dir.name, '--check-config')[0], 1)

    def test_version_and_help(self):
        self.assertRegex(run_pagerd('--version')[1], r'^uffd-pagerd \d+\.\d+\.\d+\n$')
        status, out, _ = run_pagerd('--help')
        self.assertEqual(status, 0)
        self.assertIn('Usage: uffd-pagerd', out)


if __name__ == '__main__':
    rig.main()

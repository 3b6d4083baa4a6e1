#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Objects with names: whose they are, and what is to be seen of them.  Arguments: UFFD-PAGERD UFFD-PAGER TENANT."""
import grp
import json
import os
import pwd
import signal
import subprocess
import unittest

import rig
from rig import Daemon, wait_for
from tenant import Tenant

PAGES = 64
PAGE = 4096
OWNER, OTHER, GROUP, STRANGER = 61001, 61002, 61003, 61004
CONFIG = '[daemon]\nmemory = 64M\nservice_threads = 1\nsocket_mode = 0666\n'


def killed(d):
    before = d.served_by()
    os.kill(before, signal.SIGKILL)

    def another():
        try:
            return d.served_by() != before
        except (IndexError, OSError):
            return False
    wait_for('another daemon', another)


def names(d):
    return {o['name']: o for o in d.ask('objects')['objects']}


class Seen(unittest.TestCase):
    def test_objects_are_listed_as_files_are(self):
        with Daemon(config=CONFIG) as d:
            self.assertEqual(d.tool('objects').split(), 'MODE OWNER GROUP SIZE MEMORY SWAP CLIENTS NAME'.split())
            with Tenant(d) as t, Tenant(d) as u:
                self.assertEqual(t.code('mode', 'table', PAGES, '640'), 'ok')
                self.assertEqual(t.code('fill', 1), 'ok')
                self.assertEqual(t.code('object', 'chair\x1b[2J', 1), 'ok')
                self.assertEqual(u.code('keep', 'table'), 'ok')
                o = names(d)['table']
                self.assertEqual((o['uid'], o['gid'], o['mode'], o['size'], o['resident'], o['swapped'], o['lost'], o['clients']),
                                 (os.getuid(), os.getgid(), 'rw-r-----', PAGES * PAGE, PAGES * PAGE, 0, 0, 2))
                self.assertEqual(names(d)['chair\x1b[2J']['clients'], 1)
                lines = d.tool('objects').splitlines()
                me, mine = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
                self.assertEqual(lines[1].split(), ['rw-r-----', me, mine, '256K', '256K', '0', '2', 'table'])
                self.assertEqual(lines[2].split()[-1], 'chair?[2J')
                self.assertEqual([n['name'] for n in json.loads(d.tool('objects', '--json'))['objects']], ['table', 'chair\x1b[2J'])
                # Whoever maps a copy has not the object, and nothing of it is gone.
                self.assertEqual(u.code('copy', PAGES), 'ok')
                self.assertEqual(u.code('look', 1), 'ok')
                self.assertEqual(names(d)['table']['resident'], PAGES * PAGE)
                self.assertEqual(t.code('chmod', 'table', '604'), 'ok')
                self.assertEqual(names(d)['table']['mode'], 'rw----r--')
                self.assertEqual(t.code('remove', 'chair\x1b[2J'), 'ok')
                self.assertEqual(list(names(d)), ['table'])
                self.assertIn('object', d.tool('map', str(t.p.pid)))
            wait_for('both to go', lambda: names(d)['table']['clients'] == 0)
            d.tool('objects', 'table', status=2)

    def test_without_a_daemon_that_is_the_exit_status(self):
        with Daemon(config=CONFIG) as d:
            run = d.run
        r = subprocess.run([rig.PAGER, '--socket', run + '/control.sock', 'objects'], stderr=subprocess.PIPE, timeout=rig.DEADLINE, check=False)
        self.assertEqual(r.returncode, 3)


@unittest.skipIf(os.getuid() != 0, 'needs root, to be somebody else')
class Owners(unittest.TestCase):
    def check(self, d, owner, reader, member, before):
        """Of a name of mode 0640, with content 1."""
        self.assertEqual(reader.code('share', PAGES), 'EACCES')
        self.assertEqual(member.code('keep', 'ward'), 'ok')
        self.assertEqual(member.code('share', PAGES), 'EACCES')
        self.assertEqual(reader.code('copy', PAGES), 'ok')
        self.assertEqual(reader.code('fill', before), 'ok')
        self.assertEqual(reader.code('remove', 'ward'), 'EACCES')
        self.assertEqual(reader.code('chmod', 'ward', '666'), 'EACCES')
        self.assertEqual(reader.code('mode', 'ward', PAGES, '666'), 'EEXIST')
        with Tenant(d, STRANGER, STRANGER) as stranger:
            self.assertEqual(stranger.code('keep', 'ward'), 'EACCES')
            self.assertEqual(stranger.code('remove', 'ward'), 'EACCES')
        with Tenant(d, STRANGER, STRANGER, GROUP) as late:
            self.assertEqual(late.code('keep', 'ward'), 'ok')
            self.assertEqual(late.code('share', PAGES), 'EACCES')
            self.assertEqual(late.code('copy', PAGES), 'ok')
            self.assertEqual(late.code('look', 1), 'ok')
        with Tenant(d) as root:
            self.assertEqual(root.code('keep', 'ward'), 'ok')
            self.assertEqual(root.code('share', PAGES), 'ok')
            self.assertEqual(root.code('look', 1), 'ok')
        self.assertEqual(owner.code('look', 1), 'ok')
        o = names(d)['ward']
        self.assertEqual((o['uid'], o['gid'], o['mode']), (OWNER, GROUP, 'rw-r-----'))

    def test_they_and_what_was_granted_outlive_a_daemon_that_is_killed(self):
        with Daemon(config=CONFIG) as d:
            os.chmod(d.dir, 0o755)
            os.chmod(d.run, 0o755)
            with Tenant(d, OWNER, GROUP) as owner, Tenant(d, OTHER, OTHER, GROUP) as reader, Tenant(d, STRANGER, OTHER, GROUP) as member:
                self.assertEqual(owner.code('mode', 'ward', PAGES, '640'), 'ok')
                self.assertEqual(owner.code('fill', 1), 'ok')
                self.assertEqual(reader.code('keep', 'ward'), 'ok')
                self.check(d, owner, reader, member, 7)
                for n in range(3):
                    killed(d)
                    self.check(d, owner, reader, member, 8 + n)
                    self.assertEqual(reader.code('look', 8 + n), 'ok')
                # What changes is taken along as well, and what is open stays what it was.
                self.assertEqual(owner.code('chmod', 'ward', '600'), 'ok')
                killed(d)
                self.assertEqual(reader.code('share', PAGES), 'EACCES')
                self.assertEqual(reader.code('keep', 'ward'), 'EACCES')
                self.assertEqual(owner.code('remove', 'ward'), 'ok')
                self.assertEqual(names(d), {})
                self.assertEqual(owner.code('look', 1), 'ok')


if __name__ == '__main__':
    rig.main()

# SPDX-License-Identifier: BSD-2-Clause
"""A client that does as it is told (tenant.c), whose program is the third argument of the test."""
import os
import subprocess
import sys
import threading
import unittest

import rig

TENANT = os.path.abspath(sys.argv[3])


class Tenant:
    """As user, group and further groups `ids`; `said` is the first that it says."""

    def __init__(self, d, *ids, socket='pager.sock'):
        self.p = subprocess.Popen([TENANT, d.path(socket), *map(str, ids)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = self.line()
        if self.said.startswith(('EPERM', 'ENOSYS')):
            self.__exit__()
            raise unittest.SkipTest(self.said)

    def line(self):
        late = threading.Timer(rig.DEADLINE, self.p.kill)
        late.start()
        line = self.p.stdout.readline().strip()
        late.cancel()
        return line

    def tell(self, *words):
        """All that it answers."""
        print(*words, file=self.p.stdin, flush=True)
        return self.line()

    def code(self, *words):
        """0, or the error, without what was said of it."""
        return self.tell(*words).split(' ')[0]

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.p.stdin.close()
        self.p.stdout.close()
        try:
            self.p.wait(rig.DEADLINE)
        finally:
            self.p.kill()

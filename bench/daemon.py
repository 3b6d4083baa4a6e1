#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""uffd-pagerd with many clients.  Run by `./dev bench soak` and `./dev bench restart`, with the build directory first.

    daemon.py BUILD soak [CLIENTS [MIB [BUDGET_MIB [SECONDS]]]]    clients with so much memory each, at work for so long, every page of which is compared (256 64 1024 600)
    daemon.py BUILD restart [CLIENTS [TIMES]]                      kill -9 under clients at work: how long until the next daemon serves all of them (100 5)
"""
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

BUILD = os.path.abspath(sys.argv[1])
DAEMON, TOOL, SURVIVOR = (BUILD + path for path in ('/daemon/uffd-pagerd', '/tools/uffd-pager', '/tests/daemon/survivor'))
PAGE = 4096
MIB = 1 << 20
# The rig of the tests, which takes the programs from here.
sys.argv[1:2] = [DAEMON, TOOL]
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../tests/daemon'))
rig = importlib.import_module('rig')
Daemon, wait_for = rig.Daemon, rig.wait_for


def start(d, n, mib, seconds, threads=1):
    return [subprocess.Popen([SURVIVOR, d.path('pager.sock'), str(mib * MIB // PAGE), str(seconds), str(i + 1), str(threads), 'calm'],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(n)]


def finish(programs, d, deadline):
    """Pages that were compared, and how many clients ended as they should."""
    end, compared, well = time.monotonic() + deadline, 0, 0
    for p in programs:
        try:
            out, _ = p.communicate(timeout=max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            p.kill()
            out = 'hangs: ' + p.communicate()[0]
        if p.returncode == 0:
            well += 1
            compared += int(re.search(r'compared (\d+)', out).group(1))
        else:
            print(f'client {p.args[4]}: exit status {p.returncode}: {out.strip()[-300:]}', flush=True)
    if well < len(programs):
        print(d.log()[-3000:])
    return compared, well


def soak(clients=256, mib=64, budget=1024, seconds=600):
    with Daemon('--memory', f'{budget}M', '--log-level', 'warning', wait=False) as d:
        wait_for('serving', lambda: os.path.exists(d.path('control.sock')))
        begun = time.monotonic()
        programs = start(d, clients, mib, seconds)
        most, over, stop = [0], [0], threading.Event()

        def watch():
            while not stop.wait(1):
                b = d.ask('status')['status']['budget']
                most[0] = max(most[0], b['used_max'])
                over[0] += b['used_max'] > b['limit']

        watcher = threading.Thread(target=watch)
        watcher.start()
        compared, well = finish(programs, d, seconds + 3600)
        stop.set()
        watcher.join()
        print(f'{clients} clients of {mib} MiB in {budget} MiB, {seconds} s at work and {time.monotonic() - begun:.0f} s in all: {well} ended well, '
              f'{compared} pages compared, at most {most[0] / MIB:.2f} MiB used, {over[0]} s over the budget')
        wait_for('all are gone', lambda: d.ask('status')['status']['clients'] == 0)
        return well == clients and over[0] == 0


def restart(clients=100, times=5):
    with Daemon('--memory', '256M', '--log-level', 'info') as d:
        programs = start(d, clients, 8, 3600)
        wait_for('all are there', lambda: sum(c['mapped'] > 0 for c in d.ask('clients')['clients']) == clients)
        took = []
        for n in range(2, times + 2):
            time.sleep(2)
            t0 = time.monotonic()
            os.kill(d.served_by(), signal.SIGKILL)
            wait_for('the next daemon', lambda n=n: d.log().count('serving: a budget') == n)
            took.append((time.monotonic() - t0) * 1000)
        again = [int(ms) for ms in re.findall(rf're-attached {clients} processes in (\d+) ms', d.log())]
        print(f'{clients} clients, kill -9 until the next daemon serves them, ms: {sorted(round(t) for t in took)}; '
              f'of that to read what was left: {sorted(again)}; load {os.getloadavg()[0]:.1f}')
        for p in programs:
            p.kill()
            p.wait(rig.DEADLINE)
        wait_for('all are gone', lambda: d.ask('status')['status']['clients'] == 0)
        return len(again) == times and max(took) < 2000


if __name__ == '__main__':
    what = {'soak': soak, 'restart': restart}[sys.argv[3]]
    sys.exit(not what(*map(int, sys.argv[4:])))

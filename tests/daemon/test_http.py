#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""/metrics, /healthz, /state.json and the page."""
import json
import re
import shutil
import socket
import subprocess
import tempfile
import unittest

import rig
from rig import Daemon, PUPPETS

NAME = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
VALUE = re.compile(r'(?:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|NaN|[-+]Inf)')


def parse_metrics(text):
    """{(name, labels): value} and {name: type}; ValueError at the first thing that the format does not have."""
    samples, types, helps, closed, current = {}, {}, {}, set(), None
    if not text.endswith('\n'):
        raise ValueError('the last line has no end')
    for line in text[:-1].split('\n'):
        m = re.fullmatch(r'# (HELP|TYPE) (\S+) (.*)', line)
        if m:
            kind, name, rest = m.groups()
            if not NAME.fullmatch(name):
                raise ValueError(f'no name: {line}')
            if name != current:
                if name in closed:
                    raise ValueError(f'{name} in two places')
                closed.add(current)
                current = name
            table = helps if kind == 'HELP' else types
            if name in table:
                raise ValueError(f'two {kind} of {name}')
            if kind == 'TYPE' and rest not in ('counter', 'gauge', 'summary', 'histogram', 'untyped'):
                raise ValueError(f'no type: {line}')
            table[name] = rest
            continue
        m = NAME.match(line)
        if not m:
            raise ValueError(f'no sample: {line!r}')
        name, at, labels = m.group(), m.end(), []
        if line[at:at + 1] == '{':
            at += 1
            while line[at] != '}':
                m = LABEL.match(line, at)
                if not m:
                    raise ValueError(f'no label: {line!r}')
                labels.append((m.group(1), m.group(2)))
                at = m.end()
                if line[at] == ',':
                    at += 1
                elif line[at] != '}':
                    raise ValueError(f'no label: {line!r}')
            at += 1
        if line[at:at + 1] != ' ' or not VALUE.fullmatch(line[at + 1:]):
            raise ValueError(f'no value: {line!r}')
        family = re.sub(r'_(count|sum|bucket)$', '', name) if name not in types else name
        if family not in types or family not in helps or family != current:
            raise ValueError(f'{name} without HELP and TYPE right before it')
        if len(dict(labels)) != len(labels):
            raise ValueError(f'a label twice: {line!r}')
        key = name, tuple(sorted(labels))
        if key in samples:
            raise ValueError(f'twice: {line!r}')
        samples[key] = float(line[at + 1:])
        if types[family] == 'counter' and (not name.endswith('_total') or samples[key] < 0):
            raise ValueError(f'no counter: {line!r}')
    return samples, types


def check_histograms(samples, types):
    """Every histogram has all of its parts, cumulative and in order; ValueError."""
    found = {}
    for (name, labels), value in samples.items():
        family = re.sub(r'_(count|sum|bucket)$', '', name)
        if types.get(family) != 'histogram':
            continue
        part = name[len(family) + 1:]
        rest = tuple((k, v) for k, v in labels if k != 'le')
        h = found.setdefault((family, rest), {'bucket': []})
        if part == 'bucket':
            h['bucket'].append((float(dict(labels)['le']), value))
        elif part in ('sum', 'count'):
            h[part] = value
        else:
            raise ValueError(f'{name} of a histogram')
    for key, h in found.items():
        bounds = [b for b, _ in h['bucket']]
        counts = [n for _, n in h['bucket']]
        if bounds != sorted(set(bounds)) or bounds[-1] != float('inf') or counts != sorted(counts):
            raise ValueError(f'{key}: {h}')
        if h['count'] != counts[-1] or h['sum'] < 0 or (h['count'] == 0) != (h['sum'] == 0):
            raise ValueError(f'{key}: {h}')
    return found


class Http(unittest.TestCase):
    def get(self, d, path, method='GET', headers='', where=None):
        if where is None:
            s = d.connect('http.sock')
        else:
            s = socket.create_connection(where, timeout=rig.DEADLINE)
        with s:
            host = '' if 'Host:' in headers else 'Host: localhost\r\n'
            s.sendall(f'{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n'.encode())
            data = b''
            while part := s.recv(65536):
                data += part
        head, _, body = data.partition(b'\r\n\r\n')
        return int(head.split()[1]), head.decode(), body.decode()

    def tcp(self, d):
        return '127.0.0.1', int(re.search(r'127\.0\.0\.1:(\d+): listening', d.log()).group(1))

    def test_metrics_are_what_prometheus_reads(self):
        with Daemon('--memory', '64M', config=PUPPETS) as d:
            d.puppet('a "quoted\\name"', mapped=8192, resident=4096, major=3, zero=2, p99=1500, again=5, deferred=7)
            d.puppet('b')
            status, head, body = self.get(d, '/metrics')
            self.assertEqual(status, 200)
            self.assertIn('text/plain; version=0.0.4', head)
            samples, types = parse_metrics(body)

            def one(metric, /, **labels):
                found = [v for (n, l), v in samples.items() if n == 'uffd_pager_' + metric and labels.items() <= dict(l).items()]
                self.assertEqual(len(found), 1, metric)
                return found[0]
            self.assertEqual(one('memory_limit_bytes'), 64 << 20)
            self.assertEqual(one('clients'), 2)
            self.assertEqual(one('faults_total', kind='major'), 3)
            self.assertEqual(one('client_faults_total', client='1', kind_of_fault='zero'), 2)
            self.assertEqual(one('client_resident_bytes', client='1', name='a \\"quoted\\\\name\\"'), 4096)
            self.assertEqual(one('client_fault_seconds_count', client='1', kind_of_fault='major'), 3)
            self.assertAlmostEqual(one('client_fault_seconds_sum', client='1', kind_of_fault='major'), 4.5e-6)
            self.assertEqual(one('client_fault_seconds_bucket', client='1', kind_of_fault='major', le='1.024e-06'), 0)
            self.assertEqual(one('client_fault_seconds_bucket', client='1', kind_of_fault='major', le='4.096e-06'), 3)
            self.assertNotIn('client="2",', ''.join(re.findall('^uffd_pager_client_fault_seconds.*$', body, re.M)))
            self.assertEqual(one('fault_seconds_count', kind='soft'), 0)
            self.assertEqual(types['uffd_pager_fault_seconds'], 'histogram')
            self.assertEqual((one('fault_again_total'), one('client_again_total', client='1')), (5, 5))
            check_histograms(samples, types)
            promtool = shutil.which('promtool')
            if promtool is not None:
                run = subprocess.run([promtool, 'check', 'metrics'], input=body, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                     timeout=rig.DEADLINE, check=False)
                self.assertEqual((run.returncode, run.stdout), (0, ''))

    def test_the_parser_is_strict(self):
        for bad in ('x 1\n', '# HELP x y\n# TYPE x gauge\nx\n', '# HELP x y\n# TYPE x gauge\nx{a="b} 1\n', '# HELP x y\n# TYPE x gauge\nx 1',
                    '# HELP x y\n# TYPE x gauge\nx 1\nx 1\n', '# HELP x y\n# TYPE x counter\nx 1\n', '# HELP x y\n# TYPE x gauge\nx{a="\n"} 1\n'):
            self.assertRaises((ValueError, IndexError), parse_metrics, bad)

    def test_histograms_are_looked_at(self):
        text = ('# HELP x y\n# TYPE x histogram\nx_bucket{le="1"} %d\nx_bucket{le="2"} %d\nx_bucket{le="+Inf"} %d\nx_sum 9\nx_count %d\n')
        self.assertEqual(len(check_histograms(*parse_metrics(text % (1, 2, 3, 3)))), 1)
        for bad in ((3, 2, 3, 3), (1, 2, 3, 4), (1, 2, 1, 1)):
            self.assertRaises(ValueError, check_histograms, *parse_metrics(text % bad))

    def test_healthz_says_when_it_drains(self):
        with Daemon(config=PUPPETS) as d:
            d.puppet('a')
            self.assertEqual(self.get(d, '/healthz')[::2], (200, 'ok\n'))
            d.ask('drain')
            self.assertEqual(self.get(d, '/healthz')[::2], (503, 'draining\n'))
            d.ask('drain', cancel=True)
            self.assertEqual(self.get(d, '/healthz')[0], 200)

    def test_state_and_page(self):
        with Daemon(config=PUPPETS) as d:
            d.puppet('a', mapped=1 << 20, resident=1 << 19)
            status, head, body = self.get(d, '/state.json')
            self.assertEqual(status, 200)
            state = json.loads(body)
            self.assertEqual(state['status']['clients'], 1)
            self.assertEqual(len(state['clients'][0]['map']), 2)
            self.assertEqual(state['clients'][0]['latency'], {})
            d.puppet('b', major=9, p99=8000)
            latency = json.loads(self.get(d, '/state.json')[2])['clients'][1]['latency']
            self.assertEqual(latency, {'major': {'count': 9, 'p50_ns': 2000, 'p99_ns': 8000, 'p999_ns': 0}})
            status, head, body = self.get(d, '/')
            self.assertEqual(status, 200)
            self.assertIn('Content-Security-Policy', head)
            # Nothing from elsewhere.
            self.assertIsNone(re.search(r'(src|href)\s*=|https?://|@import|url\(', body))

    def test_what_is_not_there_and_what_is_not_done(self):
        with Daemon() as d:
            self.assertEqual(self.get(d, '/none')[0], 404)
            self.assertEqual(self.get(d, '/../../etc/passwd')[0], 404)
            for method in ('POST', 'PUT', 'DELETE', 'OPTIONS'):
                self.assertEqual(self.get(d, '/healthz', method, 'Content-Length: 0\r\n')[0], 405)
            self.assertEqual(self.get(d, '/healthz', 'HEAD')[::2], (200, ''))

    def test_tcp_is_for_names_of_the_loopback_only(self):
        with Daemon('--metrics-listen', '127.0.0.1:0') as d:
            where = self.tcp(d)
            self.assertEqual(self.get(d, '/healthz', where=where)[0], 200)
            for host in ('127.0.0.1', f'127.0.0.1:{where[1]}', 'LOCALHOST:1', '[::1]:80', '127.1.2.3'):
                self.assertEqual(self.get(d, '/healthz', headers=f'Host: {host}\r\n', where=where)[0], 200, host)
            for host in ('evil.example', 'localhost.evil.example', '127.0.0.1.evil.example', '10.0.0.1'):
                self.assertEqual(self.get(d, '/healthz', headers=f'Host: {host}\r\n', where=where)[0], 403, host)

    def test_no_socket_if_none_is_wanted(self):
        with Daemon('--metrics-socket', 'none') as d:
            self.assertRaises(FileNotFoundError, d.connect, 'http.sock')

    def test_junk_does_no_harm(self):
        with Daemon() as d:
            for data in (b'\0' * 100, b'GET\r\n\r\n', b'GET / HTTP/9.9\r\n\r\n', b'x' * 100000, b'GET /' + b'a' * 60000 + b' HTTP/1.1\r\n\r\n',
                         b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n'):
                with d.connect('http.sock') as s:
                    s.settimeout(0.5)
                    try:
                        s.sendall(data)
                        s.shutdown(socket.SHUT_WR)
                        while s.recv(65536):
                            pass
                    except OSError:
                        pass
            idle = [d.connect('http.sock') for _ in range(40)]
            self.assertEqual(self.get(d, '/healthz')[0], 200)
            self.assertTrue(d.ask('status')['ok'])
            for s in idle:
                s.close()

    def test_the_page_in_a_browser(self):
        chromium = shutil.which('chromium') or shutil.which('chromium-browser')
        if chromium is None:
            self.skipTest('no chromium')
        with Daemon('--metrics-listen', '127.0.0.1:0', config=PUPPETS) as d, tempfile.TemporaryDirectory() as profile:
            d.puppet('<i>vm</i>-1', mapped=1 << 30, resident=1 << 29, p99=2500000)
            d.puppet('redis', mapped=1 << 28, resident=1 << 28)
            run = subprocess.run([chromium, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={profile}',
                                  '--virtual-time-budget=3000', '--dump-dom', f'http://127.0.0.1:{self.tcp(d)[1]}/'],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=rig.DEADLINE, check=False)
            if run.returncode != 0 or '<html' not in run.stdout:
                self.skipTest('chromium does not run here: ' + run.stderr[-200:])
            self.assertIn('&lt;i&gt;vm&lt;/i&gt;-1', run.stdout)
            self.assertIn('512 MiB of 1.0 GiB', run.stdout)
            self.assertEqual(run.stdout.count('class="region"'), 4)
            self.assertEqual(run.stdout.count('class="strip"'), 4)
            self.assertIn('id="lost" role="alert" style="display: none;"', run.stdout)


if __name__ == '__main__':
    rig.main()

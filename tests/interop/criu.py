#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A redis is dumped by the real CRIU, restored with `uffd-pagerd criu`, and asked whether it still has all that it had.

    criu.py UFFD_PAGERD [TREE]

CRIU and redis are those of a Debian tree: TREE, which is made if it is not there, and stays; or one in a temporary directory, which is
removed.  They run in namespaces of their own with that tree as the root (to be dumped a program may have nothing open that is outside);
uffd-pagerd runs outside, as it would.  This file is both sides: the one in the tree is started with --inside.

Each round is a dump, a restore and something that redis does while its pages still come:

    digest    it is asked for the digest of all data
    bgsave    it forks, and the child writes everything to a file; that is loaded, and the digest asked for
    flushall  it throws everything away, and gives memory back to the kernel
    killed    it is killed
"""
import os
import subprocess
import sys
import time

if '--inside' not in sys.argv:
    import tempfile  # python3-minimal has none

SUITE = 'trixie'
PACKAGES = 'criu,procps,python3-minimal,redis-server'
ROUNDS = ['digest', 'bgsave', 'flushall', 'killed']
SOCKET = '/tmp/redis.sock'
IMAGES = '/srv/images'  # the same directory is CRIU's for work

# As a mount and PID namespace of its own begins: no /dev of the host's, but nodes like those.
ENTER = r'''
set -eu
tree=$1
shift
mount --bind "$tree" "$tree"
cd "$tree"
mount -t proc proc proc
mount -t tmpfs tmpfs dev
for node in null zero full random urandom tty userfaultfd; do
	cp -a "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p .outside
pivot_root . .outside
cd /
umount -l /.outside
exec "$@"
'''


def run(*command, seconds=120, **more):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=seconds, **more)


def fail(what):
    print('interop: ' + what, flush=True)
    sys.exit(1)


# --- in the tree ---

def cli(*command):
    done = run('redis-cli', '-s', SOCKET, *command)
    return done.stdout.strip()


def until(what, is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            fail('within %d s not: %s' % (seconds, what))
        time.sleep(0.02)


def start_redis(null):
    redis = subprocess.Popen(
        ['redis-server', '--unixsocket', SOCKET, '--port', '0', '--save', '', '--dir', '/srv', '--logfile', '/srv/redis.log',
         '--enable-debug-command', 'local'], stdin=null, stdout=null, stderr=null, start_new_session=True)
    until('redis answers', lambda: cli('ping') == 'PONG')
    cli('debug', 'populate', '200000', 'key', '400')
    return redis


def criu(verb, *options):
    log = verb + '.log'
    done = run('criu', verb, '-D', IMAGES, '-W', IMAGES, '-v4', '-o', log, *options)
    if done.returncode != 0:
        tail = run('tail', '-n', '20', IMAGES + '/' + log).stdout
        fail('criu %s: exit status %d\n%s%s' % (verb, done.returncode, done.stdout, tail))


def saved():
    info = cli('info', 'persistence')
    return 'rdb_bgsave_in_progress:0' in info and 'rdb_last_bgsave_status:ok' in info


def same(was):
    now = cli('debug', 'digest')
    if now != was or len(was) != 40:
        fail('the digest was %s, and is %s' % (was, now))


def what_redis_does(kind, digest):
    if kind == 'bgsave':
        cli('bgsave')
        until('saved', saved)
        same(digest)
        if cli('debug', 'reload', 'nosave') != 'OK':
            fail('what the child has written can not be loaded')
    if kind == 'flushall':
        cli('flushall')
        cli('memory', 'purge')
        if cli('dbsize') != '0':
            fail('it is not empty')
        cli('debug', 'populate', '200000', 'key', '400')
    same(digest)
    cli('shutdown', 'nosave')


def inside(rounds):
    null = open('/dev/null', 'r+')
    for kind in rounds:
        run('rm', '-rf', IMAGES)
        os.mkdir(IMAGES)
        redis = start_redis(null)
        digest = cli('debug', 'digest')
        criu('dump', '-t', str(redis.pid), '--ext-unix-sk')
        redis.wait(30)
        print('dumped', flush=True)
        sys.stdin.readline()
        criu('restore', '--lazy-pages', '-d', '--ext-unix-sk')
        if kind == 'killed':
            os.kill(redis.pid, 9)
        else:
            what_redis_does(kind, digest)
        until('redis is gone', lambda: cli('ping') != 'PONG')
        print('done', flush=True)


# --- outside ---

def make_tree(tree):
    if os.path.exists(tree + '/usr/sbin/criu'):
        return
    print('interop: debootstrap %s into %s' % (SUITE, tree), flush=True)
    try:
        done = run('debootstrap', '--variant=minbase', '--include=' + PACKAGES, SUITE, tree, seconds=1800)
    except FileNotFoundError:
        fail('debootstrap is not installed')
    if done.returncode != 0:
        fail('debootstrap: exit status %d (is the mirror out of reach?)\n%s' % (done.returncode, done.stdout[-2000:]))


def expect(process, word):
    line = process.stdout.readline().strip()
    if line != word:
        fail('%s is wanted, not: %s\n%s' % (word, line, process.stdout.read()))


def one_round(kind, pagerd, images, process):
    expect(process, 'dumped')
    log = tempfile.TemporaryFile('w+')
    server = subprocess.Popen([pagerd, 'criu', '--images-dir', images, '--work-dir', images], stderr=log)
    try:
        until('uffd-pagerd listens', lambda: os.path.exists(images + '/lazy-pages.socket') or server.poll() is not None)
        if server.poll() is not None:
            fail('uffd-pagerd has ended with %d' % server.returncode)
        process.stdin.write('go\n')
        process.stdin.flush()
        expect(process, 'done')
        status = server.wait(60)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        log.seek(0)
        print('\n'.join('  ' + line for line in log.read().splitlines()), flush=True)
    if status != 0:
        fail('%s: uffd-pagerd has ended with %d' % (kind, status))
    print('interop: %s: as it should be' % kind, flush=True)


def outside(pagerd, tree):
    if os.geteuid() != 0:
        fail('namespaces and CRIU need root')
    make_tree(tree)
    with open(__file__, encoding='utf-8') as own, open(tree + '/srv/inside.py', 'w', encoding='utf-8') as copy:
        copy.write(own.read())
    process = subprocess.Popen(
        ['unshare', '--mount', '--pid', '--fork', '--kill-child', '--propagation', 'private', 'sh', '-c', ENTER, 'sh', tree,
         'python3', '/srv/inside.py', '--inside', *ROUNDS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for kind in ROUNDS:
            one_round(kind, pagerd, tree + IMAGES, process)
        if process.wait(30) != 0:
            fail('the tree\'s side has ended with %d' % process.returncode)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def main():
    if len(sys.argv) > 1 and sys.argv[1] == '--inside':
        inside(sys.argv[2:])
    elif len(sys.argv) == 3:
        outside(sys.argv[1], os.path.abspath(sys.argv[2]))
    elif len(sys.argv) == 2:
        with tempfile.TemporaryDirectory(prefix='uffd-pager-interop.') as tree:
            outside(sys.argv[1], tree)
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main()

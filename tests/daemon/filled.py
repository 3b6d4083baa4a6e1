#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Memory that a daemon fills: as a microVM of Firecracker has it, or a task that CRIU restores.

    filled.py make DIR SEED                     the snapshot, DIR/memfile, and the images of a checkpoint, DIR/images
    filled.py firecracker|criu|sent SOCKET DIR SEED  says "there" once it is served, looks at its pages until a line comes, then at all of them: 0 if none is wrong
"""
import array
import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import select
import socket
import struct
import sys

PAGE = 4096
NPAGES = 8192
TASK = 77
USERFAULTFD = 323  # x86_64
UFFDIO_API, UFFDIO_REGISTER = 0xc018aa3f, 0xc020aa00
FORK, REMAP, REMOVE, UNMAP = 1 << 1, 1 << 2, 1 << 3, 1 << 6
MODE_MISSING = 1
PRESENT, LAZY = 4, 2
DEADLINE = 60


# ---- files ----

def content(seed):
    return random.Random(seed).randbytes(NPAGES * PAGE)


def varint(n):
    out = b''
    while n >= 0x80:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


def message(*fields):
    """Pairs of a number and what it is: an integer, or a message."""
    return b''.join(varint(k << 3 | 2) + varint(len(v)) + v if isinstance(v, bytes) else varint(k << 3) + varint(v) for k, v in fields)


def image(path, *words):
    """Magic numbers, then messages behind their lengths, as CRIU 4.1.1 writes them."""
    with open(path, 'wb') as f:
        for w in words:
            f.write(struct.pack('<I', w) if isinstance(w, int) else struct.pack('<I', len(w)) + w)


def make(where, seed):
    images = where + '/images'
    os.mkdir(images)
    for path in (where + '/memfile', images + '/pages-1.img'):
        with open(path, 'wb') as f:
            f.write(content(seed))
    image(images + '/inventory.img', 0x58313116, message((1, 2), (2, 1)))
    image(images + '/pstree.img', 0x54564319, 0x50273030, message((1, TASK), (2, 1), (3, TASK), (4, TASK), (5, TASK)))


def make_task(images, address):
    """Where its memory is: known once the process is there."""
    image(images + f'/pagemap-{TASK}.img', 0x54564319, 0x56084025, message((1, 1)), message((1, address), (2, NPAGES), (4, LAZY | PRESENT)))
    vma = message((1, address), (2, address + NPAGES * PAGE), (3, 0), (4, 0), (5, 3), (6, 0x22), (7, 0x201), (8, 1))
    image(images + f'/mm-{TASK}.img', 0x54564319, 0x57492820, message((1, 0x400000), (14, vma)))


# ---- memory ----

class Memory:
    def __init__(self, features, seed):
        libc = ctypes.CDLL(None, use_errno=True)
        self.uffd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.uffd < 0:
            print('skip: userfaultfd:', errno.errorcode[ctypes.get_errno()], flush=True)
            sys.exit(0)
        fcntl.ioctl(self.uffd, UFFDIO_API, bytearray(struct.pack('<QQQ', 0xaa, features, 0)))
        self.map = mmap.mmap(-1, NPAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof((ctypes.c_char * (NPAGES * PAGE)).from_buffer(self.map))
        fcntl.ioctl(self.uffd, UFFDIO_REGISTER, bytearray(struct.pack('<QQQQ', self.address, NPAGES * PAGE, MODE_MISSING, 0)))
        self.now = bytearray(content(seed))  # what is to be there
        self.wrong = self.looks = 0

    def look(self, page, n=1):
        at = slice(page * PAGE, (page + n) * PAGE)
        self.looks += n
        if self.map[at] != self.now[at]:
            self.wrong += 1
            print(f'pages [{page}, {page + n}) are not what they should be', flush=True)

    def write(self, page, byte):
        self.map[page * PAGE:(page + 1) * PAGE] = self.now[page * PAGE:(page + 1) * PAGE] = bytes([byte]) * PAGE

    def remove(self, page, n):
        self.map.madvise(mmap.MADV_DONTNEED, page * PAGE, n * PAGE)
        self.now[page * PAGE:(page + n) * PAGE] = bytes(n * PAGE)

    def ask_child(self, pages):
        pid = os.fork()
        if pid == 0:
            self.wrong = 0
            for p in pages:
                self.look(p)
            os._exit(self.wrong != 0)
        self.wrong += os.waitpid(pid, 0)[1] != 0

    def use(self, rnd, forks):
        """Until there is a line to be read."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            what = rnd.random()
            page = rnd.randrange(NPAGES - 16)
            if what < 0.01 and forks:
                self.ask_child([rnd.randrange(NPAGES) for _ in range(8)])
            elif what < 0.06:
                self.remove(page, rnd.randrange(1, 16))
            elif what < 0.2:
                self.write(page, rnd.randrange(256))
            else:
                self.look(page)
        self.look(0, NPAGES)
        print(f'{self.looks} looks, {self.wrong} wrong', flush=True)
        return self.wrong != 0


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(DEADLINE)
    s.connect(path)
    return s


def give(s, data, fd):
    s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])


def firecracker(path, _where, seed):
    m = Memory(REMOVE, seed)
    s = connect(path)
    give(s, json.dumps([{'base_host_virt_addr': m.address, 'size': NPAGES * PAGE, 'offset': 0, 'page_size': PAGE,
                         'page_size_kib': PAGE}]).encode(), m.uffd)
    m.look(0)
    print('there', flush=True)
    return m.use(random.Random(seed), False)


def criu(path, where, seed, at_once=False):
    m = Memory(FORK | REMAP | REMOVE | UNMAP, seed)
    make_task(where + '/images', m.address)
    if at_once:
        print('there', flush=True)
    s = connect(path)
    s.send(struct.pack('<i', TASK))
    give(s, b'\0', m.uffd)
    os.close(m.uffd)
    if not at_once:
        m.look(0)
    s.send(struct.pack('<I', 0x52535446))
    if at_once:
        s.close()
    else:
        print('there', flush=True)
    return m.use(random.Random(seed), True)


def sent(path, where, seed):
    """All is said before anybody has read it: says "there" before the first word of it."""
    return criu(path, where, seed, True)


if __name__ == '__main__':
    if sys.argv[1] == 'make':
        make(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit({'firecracker': firecracker, 'criu': criu, 'sent': sent}[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4])))

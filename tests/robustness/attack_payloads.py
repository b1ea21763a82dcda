"""Code that a malicious pickle runs: each tries one way out of the sandbox and returns what it got.

A payload is the body of a function. It may use ``secret_file``, ``canary``, ``port``, ``abstract`` and ``token``. It
returns evidence of success, or raises, or returns ``"blocked"``. `call` makes system calls by number.
"""

from __future__ import annotations

PRELUDE = """
import ctypes, os, sys, socket, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"system call {arguments[0]} returned {result}"
def first(*actions):
    for action in actions:
        try:
            return action()
        except (OSError, ValueError, MemoryError) as error:
            last = error
    raise last
"""

INSIDE: dict[str, str] = {
    # programs
    "os.system": "code = os.system(f'touch {canary}')\nreturn 'blocked' if code else 'ran a shell'",
    "subprocess": "import subprocess\nreturn subprocess.check_output(['/bin/sh', '-c', f'touch {canary}; id'])",
    "posix_spawn": "return os.posix_spawn(sys.executable, [sys.executable, '-c', 'pass'], {})",
    "execve-python": "os.execve(sys.executable, [sys.executable, '-c', f'open({canary!r}, \"w\")'], {})",
    "execve-loader": "os.execve('/lib64/ld-linux-x86-64.so.2', ['ld', '/bin/true'], {})",
    "memfd-execveat": "fd = call(319, b'x', 0)\nreturn fd",
    "fork": "pid = os.fork()\nif not pid:\n    open(canary, 'w')\n    os._exit(0)\nreturn 'forked'",
    "fork-bomb": "n = 0\nwhile n < 5000:\n    if not os.fork():\n        time.sleep(1)\n    n += 1\nreturn f'forked {n}'",
    "vfork": "return call(58)",
    "clone3": "return call(435, ctypes.create_string_buffer(88), 88)",
    "multiprocessing": "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()\nreturn 'started'",
    # what belongs to the user
    "read-secret": "return open(secret_file).read()",
    "read-ssh": "return first(*[lambda p=p: open(os.path.join(p, '.ssh/id_rsa')).read() for p in (home, '/root', "
    "os.path.expanduser('~'))])",
    "read-passwd": "return open('/etc/passwd').read()",
    "read-shadow": "return open('/etc/shadow').read()",
    "read-environ": "return token if token_name in os.environ else 'blocked'",
    "read-proc-environ": "return first(*[lambda p=p: open(f'/proc/{p}/environ').read() for p in (1, 2, 3, 'self')])",
    "read-proc-root": "return os.listdir('/proc/1/root')",
    "list-home": "return os.listdir(home)",
    "see-argv": "return 'token in argv' if token in ' '.join(sys.orig_argv) else 'blocked'",
    "open-by-handle": "handle = ctypes.create_string_buffer(b'\\x08\\0\\0\\0\\x01\\0\\0\\0\\x02\\0\\0\\0\\0\\0\\0\\0', 64)\n"
    "return call(304, -100, handle, 0)",
    # writing
    "write-canary": "open(canary, 'w').write('x')\nreturn 'wrote'",
    "write-library": "import json\nreturn open(json.__file__, 'a').write('x')",
    "write-site": "return open(sys.path[-1] + '/evil.pth', 'w').write('import os')",
    "write-own-code": "return open('/code/mango/security/inside/main.py', 'a').write('x')",
    "write-root": "return open('/evil', 'w').write('x')",
    "write-input": "return first(lambda: open('/input', 'r+b').write(b'x'), *[lambda d=d: os.write(d, b'x') for d in "
    "range(3, 64) if d != answers], lambda: os.truncate('/input', 0))",
    "chmod-input": "return first(lambda: os.chmod('/input', 0o777), *[lambda d=d: os.fchmod(d, 0o777) for d in range(3, "
    "64) if d != answers])",
    "truncate-descriptors": "return first(*[lambda d=d: os.ftruncate(d, 0) for d in range(64) if d != answers])",
    "reopen-descriptor": "return first(*[lambda d=d: os.open(f'/proc/self/fd/{d}', os.O_RDWR) for d in range(64)])",
    "rename-over": "return os.rename('/input', '/tmp/x')",
    "symlink": "os.symlink(secret_file, '/tmp/link')\nreturn 'linked'",
    "hard-link": "os.link('/input', '/tmp/hard')\nreturn 'linked'",
    "fifo": "os.mkfifo('/tmp/fifo')\nreturn 'made'",
    "device-node": "os.mknod('/tmp/mem', 0o20666, os.makedev(1, 1))\nreturn 'made'",
    "open-devices": "return first(*[lambda d=d: os.open(d, os.O_RDWR) for d in ('/dev/mem', '/dev/kmsg', '/dev/tty', "
    "'/dev/vda', '/dev/sda', '/dev/ptmx', '/dev/fuse', '/dev/null', '/dev/urandom')])",
    "disk-fill": "total = 0\ntry:\n    for n in range(64):\n        with open(f'/tmp/{n}', 'wb') as f:\n"
    "            for _ in range(32):\n                total += f.write(bytes(1 << 20))\nexcept OSError:\n    pass\n"
    "return f'wrote {total}' if total > 80 << 20 else 'blocked'",
    # network
    "connect-tcp": "socket.create_connection(('127.0.0.1', port), 1).send(b'x')\nreturn 'connected'",
    "send-udp": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('127.0.0.1', port))\nreturn 'sent'",
    "connect-abstract": "s = socket.socket(socket.AF_UNIX)\ns.connect(abstract)\nreturn 'connected'",
    "socketpair": "return str(socket.socketpair())",
    "raw-and-netlink": "return first(*[lambda f=f: str(socket.socket(f, socket.SOCK_RAW)) for f in (2, 16, 17, 38, 40)])",
    "listen": "s = socket.socket()\ns.bind(('0.0.0.0', 0))\nreturn 'bound'",
    "http": "import urllib.request\nreturn urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=1).read()",
    # the kernel
    "io_uring": "return call(425, 8, ctypes.create_string_buffer(120))",
    "user-namespace": "return call(272, 0x10000000)",
    "all-namespaces": "return first(*[lambda f=f: call(272, f) for f in (0x20000, 0x40000000, 0x4000000, 0x8000000)])",
    "clone-namespace": "return call(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "setns": "return call(308, 0, 0)",
    "mount": "return call(165, b'tmpfs', b'/tmp', b'tmpfs', 0, 0)",
    "new-mount-calls": "return first(lambda: call(428, -100, b'/', 1), lambda: call(430, b'tmpfs', 0), lambda: call(429, "
    "0, b'', 0, b'', 0))",
    "umount-pivot-chroot": "return first(lambda: call(166, b'/tmp', 2), lambda: call(155, b'/', b'/'), lambda: "
    "os.chroot('/tmp'))",
    "ptrace": "return first(lambda: call(101, 16, 1, 0, 0), lambda: call(101, 16, os.getppid(), 0, 0), lambda: "
    "call(101, 0, 0, 0, 0))",
    "process-memory": "return first(lambda: call(310, 1, 0, 0, 0, 0, 0), lambda: call(311, 1, 0, 0, 0, 0, 0))",
    "pidfd": "return first(lambda: call(434, 1, 0), lambda: call(438, 0, 0, 0))",
    "bpf": "return call(321, 0, ctypes.create_string_buffer(128), 128)",
    "perf": "return call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)",
    "userfaultfd": "return call(323, 0)",
    "keyrings": "return first(lambda: call(250, 0, -3, 0), lambda: call(248, b'user', b'x', b'y', 1, -3))",
    "modules-kexec": "return first(lambda: call(175, 0, 0, b''), lambda: call(313, 0, b'', 0), lambda: call(246, 0, 0, 0, "
    "0), lambda: call(320, 0, 0, 0, 0, 0))",
    "reboot-swap-clock": "return first(lambda: call(169, 0xfee1dead, 672274793, 0), lambda: call(167, b'/tmp/x', 0), "
    "lambda: call(170, b'evil', 4), lambda: call(227, 0, ctypes.create_string_buffer(16)))",
    "setuid": "return first(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: "
    "os.setresuid(0, 0, 0))",
    "capabilities": "return first(lambda: call(126, ctypes.create_string_buffer(8), ctypes.create_string_buffer(24)), "
    "lambda: call(157, 24, 21, 0, 0, 0), lambda: call(157, 47, 2, 21, 0, 0))",
    "new-filter": "return first(lambda: call(317, 1, 0, 0), lambda: call(157, 22, 2, 0, 0, 0))",
    "personality": "return call(135, 0x0040000)",
    "shared-memory": "return first(lambda: call(29, 0, 4096, 0o1777), lambda: call(68, 1, 0o1777), lambda: call(64, 1, 1, "
    "0o1777), lambda: call(240, b'/x', 0o100, 0o600, 0))",
    "tiocsti": "import fcntl\nreturn first(*[lambda d=d: fcntl.ioctl(d, 0x5412, b'x') for d in range(64)])",
    "tioclinux": "import fcntl\nreturn first(*[lambda d=d: fcntl.ioctl(d, 0x541C, b'\\2') for d in range(64)])",
    "inotify-fanotify": "return first(lambda: call(294, 0), lambda: call(300, 0, 0))",
    "host-name": "return 'the host has this name' if os.uname().nodename == host else 'blocked'",
    # others
    "kill-all": "os.kill(-1, 9)\nreturn 'killed'",
    "kill-parent": "return first(lambda: os.kill(os.getppid(), 9), lambda: os.kill(1, 9), lambda: os.killpg(0, 9))",
    "queue-signal": "return call(129, 1, 9, ctypes.create_string_buffer(128))",
    "see-processes": "return [p for p in os.listdir('/proc') if p.isdigit()]",
    "priority": "return first(lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(9)))",
    "raise-limits": "import resource\nreturn first(*[lambda n=n: resource.setrlimit(n, (-1, -1)) or f'raised {n}' for n in "
    "(resource.RLIMIT_DATA, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)])",
    "memory-bomb": "held = []\ntry:\n    while len(held) < 4096:\n        held.append(bytearray(b'x' * (1 << 20)))\n"
    "except MemoryError:\n    n, held = len(held), None\n    return 'blocked' if n < 1500 else f'took {n} MiB'\n"
    "return 'took 4 GiB'",
    "shared-memory-bomb": "import mmap\nm = mmap.mmap(-1, 3 << 30)\nreturn 'mapped'",
    "thread-bomb": "n = 0\ntry:\n    while n < 2000:\n        threading.Thread(target=time.sleep, args=(9,), "
    "daemon=True).start()\n        n += 1\nexcept RuntimeError:\n    return 'blocked' if n < 100 else f'started {n}'\n"
    "return f'started {n}'",
    "core-dump": "import resource\nreturn 'blocked' if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else 'core'",
}
"""Ways out that end with an exception or ``blocked``."""

DEADLY: dict[str, str] = {
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "quiet-exit": "os._exit(0)",
    "other-abi": "import mmap\nm = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "m.write(b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\xc3')\n"
    "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\nreturn 'made a 32-bit call'",
    "x32-abi": "return call(0x40000000 | 39)",
    "hang": "time.sleep(600)",
    "spin": "while True: pass",
    "never-ending-regex": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "stop-itself": "os.kill(os.getpid(), 19)\ntime.sleep(600)",
    # the pipe
    "flood": "while True: os.write(answers, b'x' * 65536)",
    "huge-file": "os.write(answers, b'S' + (2**60).to_bytes(8, 'little'))\nwhile True: os.write(answers, bytes(65536))",
    "lying-header": "os.write(answers, b'S' + (4096).to_bytes(8, 'little') + (2**62).to_bytes(8, 'little') + bytes(4088))",
    "half-a-file": "os.write(answers, b'S' + (4096).to_bytes(8, 'little') + bytes(100))\nos._exit(0)",
    "drip": "os.write(answers, b'S' + (4096).to_bytes(8, 'little'))\n"
    "while True:\n    os.write(answers, b' ')\n    time.sleep(0.2)",
    "many-reports": "while True: os.write(answers, b'J' + (2).to_bytes(8, 'little') + b'{}')",
    "deep-report": "t = b'[' * 100000\nos.write(answers, b'J' + len(t).to_bytes(8, 'little') + t)\nos._exit(0)",
    "terminal-escapes": "t = b'\\x1b]0;owned\\x07\\x1b[2J'\nos.write(answers, b'E' + len(t).to_bytes(8, 'little') + t)\n"
    "os._exit(0)",
    "closed-pipe": "os.close(answers)\ntime.sleep(600)",
    "again-locked": "t = b'{\"uid\": 0}'\nos.write(answers, b'R' + len(t).to_bytes(8, 'little') + t)\nos._exit(0)",
}
"""Ways to break the child itself, or to mislead or hold up the parent: the file is refused, within the time limit."""


def source(body: str, names: dict[str, object]) -> str:
    """Return a program that runs a payload and raises what it got, so that it comes back as the child's last words."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    given = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    find = "answers = next((d for d in range(3, 256) if _is_pipe(d)), -1)"
    return f"""{PRELUDE}
import stat
def _is_pipe(d):
    try:
        return stat.S_ISFIFO(os.fstat(d).st_mode)
    except OSError:
        return False
{find}
{given}
def attempt():
{indented}
try:
    got = attempt()
except BaseException as error:
    got = f"blocked: {{type(error).__name__}} {{error}}"
raise RuntimeError(f"ran inside, got <{{got}}>")
"""

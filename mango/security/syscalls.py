"""The system calls that a sandboxed child may make: a list of what is allowed, everything else fails."""

from __future__ import annotations

import functools
import os
import tempfile
import threading

from mango.errors import UnsafeFileError

_READING = """
    access brk clock_getres clock_gettime clock_nanosleep close close_range dup dup2 dup3 epoll_create1 epoll_ctl
    epoll_pwait epoll_wait eventfd2 exit exit_group faccessat faccessat2 fadvise64 fcntl fstat fstatfs futex getcwd
    getdents64 getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getrandom getresgid getresuid getrlimit
    getrusage getsid gettid gettimeofday getuid lseek lstat madvise mincore mprotect mremap munmap nanosleep
    newfstatat open openat pipe2 poll ppoll pread64 preadv preadv2 pselect6 read readlink readlinkat readv
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getparam sched_getscheduler sched_yield select
    sendfile set_robust_list set_tid_address setrlimit sigaltstack splice stat statfs statx sysinfo tgkill time times
    uname wait4 waitid write writev arch_prctl membarrier getcpu
"""
_SCRATCH = "fallocate fdatasync fsync ftruncate mkdir mkdirat pwrite64 rename renameat2 rmdir unlink unlinkat utimensat"
_STARTING = "execve landlock_add_rule landlock_create_ruleset landlock_restrict_self prctl prlimit64 seccomp"
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020080  # every namespace that clone can make
_TERMINAL_QUERIES = (0x5401, 0x5450, 0x5451)  # TCGETS, FIONCLEX, FIOCLEX: Python asks for them when it opens a file
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_EPERM, _ENOSYS = 1, 38
_importing = threading.Lock()
"""A thread that waits for an import that fails in another gets half a module from Python, and no error."""


@functools.cache
def filter_program(*, starting: bool) -> bytes:
    """Return the filter as the kernel takes it.

    What it leaves out, and so forbids, is the rest of the kernel: io_uring, namespaces and mounts, ptrace and other
    processes' memory, bpf, keyrings, perf events, userfaultfd, modules, kexec, sockets, signals to other processes,
    identities, clocks, terminals, new processes. System calls of another architecture end the process.

    Args:
        starting: also allow what bubblewrap and the child need until the child has locked itself: one program may
            be started, and locks set.

    Returns:
        Classic BPF instructions.

    Raises:
        UnsafeFileError: libseccomp or its Python binding is missing.
    """
    try:
        with _importing:
            import pyseccomp
    except ModuleNotFoundError as error:
        raise UnsafeFileError(
            "sandbox: pyseccomp is missing, so nothing is loaded; run: pip install 'mango-compose[security]'"
        ) from error
    except (RuntimeError, OSError) as error:
        raise UnsafeFileError(
            "sandbox: libseccomp is missing, so nothing is loaded; run: apt-get install libseccomp2"
        ) from error
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(_EPERM))
    for name in f"{_READING} {_SCRATCH} {_STARTING if starting else ''}".split():
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(pyseccomp.ALLOW, name)
    threads = _CLONE_THREAD | _CLONE_NEW
    rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, threads, _CLONE_THREAD))
    rules.add_rule(pyseccomp.ERRNO(_ENOSYS), "clone3")  # its flags lie in memory; the C library falls back to clone
    for flag in (_MAP_SHARED, _MAP_ANONYMOUS):  # not both: such memory would escape the limit on data
        rules.add_rule(pyseccomp.ALLOW, "mmap", pyseccomp.Arg(3, pyseccomp.MASKED_EQ, flag, 0))
    for request in _TERMINAL_QUERIES:
        rules.add_rule(pyseccomp.ALLOW, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, request))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def memory_file(name: str, content: bytes) -> int:
    """Return a descriptor of an anonymous file in memory that holds ``content`` and is read from its start."""
    descriptor = os.memfd_create(name, 0)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor

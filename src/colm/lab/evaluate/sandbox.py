"""Run a model-written program in a sandbox: limited time and memory, and no network."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

from colm.errors import ConfigError

OUTPUT_BYTES = 64 * 1024
"""Maximum output of a program; a program that prints more is stopped."""

SOURCE_BYTES = 100_000
"""Maximum length of a program; the kernel limits an argument to 128 KiB."""

STARTED = b"started"

# Runs in its own interpreter, since a process with threads may not change its namespaces. If a step fails, the
# launcher writes the reason to the status pipe and exits. The namespaces: user (so that no privilege is needed), mount,
# network (with no device up), pid (whose end kills every process in it), ipc. Exec drops the privileges over the
# mounts, so read-only mounts stay read-only. Process limits do not apply to root, and Unix sockets do not belong to a
# network: the system-call filter forbids new processes, threads and sockets of every kind.
_LAUNCHER = r"""
import ctypes, os, platform, resource, signal, struct, sys
source, memory, seconds, status, started = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5].encode()
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def refuse(why):
    os.write(status, why.encode())
    os._exit(1)

def need(result, what):
    if result < 0:
        refuse(f"{what}: {os.strerror(ctypes.get_errno())}")

CLONE_NEW = {"user": 0x10000000, "mount": 0x00020000, "network": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000}
need(libc.unshare(ctypes.c_int(sum(CLONE_NEW.values()))), "no namespaces")
READ_ONLY, NO_SETUID, NO_DEVICES, PRIVATE = 1, 2, 4, 1 << 18
attributes = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SETUID | NO_DEVICES, 0, PRIVATE, 0)
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
need(libc.syscall(ctypes.c_long(MOUNT_SETATTR), ctypes.c_int(AT_FDCWD), b"/", ctypes.c_uint(AT_RECURSIVE),
                  attributes, ctypes.c_size_t(32)), "no read-only files")
if os.fork():
    os.close(status)  # so that the pipe closes when the program begins
    os._exit(os.wait()[1] != 0)

SET_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 22, 38
need(libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "no signal at the parent's death")
limits = {"AS": memory, "CPU": seconds, "NPROC": 0, "FSIZE": 0, "NOFILE": 32, "CORE": 0}
for name, limit in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
# socket, socketpair, clone, clone3, fork, vfork, ptrace, unshare, setns, io_uring_setup
FORBIDDEN = {
    "x86_64": (0xC000003E, (41, 53, 56, 435, 57, 58, 101, 272, 308, 425)),
    "aarch64": (0xC00000B7, (198, 199, 220, 435, 117, 97, 268, 425)),
}
if platform.machine() not in FORBIDDEN:
    refuse(f"no filter of system calls for {platform.machine()}")
architecture, calls = FORBIDDEN[platform.machine()]
LOAD, EQUAL, AT_LEAST, RETURN, ALLOW, DENY = 0x20, 0x15, 0x35, 0x06, 0x7FFF0000, 0x00050001
OTHER_ABI = 0x40000000
rest = len(calls)
code = [(LOAD, 0, 0, 4), (EQUAL, 0, rest + 3, architecture), (LOAD, 0, 0, 0), (AT_LEAST, rest + 1, 0, OTHER_ABI)]
code += [(EQUAL, rest - place, 0, call) for place, call in enumerate(calls)]
code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(instructions)))
need(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no end of privileges")
need(libc.prctl(SET_SECCOMP, 2, program, 0, 0), "no filter of system calls")
os.write(status, started)
os.close(status)
os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", source], {})
"""

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def run_program(source: str, *, seconds: float = 5.0, memory_bytes: int = 512 * 2**20) -> str | None:
    """Return a Python program's output, or None if it fails, is not valid Python, or exceeds a limit.

    The program runs in its own process with only the standard library, an empty environment and an empty folder. It
    cannot open sockets, write or delete files, or start processes or threads. It can read everything that its user can
    read: the sandbox guards against accidents in model-written code, not against an attacker.

    Args:
        source: the program.
        seconds: limit on wall time, and on CPU time.
        memory_bytes: limit on its address space.

    Raises:
        ConfigError: the sandbox cannot be set up on this machine; nothing has been run.

    ``run_program("print(6 * 7)")`` is ``"42\\n"``.
    """
    if not 0 < seconds <= 3600:
        raise ConfigError(f"seconds={seconds} must be above 0 and at most 3600.")
    if not sys.platform.startswith("linux"):
        raise _refusal(f"the sandbox needs Linux, and this is {sys.platform}")
    try:
        compile(source, "program", "exec")
        encoded = source.encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None
    if len(encoded) > SOURCE_BYTES or b"\0" in encoded:
        return None
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        return _run(source, folder, seconds, memory_bytes)


def find_program(completion: str) -> str | None:
    """Return the Python program in a completion: its last fenced block or the whole text; None without a program.

    Only a text that compiles and prints something counts.

    >>> find_program("So:\\n```python\\nprint(2 + 3)\\n```")
    'print(2 + 3)\\n'
    >>> find_program("The answer is 5.") is None
    True
    """
    for text in [*reversed(_FENCED.findall(completion)), completion]:
        if "print(" in text:
            try:
                compile(text, "program", "exec")
            except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
                continue
            return str(text)
    return None


def _run(source: str, folder: str, seconds: float, memory_bytes: int) -> str | None:
    status, writes = os.pipe()
    numbers = [str(memory_bytes), str(int(seconds) + 1), str(writes), STARTED.decode()]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, source, *numbers],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        pass_fds=[writes],
        start_new_session=True,
    ) as process:
        os.close(writes)
        deadline = time.monotonic() + seconds
        try:
            said = os.read(status, 4096)
            if said != STARTED:
                raise _refusal(said.decode(errors="replace") or "the program's process did not start")
            assert process.stdout is not None
            printed = _read(process.stdout.fileno(), deadline)
            if printed is None or process.wait(max(0.0, deadline - time.monotonic())):
                return None
        except subprocess.TimeoutExpired:
            return None
        finally:
            os.close(status)
            if process.poll() is None:  # otherwise the id may be reused; its exit has ended its children
                os.killpg(process.pid, signal.SIGKILL)
    return printed.decode(errors="replace")


def _read(file: int, deadline: float) -> bytes | None:
    """Return all output, or None if there is none, too much, or no end in time."""
    printed = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([file], [], [], left)[0]:
            return None
        part = os.read(file, 65536)
        if not part:
            return printed or None
        printed += part
        if len(printed) > OUTPUT_BYTES:
            return None
    return None


def _refusal(why: str) -> ConfigError:
    return ConfigError(
        f"Programs cannot be sandboxed on this machine ({why}), so none is run. Remove --run-programs, or run where "
        "user namespaces are allowed."
    )

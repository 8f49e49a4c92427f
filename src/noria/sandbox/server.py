"""Runs INSIDE the sandbox: forks a warm child for each job, waits, and lets another child report what was left.

Only the standard library; sent to the sandboxed interpreter as source text, together with `leavings.py`, which lays out
and reads a job's workspace. Its stdin is a Unix socket: jobs come in (9 bytes of header, then JSON), and reports go
out, one JSON object a line, with two files of memory: the result and the output. This process runs no candidate's code,
and reads no job and nothing that one left: the child that is forked for a job reads it, and another reads the
workspace. So its memory, which every child inherits, holds nothing of earlier candidates, and it can't be harmed by
what they leave behind.

In bubblewrap it is process 1 of its own PID namespace: signals from candidates can't end it, and after each job it
kills whatever is still alive. Without namespaces (`landlock` in the setup) it adopts orphans and kills its descendants.

The result is bytes that only the caller outside parses; a candidate that writes its own result has merely chosen its
return values. It is told the arguments of its calls and never what is expected of them.
"""

import base64
import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys

from noria.sandbox.leavings import empty, holds_anything, read_workspace, write_file

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 4, 22, 2
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38
LANDLOCK_ADD_RULE, LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 445, 444, 446
HEADER = struct.Struct("!QB")  # length of the job; 1 where the files left in the workspace are wanted
RESULT_FD = 3

libc = ctypes.CDLL(None, use_errno=True)


class FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class Ended(Exception):
    """The other side has closed the pipe."""


def main():
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    requests = os.dup(0)
    replies = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(0))
    setup = json.loads(read_line(requests))
    if not setup["landlock"] and os.getpid() != 1:
        sys.exit("the sandbox server must be process 1 of its own PID namespace")
    signal.signal(
        signal.SIGINT, signal.SIG_DFL if os.getpid() == 1 else signal.SIG_IGN
    )  # the default of process 1: ignored
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    setup["filters"] = {name: load_filter(base64.b64decode(raw)) for name, raw in setup["filters"].items()}
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    warm_up()
    gc.collect()
    gc.freeze()  # children share these pages until they write
    reply(replies, {"ready": True, "uid": os.getuid()})
    try:
        while True:
            length, collect = HEADER.unpack(read_exactly(requests, HEADER.size))
            serve(setup, requests, replies, length, collect)
    except Ended:
        end_all_others()


WARM_SOURCE = """
import collections, functools, itertools, math, string
def f(numbers):
    total = sum(n * n for n in numbers if n % 2)
    return sorted({str(n): [n, total] for n in numbers}.items())
"""


def warm_up():
    """Compiles, calls and serialises once: what the first use initialises is then shared by every child (4 ms each)."""
    os.get_exec_path({"PATH": "/"})  # imports what `execvpe` does
    json.dumps(call_function({"source": WARM_SOURCE, "entry": "f", "calls": [[[1, 2, 3]]]}))


def serve(setup, requests, replies, length, collect):
    result_fd, output_fd = os.memfd_create("result"), os.memfd_create("output")
    told, tell = os.pipe()  # the child says here that it is set up; a candidate has no hold of it
    pid = os.fork()
    if pid == 0:
        run_child(setup, requests, length, result_fd, output_fd, tell)
    os.close(tell)
    wall_expired = not wait_for(pid, requests, setup["limits"]["wall_seconds"])
    if wall_expired:
        os.kill(pid, signal.SIGKILL)
    if os.getpid() != 1:
        end_group(pid)  # before it is reaped: until then its number is nobody else's
    _, status, usage = os.wait4(pid, 0)
    end_all_others()
    code = os.waitstatus_to_exitcode(status)
    is_set_up = os.read(told, 1)
    os.close(told)
    if not is_set_up and not wall_expired:
        sys.exit("a job could not be read or set up")
    seen = {"exit": code, "wall_expired": wall_expired, "cpu_expired": cpu_limit_ended(code, usage, setup["limits"])}
    if collect and holds_anything(setup["folders"][0]):
        reporter = os.fork()
        if reporter == 0:
            seen.update(read_workspace(setup["folders"][0], setup["limits"]["workspace_bytes"] // 2))
            reply(replies, seen, result_fd, output_fd)
            os._exit(0)
        if os.waitpid(reporter, 0)[1] != 0:
            sys.exit("the report on a job could not be made")
    else:
        reply(replies, seen, result_fd, output_fd)
    os.close(result_fd)
    os.close(output_fd)
    for folder in setup["folders"]:
        empty(folder)


def run_child(setup, requests, length, result_fd, output_fd, tell):
    try:
        job = json.loads(read_exactly(requests, length))
        for path, content in job["files"].items():
            write_file(os.path.join(setup["folders"][0], path), base64.b64decode(content))
        os.write(tell, b"1")
    except BaseException:  # noqa: BLE001  our fault, not the candidate's: nothing is told, and the server gives up
        os._exit(1)
    try:
        confine(setup, job, result_fd, output_fd)
        if job["argv"] is not None:
            execute(job["argv"], setup)
        outcome = call_function(job)
        sys.stdout.flush()
        payload = json.dumps(outcome).encode()
        while payload:
            payload = payload[os.write(RESULT_FD, payload) :]
    except BaseException as error:  # noqa: BLE001  whatever the candidate raised, SystemExit too, is its outcome
        text = json.dumps({"error": describe(error)}).encode()
        try:
            os.ftruncate(RESULT_FD, 0)
            os.pwrite(RESULT_FD, text, 0)
        except OSError:
            os._exit(71)  # not even the error could be written: no result
        os._exit(70)
    os._exit(0)


def execute(argv, setup):
    try:
        os.execvpe(argv[0], argv, setup["environment"])
    except (OSError, ValueError) as error:
        os.write(2, (argv[0] + ": " + str(error)).encode("utf-8", "replace"))
        os._exit(127)


def call_function(job):
    names = {"__name__": "candidate"}
    exec(compile(job["source"], "candidate", "exec"), names)
    function = names.get(job["entry"])
    if not callable(function):
        return {"error": "NameError: the source defines no function " + repr(job["entry"])}
    return {"values": [function(*arguments) for arguments in job["calls"]]}


def describe(error):
    try:
        return (type(error).__name__ + ": " + str(error))[:500]
    except BaseException:  # noqa: BLE001  the candidate's own __str__ may raise anything
        return "an error that can't be shown"


def confine(setup, job, result_fd, output_fd):
    """From here on only what a candidate may."""
    limits, is_function = setup["limits"], job["argv"] is None
    os.setpgid(0, 0)  # a session of its own would cost a group of the scheduler; the sandbox is one already
    kept_result = os.dup(result_fd)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.dup2(kept_result, RESULT_FD)
    os.chdir(setup["folders"][0])
    if setup["landlock"]:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        restrict_files(setup["landlock"])
        drop_capabilities()
    os.closerange(RESULT_FD + 1 if is_function else RESULT_FD, 1 << 16)
    if setup["address_space"]:
        set_limit(resource.RLIMIT_AS, limits["memory_bytes"])
    # SIGXCPU at the limit, SIGKILL a second later for who ignores it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
    set_limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    set_limit(resource.RLIMIT_NOFILE, limits["open_files"])
    if not setup["counted"]:  # a control group counts them for this sandbox alone; this counts all of the user's
        set_limit(resource.RLIMIT_NPROC, limits["processes"])
    set_limit(resource.RLIMIT_CORE, 0)
    set_limit(resource.RLIMIT_MEMLOCK, 0)
    for name in setup["for_functions"] if is_function else setup["for_commands"]:
        program = setup["filters"][name]
        if program and libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program[0]), 0, 0) != 0:
            os._exit(72)


def set_limit(which, amount):
    resource.setrlimit(which, (amount, amount))


def load_filter(raw):
    """(struct sock_fprog, its buffer) ready for prctl; None where this architecture has no filter."""
    if not raw:
        return None
    buffer = ctypes.create_string_buffer(raw, len(raw))
    return FilterProgram(len(raw) // 8, ctypes.cast(buffer, ctypes.c_void_p)), buffer


def restrict_files(landlock):
    """Landlock (landlock(7)): `paths` maps a path to the rights beneath it; every other right is refused."""
    attributes = struct.pack("=QQQ", landlock["files"], landlock["network"], landlock["scopes"])[: landlock["size"]]
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path, rights in landlock["paths"].items():
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, fd)
        if ruleset < 0 or libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0) != 0:
            os._exit(72)
        os.close(fd)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        os._exit(72)
    os.close(ruleset)


def drop_capabilities():
    """A real root without them still owns what root owns: the filters and Landlock keep it from that."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    if libc.capset(header, none) != 0:
        os._exit(72)


def cpu_limit_ended(exit_code, usage, limits):
    """The kernel counts ticks against the limit but reports run time: on a busy machine the two differ by much."""
    return exit_code == -signal.SIGXCPU or (
        exit_code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime > limits["cpu_seconds"] / 2
    )


def wait_for(pid, requests, seconds):
    """Whether the process ended in time. Should the other side close the pipe meanwhile, everything ends."""
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(requests, 0)  # tells of a closed pipe only
    try:
        ready = poller.poll(seconds * 1000)
        if any(fd == requests for fd, _ in ready):
            os.kill(pid, signal.SIGKILL)
            raise Ended
        return bool(ready)
    finally:
        os.close(pidfd)


def end_all_others():
    """Kill and reap everything else in this PID namespace, or without one every descendant."""
    while True:
        try:
            if os.getpid() == 1:
                with contextlib.suppress(ProcessLookupError):  # nobody is left to kill, but perhaps to reap
                    os.kill(-1, signal.SIGKILL)
            else:
                while os.waitpid(-1, os.WNOHANG)[0] != 0:
                    pass  # those that have ended already
                for pid in children():
                    end_group(pid)
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def end_group(pid):
    """A process and its group at once, or a bomb would fork faster than one after the other can be killed."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(pid) != os.getpgid(0):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)


def children():
    """The processes whose parent this is; orphans of its descendants become so (it is their reaper)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/" + entry + "/stat", "rb") as stream:
                    parent = int(stream.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue  # it has ended meanwhile
            if parent == os.getpid():
                found.append(int(entry))
    return found


def reply(channel, report, *fds):
    line = memoryview(json.dumps(report).encode() + b"\n")
    sent = socket.send_fds(channel, [line], fds) if fds else 0
    channel.sendall(line[sent:])


def read_exactly(fd, length):
    """In a buffer of its own, which nothing else in this process has held."""
    read = bytearray()
    while len(read) < length:
        chunk = os.read(fd, min(length - len(read), 1 << 20))
        if not chunk:
            raise Ended
        read += chunk
    return bytes(read)


def read_line(fd):
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(fd, 1)
    return line


main()

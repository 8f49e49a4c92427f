"""Runs INSIDE the sandbox as its process 1: for each job it forks a warm child, waits, and reports what the child left.

Only the standard library; sent to the sandboxed interpreter as source text. Jobs come in on stdin and reports go out on
stdout, one JSON object a line. No candidate code ever runs in this process. Being process 1 of its own PID namespace,
signals from candidates can't end it, and after each job it kills whatever is still alive.

The child's result is read back as bytes that only the caller outside parses; a candidate that writes its own result has
merely chosen its return values. It is told the arguments of its calls and never what is expected of them.
"""

import base64
import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import stat
import sys

WORK = "/work"
PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 4, 22, 2
RESULT_FD = 3

libc = ctypes.CDLL(None, use_errno=True)


class FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def main():
    if os.getpid() != 1:
        sys.exit("the sandbox server must be process 1 of its own PID namespace")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as process 1 the default means: ignored
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    setup = json.loads(requests.readline())
    filters = {name: load_filter(base64.b64decode(raw)) for name, raw in setup["filters"].items()}
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    warm_up()
    gc.collect()
    gc.freeze()  # children share these pages until they write
    reply(replies, {"ready": True, "uid": os.getuid()})
    for line in requests:
        reply(replies, handle(json.loads(line), filters))


WARM_SOURCE = """
import collections, functools, itertools, math, string
def f(numbers):
    total = sum(n * n for n in numbers if n % 2)
    return sorted({str(n): [n, total] for n in numbers}.items())
"""


def warm_up():
    """Compiles, calls and serialises once: what the first use initialises is then shared by every child (4 ms each)."""
    json.dumps(call_function({"source": WARM_SOURCE, "entry": "f", "calls": [[[1, 2, 3]]]}))


def reply(stream, report):
    stream.write(json.dumps(report).encode() + b"\n")
    stream.flush()


def load_filter(raw):
    """(struct sock_fprog, its buffer) ready for prctl; None where this architecture has no filter."""
    if not raw:
        return None
    buffer = ctypes.create_string_buffer(raw, len(raw))
    return FilterProgram(len(raw) // 8, ctypes.cast(buffer, ctypes.c_void_p)), buffer


def handle(job, filters):
    limits = job["limits"]
    for path, content in job["files"].items():
        write_file(path, base64.b64decode(content))
    result_fd, output_fd = os.memfd_create("result"), os.memfd_create("output")
    pid = os.fork()
    if pid == 0:
        run_child(job, limits, filters, result_fd, output_fd)
    wall_expired = not wait_for(pid, limits["wall_seconds"])
    if wall_expired:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    end_all_others()
    result = read_all(result_fd, limits["file_bytes"] + 1)
    report = {
        "exit": os.waitstatus_to_exitcode(status),
        "command": job["argv"] is not None,
        "wall_expired": wall_expired,
        "cpu_expired": cpu_limit_ended(os.waitstatus_to_exitcode(status), usage, limits["cpu_seconds"]),
        "result": base64.b64encode(result).decode(),
        "output": base64.b64encode(read_all(output_fd, limits["output_bytes"])).decode(),
    }
    os.close(result_fd)
    os.close(output_fd)
    if job["collect"]:
        report.update(read_workspace(limits))
    empty_workspace()
    return report


def run_child(job, limits, filters, result_fd, output_fd):
    try:
        confine(limits, filters.get(job["filter"]), result_fd, output_fd, keep_result=job["argv"] is None)
        if job["argv"] is not None:
            execute(job["argv"])
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


def execute(argv):
    try:
        os.execvpe(argv[0], argv, {"PATH": "/usr/bin:/bin", "HOME": WORK, "LANG": "C.UTF-8"})
    except OSError as error:
        os.write(2, (argv[0] + ": " + error.strerror).encode())
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


def confine(limits, seccomp_filter, result_fd, output_fd, keep_result):
    os.setsid()
    kept_result = os.dup(result_fd)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.dup2(kept_result, RESULT_FD)
    os.closerange(RESULT_FD + 1 if keep_result else RESULT_FD, 1 << 16)
    os.chdir(WORK)
    set_limit(resource.RLIMIT_AS, limits["memory_bytes"])
    # SIGXCPU at the limit, SIGKILL a second later for who ignores it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
    set_limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    set_limit(resource.RLIMIT_NOFILE, limits["open_files"])
    set_limit(resource.RLIMIT_NPROC, limits["processes"])
    set_limit(resource.RLIMIT_CORE, 0)
    set_limit(resource.RLIMIT_MEMLOCK, 0)
    if seccomp_filter is not None:
        if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(seccomp_filter[0]), 0, 0) != 0:
            os._exit(72)


def set_limit(which, amount):
    resource.setrlimit(which, (amount, amount))


def cpu_limit_ended(exit_code, usage, cpu_seconds):
    """The kernel counts ticks against the limit but reports run time: on a busy machine the two differ by much."""
    return exit_code == -signal.SIGXCPU or (
        exit_code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime > cpu_seconds / 2
    )


def wait_for(pid, seconds):
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        return bool(poller.poll(seconds * 1000))
    finally:
        os.close(pidfd)


def end_all_others():
    """As process 1: kill and reap everything else in this PID namespace."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nobody is left
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def read_all(fd, limit):
    return os.pread(fd, limit, 0)


def write_file(path, content):
    full = os.path.join(WORK, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as stream:
        stream.write(content)


def read_workspace(limits):
    """Regular files only, never through a symbolic link, sorted; what was left out is named with its reason."""
    files, skipped, total = {}, {}, 0
    for folder, folders, names in os.walk(WORK, followlinks=False):
        folders.sort()
        for name in sorted(names + [f for f in folders if os.path.islink(os.path.join(folder, f))]):
            path = os.path.relpath(os.path.join(folder, name), WORK)
            try:
                fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                skipped[path] = error.strerror
                continue
            info = os.fstat(fd)
            total += info.st_size
            if not stat.S_ISREG(info.st_mode):
                skipped[path] = "not a regular file"
            elif total > limits["workspace_bytes"]:
                skipped[path] = "workspace_bytes reached"
            else:
                files[path] = base64.b64encode(os.pread(fd, info.st_size, 0)).decode()
            os.close(fd)
    return {"files": files, "skipped": skipped}


def empty_workspace():
    for entry in os.scandir(WORK):
        if entry.is_dir(follow_symlinks=False):
            for folder, folders, _ in os.walk(entry.path):  # a candidate may have taken its own folders' permissions
                for name in folders:
                    if not os.path.islink(os.path.join(folder, name)):
                        os.chmod(os.path.join(folder, name), 0o700)
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


main()

"""Small seccomp filters (classic BPF) that close kernel doors which namespaces leave open.

`outer_filter` holds for everything in the sandbox: no sockets, tracing, io_uring, perf, bpf, mounts, namespaces, keys
or System V IPC (which would outlive a candidate). `inner_filter` is added in a candidate's own process before its code
runs: no new process, no exec, no signal to anyone. Numbers are from the kernel's tables for x86_64 and aarch64.
"""

from __future__ import annotations

import struct

# name -> (x86_64, aarch64); None where the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "socket": (41, 198),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
DENIED_TO_FUNCTIONS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
DENIED_TO_SINGLE_COMMANDS = {name: DENIED_TO_FUNCTIONS[name] for name in ("fork", "vfork")}

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
CLONE_NEW_NAMESPACES = 0x7E020000
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000

ALLOW, ERRNO_EPERM, ERRNO_ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, ARGUMENT_0_AT = 0, 4, 16  # offsets in struct seccomp_data; the low word comes first on both


def outer_filter(machine: str) -> bytes:
    """The filter of the whole sandbox, as an array of struct sock_filter; empty bytes on an architecture not listed."""
    clone_rule = [(JUMP_ANY_BIT, 0, 1, CLONE_NEW_NAMESPACES), (RETURN, 0, 0, ERRNO_EPERM)]
    return _program(machine, DENIED, clone_rule)


def inner_filter(machine: str) -> bytes:
    """The additional filter of a candidate function: it can start threads and nothing else."""
    return _program(machine, DENIED_TO_FUNCTIONS, _threads_only())


def single_command_filter(machine: str) -> bytes:
    """The additional filter of a command where no limit on the number of processes can be enforced: no fork."""
    return _program(machine, DENIED_TO_SINGLE_COMMANDS, _threads_only())


def _threads_only() -> list[tuple[int, int, int, int]]:
    return [(JUMP_ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, ERRNO_EPERM)]


def _program(
    machine: str, denied: dict[str, tuple[int | None, int | None]], clone_rule: list[tuple[int, int, int, int]]
) -> bytes:
    if machine not in AUDIT_ARCH:
        return b""
    column = list(AUDIT_ARCH).index(machine)
    lines = [
        (LOAD, 0, 0, ARCH_AT),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),  # a call by another architecture's table would be numbered differently
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if machine == "x86_64":
        lines += [(JUMP_GREATER_EQUAL, 0, 1, X32_BIT), (RETURN, 0, 0, ERRNO_EPERM)]
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            lines += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO_EPERM)]
    # clone3 hides its flags behind a pointer: "no such call" makes libc fall back to clone, whose flags can be read.
    lines += [(JUMP_EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ERRNO_ENOSYS)]
    lines += [(JUMP_EQUAL, 0, 1 + len(clone_rule), CLONE[machine]), (LOAD, 0, 0, ARGUMENT_0_AT), *clone_rule]
    lines += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)

"""Small seccomp filters (classic BPF) that close kernel doors which namespaces leave open.

`outer_filter` holds for everything in the sandbox: no sockets, tracing, io_uring, perf, bpf, mounts, namespaces, keys,
System V IPC (which would outlive a candidate), and no change to another process's limits or priority (the sandbox's
server runs under the same user). `inner_filter` is added in a candidate's own process before its code runs: no new
process, no exec, no signal to anyone. Numbers are from the kernel's tables for x86_64 and aarch64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

Numbers = tuple[int | None, int | None]
Instruction = tuple[int, int, int, int]

# name -> (x86_64, aarch64); None where the architecture has no such call.
DENIED: dict[str, Numbers] = {
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
    "syslog": (103, 116),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_mrelease": (448, 448),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    "open_tree_attr": (467, 467),
}
# Allowed on oneself, which these spell 0.
DENIED_ON_OTHERS: dict[str, Numbers] = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
# What neither Landlock nor a read-only mount of a device governs: permissions, owners, times, attributes, watches.
DENIED_TO_OWNERS: dict[str, Numbers] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
}
DENIED_TO_FUNCTIONS: dict[str, Numbers] = {
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
SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE: Numbers = (56, 220)
CLONE3: Numbers = (435, 435)
CLONE_NEW_NAMESPACES = 0x7E020000
CLONE_THREAD = 0x00010000
AF_UNIX = 1
X32_BIT = 0x40000000

ALLOW, ERRNO_EPERM, ERRNO_ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, ARGUMENT_0_AT = 0, 4, 16  # offsets in struct seccomp_data; the low word comes first on both

REFUSE: Instruction = (RETURN, 0, 0, ERRNO_EPERM)
# What decides a call by its first argument, which is loaded: refuse, or fall through to be allowed.
NO_NAMESPACES: tuple[Instruction, ...] = ((JUMP_ANY_BIT, 0, 1, CLONE_NEW_NAMESPACES), REFUSE)
THREADS_ONLY: tuple[Instruction, ...] = ((JUMP_ANY_BIT, 1, 0, CLONE_THREAD), REFUSE)
UNIX_ONLY: tuple[Instruction, ...] = ((JUMP_EQUAL, 1, 0, AF_UNIX), REFUSE)
ONESELF_ONLY: tuple[Instruction, ...] = ((JUMP_EQUAL, 1, 0, 0), REFUSE)


def outer_filter(machine: str, *, unix_sockets: bool = False, owner: bool = False, signals: bool = True) -> bytes:
    """The filter of the whole sandbox, as an array of struct sock_filter; empty bytes on an architecture not listed.

    With `unix_sockets`, sockets of that one family can be made: they reach no further than the sandbox's own files and
    network namespace. For an `owner` of files of the host that can be reached, it also refuses to change permissions,
    owners, times and attributes; without `signals` (a kernel that can't keep those inside) every signal to a process.
    """
    denied = DENIED | DENIED_TO_OWNERS if owner else DENIED
    if not signals:
        denied = denied | {name: DENIED_TO_FUNCTIONS[name] for name in SIGNALS}
    rules = [(CLONE, NO_NAMESPACES), *((numbers, ONESELF_ONLY) for numbers in DENIED_ON_OTHERS.values())]
    if unix_sockets:
        rules.append((denied["socket"], UNIX_ONLY))
        denied = {name: numbers for name, numbers in denied.items() if name != "socket"}
    return _program(machine, denied, rules)


def inner_filter(machine: str) -> bytes:
    """The additional filter of a candidate function: it can start threads and nothing else."""
    return _program(machine, DENIED_TO_FUNCTIONS, [(CLONE, THREADS_ONLY)])


def single_command_filter(machine: str) -> bytes:
    """The additional filter of a command where no limit on the number of processes can be enforced: no fork."""
    return _program(machine, DENIED_TO_SINGLE_COMMANDS, [(CLONE, THREADS_ONLY)])


def _program(
    machine: str, denied: Mapping[str, Numbers], rules: Iterable[tuple[Numbers, tuple[Instruction, ...]]]
) -> bytes:
    if machine not in AUDIT_ARCH:
        return b""
    column = list(AUDIT_ARCH).index(machine)
    lines: list[Instruction] = [
        (LOAD, 0, 0, ARCH_AT),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),  # a call by another architecture's table would be numbered differently
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if machine == "x86_64":
        lines += [(JUMP_GREATER_EQUAL, 0, 1, X32_BIT), REFUSE]
    for numbers in denied.values():
        if (number := numbers[column]) is not None:
            lines += [(JUMP_EQUAL, 0, 1, number), REFUSE]
    # clone3 hides its flags behind a pointer: "no such call" makes libc fall back to clone, whose flags can be read.
    lines += [(JUMP_EQUAL, 0, 1, CLONE3[column] or 0), (RETURN, 0, 0, ERRNO_ENOSYS)]
    for numbers, rule in rules:
        if (number := numbers[column]) is not None:
            lines += [(JUMP_EQUAL, 0, len(rule) + 2, number), (LOAD, 0, 0, ARGUMENT_0_AT), *rule, (RETURN, 0, 0, ALLOW)]
    lines += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)

"""What a process that runs a program under test may not do. Standard library alone: worker.py loads it by its folder.

Two fences stand one behind the other.

The audit hook is a guard against accidents. It says PermissionError where Python code asks for the network, another
process, a file to write, or a file to read that is not Python's own. Whoever means to gets around it: it lives in the
process that it watches.

The kernel is the security. A seccomp filter refuses what leaves the process: every new process (threads are free),
signals, sockets, opening a file to write, changing or removing one, namespaces, tracing. It cannot be taken off, holds
for root, too, whose capabilities are dropped first, and needs no right that a container lacks, as network and user
namespaces do. Limits of memory, processor time and open files go with it. RLIMIT_NPROC does not: it counts all
processes of a user, and does not bind root. Reading files is left to the hook, but for other processes' memory and
descriptors: those of a process that called `hide` are not to be read.
"""

import ctypes
import errno
import math
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterator

OPEN_FILES = 64
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CAPABILITY_VERSION = 0x20080522

# The kernel's filter ------------------------------------------------------------------------------------------------

# The numbers of system calls, x86-64 and arm64 (-1: it has no such call).
CAPSET = (126, 91)
CLONE = (56, 220)
OPENS = {"open": (2, -1, 1), "openat": (257, 56, 2)}  # and which argument holds the flags
# The C library falls back from these to calls whose flags a filter can see.
UNKNOWN = {"clone3": (435, 435), "openat2": (437, 437)}
REFUSED = {
    # other processes
    **{"fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281)},
    **{"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424)},
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "ptrace": (101, 117)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438)},
    **{"setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140), "prctl": (157, 167)},
    **{"setrlimit": (160, 164), "prlimit64": (302, 261), "sched_setaffinity": (203, 122)},
    **{"sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274)},
    **{"ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239), "kcmp": (312, 272)},
    # the network, and what outlives the process
    **{"socket": (41, 198), "socketpair": (53, 199), "shmget": (29, 194), "semget": (64, 190)},
    **{"msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    # files
    **{"creat": (85, -1), "truncate": (76, 45), "unlink": (87, -1), "unlinkat": (263, 35)},
    **{"rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, -1)},
    **{"mkdirat": (258, 34), "rmdir": (84, -1), "link": (86, -1), "linkat": (265, 37)},
    **{"symlink": (88, -1), "symlinkat": (266, 36), "mknod": (133, -1), "mknodat": (259, 33)},
    **{"chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)},
    **{"chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54)},
    **{"utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14)},
    **{"lremovexattr": (198, 15), "fremovexattr": (199, 16), "open_by_handle_at": (304, 265)},
    **{"fanotify_init": (300, 262), "quotactl": (179, 60), "chroot": (161, 51)},
    # ways around a filter
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39)},
    **{"pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241)},
    **{"userfaultfd": (323, 282), "personality": (135, 92), "modify_ldt": (154, -1)},
}
MACHINES = {
    "x86_64": (0, 0xC000003E),
    "aarch64": (1, 0xC00000B7),
}  # column above, architecture as audit.h names it
X32 = 0x40000000  # of x86-64's other table of calls
CLONE_THREAD = 0x10000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Classic BPF: (operation, to skip if true, to skip if false, operand).
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; little-endian
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def bpf(machine: str) -> Iterator[tuple[int, int, int, int]]:
    """The filter's instructions."""
    column, architecture = MACHINES[machine]
    yield LOAD, 0, 0, ARCHITECTURE
    # EQUAL, 1, 0: one instruction is skipped where it is equal, none where it is not. The numbers of calls are those of
    # one architecture: any other is killed.
    yield EQUAL, 1, 0, architecture
    yield RETURN, 0, 0, KILL
    yield LOAD, 0, 0, NUMBER
    if machine == "x86_64":
        yield AT_LEAST, 0, 1, X32
        yield RETURN, 0, 0, ERROR | errno.EPERM
    for calls, error in ((REFUSED, errno.EPERM), (UNKNOWN, errno.ENOSYS)):
        for numbers in calls.values():
            # Another call: over the line that refuses this one.
            if numbers[column] >= 0:
                yield EQUAL, 0, 1, numbers[column]
                yield RETURN, 0, 0, ERROR | error
    # A bit of an argument decides: a clone that is no thread, an open that may write.
    tested = [(CLONE[column], 0, CLONE_THREAD, False)]
    tested += [(one[column], one[2], WRITES, True) for one in OPENS.values() if one[column] >= 0]
    for number, argument, bits, refused in tested:
        # Another call: over the four lines. They load an argument where the call's number stood, and that again.
        yield EQUAL, 0, 4, number
        yield LOAD, 0, 0, ARGUMENTS + 8 * argument
        yield ANY_BIT, int(not refused), int(refused), bits
        yield RETURN, 0, 0, ERROR | errno.EPERM
        yield LOAD, 0, 0, NUMBER
    yield RETURN, 0, 0, ALLOW


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("true", ctypes.c_uint8),
        ("false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def _prctl(option: int, *arguments) -> int:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    given = [one if isinstance(one, ctypes._Pointer) else ctypes.c_ulong(one) for one in padded]
    return ctypes.CDLL(None, use_errno=True).prctl(option, *given)


def hide() -> None:
    """No process of the same user may read this one's memory or its open files, nor those of its children."""
    if sys.platform == "linux":
        _prctl(PR_SET_DUMPABLE, 0)


def by_kernel() -> bool:
    """Drops all capabilities and sets the filter; whether it holds."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        return False
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    ctypes.CDLL(None).syscall(CAPSET[MACHINES[machine][0]], header, (ctypes.c_uint32 * 6)())
    code = [_Instruction(*one) for one in bpf(machine)]
    program = ctypes.pointer(_Program(len(code), (_Instruction * len(code))(*code)))
    # The kernel takes a filter from an ordinary process only if that can gain no privileges any more.
    return _prctl(PR_SET_NO_NEW_PRIVS, 1) == 0 and _prctl(PR_SET_SECCOMP, 2, program) == 0


# The guard ----------------------------------------------------------------------------------------------------------

REFUSED_EVENTS = (
    *(
        "socket.",
        "subprocess.",
        "ctypes.",
        "pty.",
        "resource.",
        "fcntl.",
        "syslog.",
        "shutil.",
        "signal.pthread",
    ),
    *("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.remove", "os.rename"),
    *("os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.lchmod", "os.chown"),
    *("os.chflags", "os.utime", "os.setxattr", "os.removexattr"),
)


def guard() -> None:
    """The audit hook."""
    # The hook's own names: what a program does to os.path, or to this module, does not reach them.
    absolute, refused = os.path.abspath, REFUSED_EVENTS
    readable = tuple(
        os.path.join(absolute(folder), "") for folder in (*sys.path, "/usr/share/zoneinfo") if folder
    )
    devices = ("/dev/null", "/dev/urandom")

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(refused):
            raise PermissionError(f"a program under test may not: {event}")
        # A number is a descriptor that is open already.
        if event == "open" and not isinstance(arguments[0], int):
            path, _, flags = arguments
            path = absolute(path.decode(errors="replace") if isinstance(path, bytes) else str(path))
            if flags & WRITES or not (path.startswith(readable) or path in devices):
                raise PermissionError(f"a program under test may not open {path}")

    sys.addaudithook(hook)


def confine(cpu_s: float, memory_bytes: int) -> bool:
    """Limits this process for good. Returns: whether the kernel holds it, and not the guard alone."""
    limits = {resource.RLIMIT_CPU: math.ceil(cpu_s) + 1, resource.RLIMIT_NOFILE: OPEN_FILES}
    limits |= {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # macOS refuses address-space limits
        limits[resource.RLIMIT_AS] = memory_bytes
    for limit, most in limits.items():
        hard = resource.getrlimit(limit)[1]
        # A limit that the caller has already can be lowered, not raised.
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    held = by_kernel()
    guard()
    return held

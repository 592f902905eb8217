"""Processes of this machine, identified so that a process with a reused number is not taken for another."""

import os


def process_identity(pid: int) -> str:
    """A process as boot id/PID namespace/start time, without the last if it has ended. PIDs alone are reused.

    "" if the system does not expose them, or hides the process from this user (the option `hidepid` of /proc).
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot = stream.read().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # Linux cuts the command after 15 bytes, also within a letter
            # The fields after the command in parentheses: the state is the third field, the start time the 22nd.
            fields = stream.read().rpartition(b")")[2].split()
        start = "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        if _exists(pid):
            return ""
        start = ""
    return f"{boot}/{space}/{start}"


def _exists(pid: int) -> bool:
    """Whether there is a process, which may belong to another user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True

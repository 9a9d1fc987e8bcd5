"""Which GPUs a run is charged for, in energy and price. `visible`, `named`, `choose` are pure; `look` asks NVML."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import psutil
import pynvml

from harness.errors import HarnessError
from harness.model import Charged
from harness.process import Child, Gone

RISE_BYTES = 256 << 20
"""A CUDA context and the smallest model take more memory than this; other changes at an engine's start take less."""
LOOK_S = 15.0
"""Limit on the time to list the GPUs: a driver call may never return."""
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass(frozen=True, slots=True)
class Board:
    """A GPU as NVML lists it."""

    index: int
    uuid: str
    """Empty: the GPU does not answer."""
    name: str | None = None
    pci: str = ""
    """Bus id; `00000000:01:00.0`."""
    mig: tuple[str, ...] = ()
    """UUIDs of its MIG instances."""
    processes: tuple[int, ...] = ()
    """Process ids of compute processes. Empty in most containers, whatever runs."""
    memory_used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What is known of an engine's use of GPUs."""

    device: str
    """`EngineInfo.device`, or `unknown`."""
    count: int | None
    """Number of GPUs; None: not known."""
    processes: frozenset[int]
    """The engine's processes, as far as they can be seen."""
    started: bool
    """False for a server that ran before the harness began: its memory does not rise."""


def visible(boards: Sequence[Board], variables: Mapping[str, str]) -> tuple[Board, ...] | None:
    """The GPUs that CUDA shows to a process with these variables, in CUDA's order; None: the order is not known.

    CUDA_VISIBLE_DEVICES holds indices, unambiguous prefixes of UUIDs, and MIG instances. The first invalid entry ends
    the list; a repeated entry makes it empty (CUDA C++ Programming Guide, "CUDA Environment Variables", and
    torch.cuda._parse_visible_devices). Indices count in the order of PCI bus ids if CUDA_DEVICE_ORDER is PCI_BUS_ID.
    By default they count from the fastest GPU, an order that is known only if all GPUs are of one kind.
    """
    present = [board for board in boards if board.uuid]
    # NVML's order is that of the bus. A lost GPU keeps its place, and an index that means it is invalid.
    ordered = sorted(boards, key=lambda board: board.pci) if len(present) == len(boards) else boards
    in_order = variables.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({board.name for board in present}) < 2
    if (words := variables.get("CUDA_VISIBLE_DEVICES")) is None:
        return tuple(board for board in ordered if board.uuid) if in_order else None
    found: dict[str, Board] = {}
    for word in map(str.strip, words.split(",")):
        number = re.match(r"\+?\d+", word)  # as strtoul reads it: `1x` is 1
        if number and not in_order:
            return None
        index = int(number[0].lstrip("+0")[:9] or 0) if number else 0
        matches = ordered[index : index + 1] if number else _with_uuid(word, ordered)
        if len(matches) != 1 or not matches[0].uuid:
            break
        key = word if word.startswith("MIG-") else matches[0].uuid
        if key in found:
            return ()
        found[key] = matches[0]
    return tuple(dict.fromkeys(found.values()))


def named(words: Iterable[int | str], boards: Sequence[Board]) -> tuple[Board, ...]:
    """The GPUs with these indices (NVML's, as nvidia-smi prints them) or UUID prefixes, each once.

    HarnessError for a word that names no GPU, or more than one.
    """
    found: list[Board] = []
    for word in (str(word).strip() for word in words):
        matches = [board for board in boards if board.uuid and word == str(board.index)] or _with_uuid(word, boards)
        if len(matches) != 1:
            known = ", ".join(f"{board.index} ({board.uuid})" for board in boards if board.uuid)
            what = f"'{word}' names {len(matches)} GPUs" if matches else f"no GPU '{word}'"
            raise HarnessError(what, f"choose from {known}" if known else "NVML lists no GPU; omit --gpus")
        found += matches
    return tuple(dict.fromkeys(found))


def _with_uuid(word: str, boards: Iterable[Board]) -> list[Board]:
    """The GPUs whose UUID, or a MIG instance's UUID, begins with the word; once for each instance."""
    if word.startswith("MIG-GPU-"):  # drivers before R470: MIG-GPU-<UUID>/<GPU instance>/<compute instance>
        return [board for board in boards if word[4:].partition("/")[0] == board.uuid]
    uuids = [(uuid, board) for board in boards for uuid in (board.uuid, *board.mig)]
    return [board for uuid, board in uuids if word[:4] in ("GPU-", "MIG-") and uuid.startswith(word)]


def choose(
    before: Sequence[Board], after: Sequence[Board], use: Use, variables: Mapping[str, str], asked: Sequence[str] = ()
) -> Charged:
    """The GPUs to charge for an engine, from what NVML listed before and after its start.

    Those on which its processes run; else the first `count` that CUDA shows it, if the memory in use rose on each;
    else those that the user named (`asked`); else none. HarnessError if `asked` names no GPU.
    """
    by_user = named(asked, after)
    if use.device == "cpu":
        return Charged((), "the engine ran on the CPU")
    listed = visible(after, variables)
    if listed is None and use.count == len(present := tuple(board for board in after if board.uuid)):
        listed = present  # all of them, whatever their order
    shown = None if listed is None or use.count is None else listed[: use.count]
    if use.device == "none":
        return _charged(by_user or shown or (), "a simulated engine stands for one on the first visible GPU")
    running = [board for board in after if use.processes & {*board.processes}]
    if running and (use.count is None or len(running) >= use.count):
        return _charged(running, "the engine's processes run there", by_user)
    why = _doubt(use, shown, {board.uuid: board.memory_used_bytes for board in before})
    if why is None and shown:
        return _charged(shown, "CUDA shows them to the engine, and their memory in use rose at its start", by_user)
    if by_user:
        return _charged(by_user, "the user named them")
    return Charged((), f"NVML shows no process of the engine, and {why}")


def _doubt(use: Use, shown: Sequence[Board] | None, used: Mapping[str, int | None]) -> str | None:
    """Why the GPUs in CUDA's list may not be the engine's; None: the memory in use rose on all of them."""
    if not use.started:
        return "the server was not started by the harness"
    if use.count is None:
        return "the server does not report how many GPUs it uses"
    if shown is None or len(shown) < use.count:
        return f"the {use.count} that CUDA shows it first are not known ('CUDA_VISIBLE_DEVICES', GPUs of several kinds)"
    pairs = [(used.get(board.uuid), board.memory_used_bytes) for board in shown]
    rose = all(was is not None and now is not None and now - was >= RISE_BYTES for was, now in pairs)
    return None if rose else "memory in use did not rise on each GPU that CUDA shows it"


def _charged(boards: Sequence[Board], why: str, by_user: Sequence[Board] = ()) -> Charged:
    names = {board.name for board in boards}
    asked = () if {*by_user} == {*boards} else tuple(str(board.index) for board in by_user)
    name = names.pop() if len(names) == 1 else None
    return Charged(tuple(str(board.index) for board in boards), why, name, asked)


def look() -> tuple[Board, ...]:
    """The GPUs that NVML lists now, asked in another process; none without a driver, or if it hangs."""
    child = Child(send_boards)
    try:
        return child.receive(LOOK_S) or ()
    except Gone:
        return ()
    finally:
        child.end()


def send_boards(pipe: Connection) -> None:
    """The main function of the process that `look` starts."""
    try:
        pipe.send(tuple(board for board, _ in boards()))
    except pynvml.NVMLError:
        pipe.send(())


def boards() -> list[tuple[Board, Any]]:
    """Every GPU, once, with its handle; None for one that does not answer. Raises NVMLError without a driver."""
    pynvml.nvmlInit()
    found: dict[str, tuple[Board, Any]] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pci, memory = ask(handle, "nvmlDeviceGetPciInfo"), ask(handle, "nvmlDeviceGetMemoryInfo")
            bus, used = "" if pci is None else str(pci.busId), None if memory is None else int(memory.used)
            running = ask(handle, "nvmlDeviceGetComputeRunningProcesses") or ()
            processes, mig = tuple(process.pid for process in running), tuple(_instances(handle))
            uuid, name = str(pynvml.nvmlDeviceGetUUID(handle)), ask(handle, "nvmlDeviceGetName")
            board = Board(index, uuid, name, bus, mig, processes, used)
            found.setdefault(board.uuid, (board, handle))
        except pynvml.NVMLError:
            found[f"lost {index}"] = Board(index, ""), None
    return [*found.values()]


def _instances(handle: Any) -> Iterable[str]:
    """UUIDs of a GPU's MIG instances."""
    if (ask(handle, "nvmlDeviceGetMigMode") or (0, 0))[0]:
        for index in range(ask(handle, "nvmlDeviceGetMaxMigDeviceCount") or 0):
            if (instance := ask(handle, "nvmlDeviceGetMigDeviceHandleByIndex", index)) is not None:
                yield str(ask(instance, "nvmlDeviceGetUUID"))


def ask(handle: Any, function: str, *arguments: Any) -> Any:
    """Call a pynvml function for one GPU; None if the GPU or driver does not support it."""
    try:
        return getattr(pynvml, function)(handle, *arguments)
    except pynvml.NVMLError:
        return None


def descends(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or its descendant; False if that cannot be seen."""
    try:
        return pid == ancestor or ancestor in (parent.pid for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def processes_of(urls: Iterable[str]) -> tuple[frozenset[int], Mapping[str, str] | None]:
    """This process, the servers on this machine that listen at `urls`, and the descendants of both; and a server's
    environment variables. What may not be read is left out."""
    ports = {parts.port for url in urls if (parts := urlsplit(url)).hostname in LOOPBACK}
    roots = [psutil.Process()]
    with contextlib.suppress(psutil.Error):
        listening = [each for each in psutil.net_connections("tcp") if each.status == "LISTEN"] if ports else []
        roots += [psutil.Process(each.pid) for each in listening if getattr(each.laddr, "port", None) in ports]
    pids, variables = set[int](), None
    for root in roots:
        with contextlib.suppress(psutil.Error):
            pids |= {root.pid, *(child.pid for child in root.children(recursive=True))}
            variables = root.environ() if root.pid != roots[0].pid else variables
    return frozenset(pids), variables

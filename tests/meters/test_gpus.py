"""Which GPUs are charged: CUDA's list, the user's names, and the choice, each a table of cases by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from harness.errors import HarnessError
from harness.meters.gpus import Board, Use, choose, named, visible

GIB = 1 << 30
FOUR = tuple(Board(i, f"GPU-{letter}0-{i}", "H100", f"00000000:{i + 1:02X}:00.0") for i, letter in enumerate("aabc"))
"""UUIDs GPU-a0-0, GPU-a0-1, GPU-b0-2, GPU-c0-3."""
SHUFFLED = tuple(replace(board, pci=f"00000000:{9 - board.index:02X}:00.0") for board in FOUR)
"""NVML lists them in the opposite order of their PCI bus ids."""
MIXED = (*FOUR[:3], replace(FOUR[3], name="T4"))
MIG = (replace(FOUR[0], mig=("MIG-x1", "MIG-x2")), replace(FOUR[1], mig=("MIG-y1",)), *FOUR[2:])
LOST = (FOUR[0], Board(1, ""), *FOUR[2:])
PCI = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("boards", "words", "order", "seen"),
    [
        (FOUR, None, {}, [0, 1, 2, 3]),
        (FOUR, "", {}, []),  # set but empty: none
        (FOUR, "2", {}, [2]),
        (FOUR, "3,1", {}, [3, 1]),  # in the order of the list
        (FOUR, " 3 , 1", {}, [3, 1]),
        (FOUR, "0,-1,1", {}, [0]),  # -1 ends the list
        (FOUR, "1," + "9" * 5000, {}, [1]),
        (FOUR, "-1", {}, []),
        (FOUR, "0,9,1", {}, [0]),  # and so does an index without a GPU
        (FOUR, "0,x,1", {}, [0]),
        (FOUR, "1x,2", {}, [1, 2]),  # strtoul
        (FOUR, "1,1", {}, []),  # a repeated entry: CUDA reports no device
        (FOUR, "1,GPU-a0-1", {}, []),  # the same GPU by its UUID
        (FOUR, "GPU-c", {}, [3]),
        (FOUR, "GPU-b,GPU-c0-3", {}, [2, 3]),
        (FOUR, "GPU-b,GPU-a,GPU-c", {}, [2]),  # GPU-a begins two UUIDs: not unique, so the list ends
        (FOUR, "2,GPU-c0-3", {}, [2, 3]),
        (FOUR, "GPU-d,0", {}, []),
        (SHUFFLED, None, {}, [3, 2, 1, 0]),  # CUDA counts in the order of the bus
        (SHUFFLED, "0", PCI, [3]),
        (SHUFFLED, "GPU-a0-0", {}, [0]),  # a UUID needs no order
        (MIXED, None, {}, None),  # fastest first: which is GPU 0?
        (MIXED, "0", {}, None),
        (MIXED, "0", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, None),
        (MIXED, "0,3", PCI, [0, 3]),
        (MIXED, "GPU-c", {}, [3]),
        (MIXED, "", {}, []),
        (MIG, "MIG-y1", {}, [1]),
        (MIG, "MIG-x1,MIG-x2", {}, [0]),  # two instances of one board: its power counts once
        (MIG, "MIG-x", {}, []),  # not unique
        (MIG, "MIG-x1,MIG-x1", {}, []),
        (MIG, "MIG-GPU-b0-2/7/0", {}, [2]),  # the form of drivers before R470
        (MIG, "0", {}, [0]),
        (LOST, None, {}, [0, 2, 3]),
        (LOST, "3,2", {}, [3, 2]),  # the lost GPU keeps its place
        (LOST, "0,1,2", {}, [0]),
        ((), "0", {}, []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    boards: tuple[Board, ...], words: str | None, order: Mapping[str, str], seen: list[int] | None
) -> None:
    variables = order if words is None else {**order, "CUDA_VISIBLE_DEVICES": words}
    found = visible(boards, variables)
    assert (None if found is None else [board.index for board in found]) == seen


def test_a_user_names_gpus_by_index_or_uuid_each_once() -> None:
    assert named(["3", 1, " GPU-b", "GPU-c0-3"], FOUR) == (FOUR[3], FOUR[1], FOUR[2])
    assert named(["MIG-x2", "0"], MIG) == (MIG[0],)
    assert named(["0"], SHUFFLED) == (SHUFFLED[0],)  # NVML's index, not CUDA's
    with pytest.raises(HarnessError, match="no GPU '1'"):
        named(["1"], LOST)
    for wrong, what in (
        ("4", "no GPU '4'"),
        ("GPU-a", "'GPU-a' names 2 GPUs"),
        ("", "no GPU ''"),
        ("-1", "no GPU '-1'"),
    ):
        with pytest.raises(HarnessError, match=what):
            named([wrong], FOUR)


def after(boards: tuple[Board, ...] = FOUR, **of: Mapping[int, object]) -> tuple[Board, ...]:
    """The boards with fields changed, by index: `after(processes={2: (7,)})`."""
    return tuple(
        replace(board, **{name: values[board.index] for name, values in of.items() if board.index in values})  # type: ignore[arg-type]
        for board in boards
    )


IDLE = after(memory_used_bytes=dict.fromkeys(range(4), GIB))
LOADED_0 = after(IDLE, memory_used_bytes={0: 70 * GIB})
LOADED_01 = after(IDLE, memory_used_bytes={0: 70 * GIB, 1: 70 * GIB})
ONE = Use("cuda", 1, frozenset({7, 8}), started=True)
TWO = replace(ONE, count=2)
SERVER = Use("unknown", None, frozenset({7}), started=False)
SHOWS = {"CUDA_VISIBLE_DEVICES": "2,3"}


@pytest.mark.parametrize(
    ("then", "use", "variables", "asked", "charged", "differs"),
    [
        # The engine's processes decide, whatever else is said.
        (after(LOADED_0, processes={2: (7,)}), ONE, {}, None, [2], []),
        (after(IDLE, processes={2: (7, 7, 8), 3: (8,)}), TWO, {}, None, [2, 3], []),
        (after(IDLE, processes={1: (9,), 2: (7,)}), ONE, {}, None, [2], []),  # 9 is another tenant
        (after(IDLE, processes={2: (7,)}), ONE, {}, ["0"], [2], [0]),  # the user is contradicted
        (after(IDLE, processes={2: (7,)}), ONE, {}, ["2"], [2], []),
        (after(IDLE, processes={0: (7,), 1: (8,)}), ONE, {}, None, [0, 1], []),  # more than the engine says
        (after(IDLE, processes={3: (7,)}), SERVER, {}, None, [3], []),
        # One process of an engine on two GPUs: a number of another container's process. Memory decides.
        (after(LOADED_01, processes={3: (7,)}), TWO, {}, None, [0, 1], []),
        # No process is seen: CUDA's list, cut to the engine's count, if the memory rose on each.
        (LOADED_0, ONE, {}, None, [0], []),
        (LOADED_01, TWO, {}, None, [0, 1], []),
        (LOADED_01, ONE, {}, None, [0], []),  # another tenant started on GPU 1 meanwhile
        (LOADED_0, TWO, {}, None, None, []),  # GPU 1 is idle
        (LOADED_0, TWO, {}, ["0", "2"], [0, 2], []),
        (LOADED_0, ONE, {}, ["1"], [0], [1]),
        (LOADED_0, ONE, SHOWS, None, None, []),  # the list says 2: its memory did not rise
        (after(IDLE, memory_used_bytes={2: 9 * GIB}), ONE, SHOWS, None, [2], []),
        (after(IDLE, memory_used_bytes={2: GIB + (100 << 20)}), ONE, SHOWS, None, None, []),  # 100 MiB are no engine
        (after(IDLE, memory_used_bytes={2: None}), ONE, SHOWS, None, None, []),
        (LOADED_01, TWO, {"CUDA_VISIBLE_DEVICES": "0"}, None, None, []),  # CUDA shows one GPU to an engine of two
        (LOADED_0, ONE, {"CUDA_VISIBLE_DEVICES": ""}, None, None, []),
        # A server that was started elsewhere: the user, or nothing.
        (LOADED_0, replace(ONE, started=False), {}, None, None, []),
        (LOADED_0, replace(ONE, started=False), {}, ["0"], [0], []),
        (LOADED_0, SERVER, {}, None, None, []),
        (LOADED_0, SERVER, {}, ["0", "1", "GPU-a0-0"], [0, 1], []),
        (LOADED_0, Use("unknown", None, frozenset({7}), started=True), {}, None, None, []),  # how many?
        # An engine on the CPU is charged for none, whatever runs there.
        (after(LOADED_0, processes={0: (7,)}), replace(ONE, device="cpu"), {}, ["0"], [], []),
        # A simulated engine stands for an engine on one GPU.
        (IDLE, replace(ONE, device="none"), {}, None, [0], []),
        (IDLE, replace(ONE, device="none"), SHOWS, None, [2], []),
        (IDLE, replace(ONE, device="none"), {}, ["1", "3"], [1, 3], []),
        ((), ONE, {}, None, None, []),
    ],
)
def test_the_charged_gpus_follow_from_what_was_seen(
    then: tuple[Board, ...],
    use: Use,
    variables: Mapping[str, str],
    asked: list[str] | None,
    charged: list[int] | None,
    differs: list[int],
) -> None:
    """None: not known."""
    found = choose(IDLE, then, use, variables, asked or ())
    assert found.devices == tuple(map(str, charged or ()))
    assert found.asked == tuple(map(str, differs))
    assert ("NVML shows no process of the engine, and" in found.why) == (charged is None)
    assert found.name == ("H100" if charged else None)


def test_in_a_mixed_machine_the_list_is_known_only_if_all_are_used() -> None:
    loaded = after(MIXED, memory_used_bytes=dict.fromkeys(range(4), 9 * GIB))
    before = after(MIXED, memory_used_bytes=dict.fromkeys(range(4), 0))
    assert choose(before, loaded, replace(ONE, count=4), {}).devices == ("0", "1", "2", "3")
    assert choose(before, loaded, ONE, {}).devices == ()
    assert choose(before, loaded, ONE, PCI).devices == ("0",)
    assert choose(before, loaded, replace(ONE, count=4), {}).name is None  # of several kinds

"""The page of the gauntlet, from raw answers of the tools."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gauntlet.tools import PEERS
from gauntlet.trap import Answer, Trap, Verdict, Wrong, faults, judge
from places import ROOT

RAW = ROOT / "results/published/gauntlet"
MARKS = {"right": "right", "wrong": "**wrong**", "defined otherwise": "otherwise", "no result": "no result"}


@dataclass(frozen=True, slots=True)
class Row:
    """What one tool reported on one trap."""

    tool: str
    version: str
    trap: str
    setting: str
    command: str
    late_s: float
    """How late the stand itself was, at p95."""
    answers: Sequence[Answer]


def store(directory: Path, tool: str, rows: Sequence[Row], order: Sequence[str]) -> None:
    """Put rows into the tool's file in the place of those of the same trap and setting."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = {(row.trap, row.setting): row for row in (*load(directory).get(tool, ()), *rows)}
    lines = sorted(kept.values(), key=lambda row: (row.setting != "default", row.setting, order.index(row.trap)))
    text = "".join(json.dumps(_written(row)) + "\n" for row in lines)
    (directory / f"{tool}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def _written(row: Row) -> dict[str, object]:
    answers = [
        {
            "figures": {name: None if x is None else float(f"{x:.5g}") for name, x in sorted(answer.figures.items())},
            "findings": sorted(answer.findings),
            "refused": answer.refused,
        }
        for answer in row.answers
    ]
    names = ("tool", "version", "trap", "setting", "command", "late_s")
    return {name: getattr(row, name) for name in names} | {"answers": answers}


def load(directory: Path) -> dict[str, list[Row]]:
    """The stored rows, by tool."""
    found = {}
    for path in sorted(directory.glob("*.jsonl.gz")):
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        found[path.name.removesuffix(".jsonl.gz")] = [
            Row(**{**row, "answers": [Answer(**{**x, "findings": frozenset(x["findings"])}) for x in row["answers"]]})
            for row in rows
        ]
    return found


def verdict(trap: Trap, row: Row) -> tuple[Verdict, list[str]]:
    """The verdict on a row, with what is off."""
    if row.tool == "harness":
        off = [fault for answer in row.answers for fault in faults(trap, answer)]
        return ("wrong" if off else "right"), off
    return judge(trap, row.answers, PEERS[row.tool].defines)


BEGIN = """\
# The gauntlet

Benchmarks of known behaviour: each trap is a server, a meter, a load or a result file whose true figures are known, and
a tool passes where what it reports is true within the tolerance. Made by `scripts/gauntlet` from the answers in
`results/published/gauntlet`; the traps are in `tests/gauntlet/traps`, and CI runs this harness through all of them.

- **right**: every figure that the tool reports is true. This harness is also right where a finding says what is wrong.
- **wrong**: a figure is off, and the tool does not say so. The figure stands beside it.
- **otherwise**: a figure is off from this page's definition, but the tool's documentation defines it in another way.
- **no result**: the tool ended with an error, or none of its requests completed by its own count.
- a dash: not measured. The tool has none of the trap's figures, or cannot send its load.

Other tools are called with their default settings from Python's package index, and each is imported once for all traps.
Where a tool's rates are of the whole run, the true rate is what the server served from its first request to its last.

Definitions are those of [method.md](method.md). Each trap also catches at least one wrong tool that was made on
purpose: the last column of the second table.
"""


def page(traps: Sequence[Trap], directory: Path) -> str:
    """The text of docs/gauntlet.md, from a directory of raw answers; its file `conditions` is one sentence or more."""
    rows, conditions = load(directory), directory / "conditions"
    tools = [tool for tool in ("harness", *PEERS) if tool in rows]
    parts = [BEGIN]
    if tools:
        parts += ["## Verdicts\n", conditions.read_text() if conditions.exists() else ""]
        parts += [_verdicts(traps, rows, tools), ""]
    parts += ["## Traps\n", _described(traps)]
    settings = _settings(traps, rows)
    parts += ["\n## Recommended settings\n", *settings] if settings else []
    parts += ["\n## Tools\n", *(_tool(tool, rows[tool]) for tool in tools)] if tools else []
    return "\n".join(parts).rstrip("\n") + "\n"


def _verdicts(traps: Sequence[Trap], rows: Mapping[str, Sequence[Row]], tools: Sequence[str]) -> str:
    lines = ["| trap | " + " | ".join(tools) + " |", "|---" * (1 + len(tools)) + "|"]
    for trap in traps:
        found = [
            next((row for row in rows[tool] if (row.trap, row.setting) == (trap.name, "default")), None)
            for tool in tools
        ]
        lines.append(f"| {trap.name} | " + " | ".join("-" if row is None else _cell(trap, row) for row in found) + " |")
    return "\n".join(lines)


def _cell(trap: Trap, row: Row) -> str:
    word, off = verdict(trap, row)
    if word == "not measured":
        return "-"
    told = ": ".join((MARKS[word], *([", ".join(off)] if off and word != "right" else [])))
    return told.replace("|", r"\|")


def _described(traps: Sequence[Trap]) -> str:
    lines = [
        "| trap | behaviour | truth | what a wrong figure does | source | wrong tools that it catches |",
        "|---" * 6 + "|",
    ]
    for trap in traps:
        truths = [f"{truth.figure} {'n/a' if truth.value is None else f'{truth.value:.4g}'}" for truth in trap.truths]
        truths += [f"finding `{code}`" for code in trap.must_say]
        caught = [wrong.name if isinstance(wrong, Wrong) else wrong for wrong in trap.falls]
        cells = (trap.name, trap.behaviour, ", ".join(truths), trap.why, trap.source, ", ".join(caught))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _settings(traps: Sequence[Trap], rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """For each recommended setting, the traps on which it was tried and those on which it changes the verdict."""
    lines = []
    for tool, peer in PEERS.items():
        every = {(row.trap, row.setting): row for row in rows.get(tool, ())}
        for setting, words in peer.best.items():
            pairs = [(trap, every.get((trap.name, "default")), every.get((trap.name, setting))) for trap in traps]
            moved = [f"{trap.name} {_cell(trap, after)}" for trap, before, after in pairs
                     if before and after and verdict(trap, before)[0] != verdict(trap, after)[0]]  # fmt: skip
            if tried := [trap.name for trap, _, after in pairs if after]:
                said = "; ".join(moved) or "the same verdicts"
                lines.append(f"- {tool} with `{' '.join(words)}`, on {', '.join(tried)}: {said}.")
    return lines


def _tool(tool: str, rows: Sequence[Row]) -> str:
    if tool == "harness":
        return "**harness**: `harness run` and `harness import` of this checkout.\n"
    peer, first = PEERS[tool], rows[0]
    lines = [f"**{tool}** {first.version}, [definitions]({peer.source}). Called as:\n", f"    {first.command}\n"]
    if peer.note:
        lines.append(f"- {peer.note}.")
    names = {"*": "All figures"}
    lines += [f"- {names.get(figure, f'`{figure}`')}: {text}." for figure, text in peer.defines.items()]
    return "\n".join(lines) + "\n"

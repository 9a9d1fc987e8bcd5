"""Workloads, traces and prompts, found by name or path, and traces and prompts from the text of published files."""

import io
import itertools
import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from harness.config import AS_WRITTEN, Form, Values, checked, near
from harness.errors import HarnessError
from harness.files import PACKAGE, data_path, read_text
from harness.workload.arrivals import MOST, WHOLE, Load, Trace
from harness.workload.schema import FILL, MixedPart, Prompt, Prompts, Requests, Workload, parse_workload

_COLUMNS = (
    ("arrival_s", "input_tokens", "output_tokens"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ("Timestamp", "Request tokens", "Response tokens"),
)
"""Of the harness's own CSV, of Azure's public traces (dates with times), and of BurstGPT."""
_BLOCKS = tuple(16 << k for k in range(9))
"""Sizes of a trace's blocks: 16 tokens in Bailian's (vLLM's blocks), 512 in Mooncake's."""
_EPOCH_S = (1e9, 4e9)
"""Times since 1970 lie between these, in seconds: their size tells the unit of such timestamps."""
_PER_S = (1 / 60, 500.0)
"""Requests per second of a trace that is taken at its word; Azure's, Bailian's and Mooncake's have 2 to 100."""
_BURSTGPT_LEAST = 1 / 600
"""Its first hours have one request in a minute."""
_UNITS = {1.0: "seconds", 1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "nanoseconds"}
_TRACE_FORM = (
    f"expected CSV with the columns {' or '.join(','.join(names) for names in _COLUMNS)}, "
    "or JSON lines with timestamp,input_length,output_length"
)


def read_workload(name_or_path: str, overrides: Values = AS_WRITTEN, by: Mapping[str, str] = AS_WRITTEN) -> Workload:
    """The workload in a file, or else of that name in ./workloads, or else a shipped one of that name.

    A trace or prompts file named in the workload is first looked for in the workload's directory. HarnessError for an
    unknown workload, or a mistake in the file or the overrides (see `parse_workload`).
    """
    path = _find("workload", name_or_path, name_or_path.removesuffix(".yaml"), _workload_files())
    workload = parse_workload(read_text(path), str(path), overrides, by)
    requests = _beside(workload.requests, path.parent)
    if requests.parts:
        parts = tuple(_beside(part, path.parent) for part in requests.parts)
        requests = requests.model_copy(update={"parts": parts})
    return workload.model_copy(update={"requests": requests, "load": _beside(workload.load, path.parent)})


_Named = TypeVar("_Named", Requests, MixedPart, Load)


def _beside(spec: _Named, folder: Path) -> _Named:
    """`spec` with the path of each trace or prompts file that is in `folder`."""
    named = {key: folder / name for key in ("prompts", "trace") if (name := getattr(spec, key, None)) is not None}
    return spec.model_copy(update={key: str(path) for key, path in named.items() if _is_file(path)})


def read_files(workload: Workload) -> dict[str, Trace | Prompts | str]:
    """Name in the workload -> the trace or prompts of that name; a shipped text is named as in `FILL`."""
    prompts = {content.prompts for content in workload.requests.contents}
    files: dict[str, Trace | Prompts | str] = {
        name: read_prompts(name) if name in prompts else read_trace(name) for name in named_files(workload)
    }
    for fill in {content.fill for content in workload.requests.contents} - {None}:
        files[FILL.format(fill)] = read_text(data_path("texts") / f"{fill}.txt.gz")
    return files


def named_files(workload: Workload) -> dict[str, Path]:
    """Name in the workload -> the file of the trace or prompts of that name. HarnessError if there is no such trace."""
    contents = workload.requests.contents
    traces = {workload.load.trace, *(content.trace for content in contents)}
    found = {name: _trace_file(name) for name in traces if name is not None}
    return found | {name: Path(name) for content in contents if (name := content.prompts) is not None}


def list_workloads() -> tuple[tuple[str, str, str, str], ...]:
    """(name, requests, load, description) of the workloads that `read_workload` finds by name, sorted by name.

    The description of an invalid workload is its error.
    """
    rows = []
    for name, path in sorted(_workload_files().items()):
        try:
            workload = read_workload(str(path))
            requests, load = (part.model_dump(exclude_defaults=True) for part in (workload.requests, workload.load))
            rows.append((name, in_short(requests), in_short(load), workload.description))
        except HarnessError as error:
            rows.append((name, "", "", f"not usable: {error.what}"))
    return tuple(rows)


def read_trace(name_or_path: str) -> Trace:
    """A trace in a file, plain or .gz, or a shipped trace by name. HarnessError with file, line and column."""
    path = _trace_file(name_or_path)
    return parse_trace(read_text(path), path)


def read_prompts(path: str) -> Prompts:
    """The conversations of a prompts file. HarnessError with file and line for a mistake."""
    return parse_prompts(read_text(Path(path)), Path(path))


def _trace_file(name: str) -> Path:
    shipped = {file.name.removesuffix(".csv.gz"): file for file in data_path("traces").glob("*.csv.gz")}
    return _find("trace", name, name, shipped)


def _workload_files() -> dict[str, Path]:
    """Name -> file. The shipped ones are in the package's data in a wheel, and beside the package in a clone."""
    packaged = data_path("workloads")
    shipped = packaged if packaged.is_dir() else PACKAGE.parent / "workloads"
    return {file.stem: file for folder in (shipped, Path("workloads")) for file in sorted(folder.glob("*.yaml"))}


def _find(kind: str, asked: str, name: str, known: Mapping[str, Path]) -> Path:
    """The path `asked` if it is a file, or else the known file of that name. HarnessError if there is neither."""
    if _is_file(asked):
        return Path(asked)
    if name not in known:
        meant = f"did you mean '{asked}.yaml'? " if _is_file(f"{asked}.yaml") else near(Path(asked).stem, known)
        fix = f"{meant}give a file, or one of {', '.join(sorted(known))}"
        raise HarnessError(f"no {kind} '{asked:.80}'", fix)
    return known[name]


def _is_file(path: str | Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises OSError for a name that is too long


def in_short(spec: Mapping[str, Any]) -> str:
    """Keys and values of a part of a workload in one line, such as `closed, users 8` or `count 16, input_tokens 64`."""
    parts = []
    for key, value in sorted(spec.items(), key=lambda item: item[0] != "count"):
        if isinstance(value, dict):
            fixed = value.get("tokens", value.get("seconds")) if value.get("distribution") == "fixed" else None
            value = f"({in_short(value)})" if fixed is None else fixed
        elif isinstance(value, list | tuple):
            value = len(value)
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(shown if key in ("shape", "distribution") else f"{key} {shown}")
    return ", ".join(parts)


class _Line(BaseModel):
    """A line of a trace in Mooncake's form, which Bailian's traces have with other units."""

    model_config = ConfigDict(strict=True)

    timestamp: float
    input_length: float
    output_length: float
    hash_ids: list[Annotated[int, Field(ge=0, lt=2**63)]] = []


def parse_trace(text: str, path: Path) -> Trace:
    """A trace from CSV with one of the headers in `_COLUMNS`, or from JSON lines of Mooncake's or Bailian's form.

    Lines that begin with # at the top of a CSV are comments. Failed requests of a BurstGPT trace, which have no answer,
    are left out. HarnessError with file, line and column for a mistake.
    """
    notes = "".join(itertools.takewhile(lambda line: line.startswith("#"), io.StringIO(text)))
    ids, ends, size, unit_s = None, None, 512, 1.0
    if text.lstrip().startswith("{"):
        requests = _json_lines(_Line, text, path, _TRACE_FORM)
        rows = pd.DataFrame([dict(each) for each in requests.values()], list(requests))
        blocks = rows.pop("hash_ids")
        ids = np.array(list(itertools.chain.from_iterable(blocks)), np.int64)
        ends = np.cumsum([0, *map(len, blocks)])
        size = _block_tokens(rows["input_length"].to_numpy(float), np.diff(ends), path)
        times = rows["timestamp"].to_numpy(float)
        # Whole milliseconds with blocks of 512 tokens (Mooncake), or seconds with fractions and small blocks (Bailian).
        said = {1e-3 if np.all(times == np.floor(times)) else 1.0}
        if len(ids):
            said.add(1e-3 if size >= 128 else 1.0)
        since_1970 = [each_s for each_s in _UNITS if _EPOCH_S[0] <= times[0] * each_s < _EPOCH_S[1]]
        unit_s = since_1970[0] if since_1970 else _unit_s(times, said, path)
    else:
        rows = _csv_rows(text[len(notes) :], path, notes.count("\n") + 1)
    if rows.empty:
        raise HarnessError(f"{path}: no rows", _TRACE_FORM)
    return Trace(*_checked(rows, path, unit_s), ids, ends, size)


def _block_tokens(lengths: NDArray[np.float64], counts: NDArray[np.int64], path: Path) -> int:
    """Tokens of a block, from the lengths and numbers of blocks of the requests that have any; 512 if several fit.

    HarnessError if some request has more blocks than its length holds.
    """
    lengths, counts = lengths[counts > 0], counts[counts > 0]
    fits = {size: (counts == -(-lengths // size)) | (counts == lengths // size) for size in _BLOCKS}
    fitting = [size for size in _BLOCKS if len(counts) and fits[size].mean() >= 0.99]
    if not fitting and np.any(counts > -(-lengths // 512)):
        row = int(np.argmax(counts / lengths))
        what = f"{path}: a request has input_length {lengths[row]:g} and {counts[row]} hash_ids"
        sizes = f"from {_BLOCKS[0]} to {_BLOCKS[-1]} tokens"
        raise HarnessError(what, f"expected one id for each block, of one size {sizes}")
    return 512 if 512 in fitting or not fitting else fitting[0]


def _unit_s(times: NDArray[np.float64], said: set[float], path: Path, least: float = _PER_S[0]) -> float:
    """Size in seconds of the unit of a trace's timestamps, of those that the file's form speaks for.

    If they are different, the one that gives a rate nearer to 1 request/s is taken. HarnessError for a unit with a rate
    that no trace has, if another would give one.
    """
    span = float(times[-1] - times[0])
    if not 0 < span < np.inf:
        return max(said)
    rates = {unit_s: (len(times) - 1) / span / unit_s for unit_s in _UNITS}
    likely = {unit_s: rate for unit_s, rate in rates.items() if least <= rate <= _PER_S[1]}
    unit_s, other_s = (min(of, key=lambda each_s: abs(np.log(rates[each_s])), default=0.0) for of in (said, likely))
    if likely and unit_s not in likely:
        what = f"{path}: timestamps in {_UNITS[unit_s]} are {rates[unit_s]:.3g} requests/s"
        fix = f"in {_UNITS[other_s]} they would be {rates[other_s]:.3g}; write CSV with arrival_s in seconds"
        raise HarnessError(what, fix)
    return unit_s


def _csv_rows(text: str, path: Path, first: int) -> pd.DataFrame:
    """Time, input and output tokens of each request as text, by line number; `first` is the header's line number."""
    header = [cell.strip() for cell in text.partition("\n")[0].split(",")]
    columns = next((names for names in _COLUMNS if set(names) <= set(header)), None)
    if columns is None:
        what = f"{path}:{first}: '{text.partition(chr(10))[0]:.60}' is not the header of a trace"
        raise HarnessError(what if text.strip() else f"{path}: no rows", _TRACE_FORM)
    wrong: list[Any] = []

    def collect(row: Any) -> str:
        wrong.append(row)
        return "skip"

    rows: pd.DataFrame = csv.read_csv(
        io.BytesIO(text.encode()),
        csv.ReadOptions(use_threads=False, column_names=header, skip_rows=1),
        csv.ParseOptions(quote_char=False, ignore_empty_lines=False, invalid_row_handler=collect),
        csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string())),
    ).to_pandas()
    if wrong:
        what = f"{path}:{wrong[0].number + first - 1}: '{wrong[0].text:.60}' is not a row of a trace"
        raise HarnessError(what, f"expected {len(header)} cells, as in the header")
    rows.index += first + 1
    kept = (rows != "").any(axis=1)
    return rows[kept & (rows["Response tokens"] != "0") if "Response tokens" in columns else kept]


def _checked(rows: pd.DataFrame, path: Path, unit_s: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Arrival times in seconds since the first request, never decreasing, and input and output tokens."""
    times, *counts = (rows[column] for column in rows)
    if times.name == "TIMESTAMP":
        dates = pd.to_datetime(times, format="ISO8601", utc=True, errors="coerce")
        arrival_s = (dates - dates.iloc[0]).dt.total_seconds().to_numpy(float)
    else:
        stated = pd.to_numeric(times, errors="coerce").to_numpy(float)
        if times.name == "Timestamp":
            _unit_s(stated, {unit_s}, path, _BURSTGPT_LEAST)
        arrival_s = stated * unit_s
        arrival_s[np.abs(arrival_s) >= 1e11] = np.nan  # not seconds: milliseconds since 1970, for instance
        with np.errstate(invalid="ignore"):  # inf - inf
            arrival_s = arrival_s - arrival_s[0]
    tokens = [pd.to_numeric(column, errors="coerce").to_numpy(float) for column in counts]
    good = [np.isfinite(arrival_s) & (np.diff(arrival_s, prepend=0.0) >= 0)]
    good += [(each >= 1) & (each <= MOST) & (each == np.floor(each)) for each in tokens]
    if not np.all(good):
        row = int(np.argmin(np.all(good, axis=0)))
        column = next(i for i, each in enumerate(good) if not each[row])
        expected = WHOLE if column else "a time in seconds, not before that of the row above"
        what = f"{rows.columns[column]} is '{rows.iat[row, column]!s}'"
        raise HarnessError(f"{path}:{rows.index[row]}: {what}", f"expected {expected}")
    return arrival_s, tokens[0].astype(np.int64), tokens[1].astype(np.int64)


class _Message(BaseModel):
    speaker: str = Field(alias="from")
    value: str


class _Recorded(BaseModel):
    conversations: list[_Message]

    def turns(self) -> tuple[Prompt, ...]:
        """The user's prompts with their answers; a system prompt is put before the first prompt."""
        texts = [message.value for message in self.conversations]
        users = [message.speaker in ("human", "user") for message in self.conversations]
        system = f"{texts[0]}\n\n" if texts and self.conversations[0].speaker == "system" else ""
        pairs = [(texts[i], texts[i + 1]) for i in range(len(texts) - 1) if users[i] and not users[i + 1]]
        said = [Prompt(prompt=text, answer=answer) for text, answer in pairs if text and answer]
        return (said[0].model_copy(update={"prompt": system + said[0].prompt}), *said[1:]) if said else ()


def parse_prompts(text: str, path: Path) -> Prompts:
    """Conversations from JSON lines with one prompt each, or from a JSON array in ShareGPT's form.

    Prompts without an answer are left out of the latter. HarnessError with file and line, or number of the
    conversation, for a mistake.
    """
    form = 'expected lines of {"prompt": "text", "output_tokens": 64}, the latter optional, or ShareGPT\'s JSON array'
    if text.lstrip().startswith("["):
        recorded = enumerate(_json(text, str(path), form), start=1)
        each = (checked(_Recorded, one, f"{path}: conversation {i}", fix=form).turns() for i, one in recorded)
    else:
        each = ((prompt,) for prompt in _json_lines(Prompt, text, path, form).values())
    prompts = tuple(turns for turns in each if turns)
    if not prompts:
        raise HarnessError(f"{path}: no prompts", form)
    return prompts


def _json_lines(form: type[Form], text: str, path: Path, fix: str) -> dict[int, Form]:
    """Line number -> content of each line that is not empty."""
    found = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            found[number] = checked(form, _json(line, place, fix), place, fix=fix)
    return found


def _json(text: str, place: str, fix: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise HarnessError(f"{place}: not JSON: {error}", fix) from None

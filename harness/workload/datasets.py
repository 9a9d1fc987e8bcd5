"""Recorded traffic in the forms in which others publish it: traces and prompts from the text of their files. Pure."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, json
from pydantic import BaseModel, Field
from pydantic_core import from_json

from harness.config import checked
from harness.errors import HarnessError
from harness.workload.arrivals import MOST, WHOLE, Trace
from harness.workload.schema import Prompt, Prompts

_COLUMNS = (
    ("arrival_s", "input_tokens", "output_tokens"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ("Timestamp", "Request tokens", "Response tokens"),
)
"""The harness's own, those of Azure's public traces with their dates and times, and those of BurstGPT."""
_MOONCAKE = ("timestamp", "input_length", "output_length")
"""Keys of each line of a Mooncake trace, the first in milliseconds; `hash_ids` may stand beside them."""
_TRACE_FORM = (
    f"expected CSV with the columns {' or '.join(','.join(names) for names in _COLUMNS)}, "
    f"or JSON lines with {','.join(_MOONCAKE)}"
)


def parse_trace(text: str, path: Path) -> Trace:
    """A trace from CSV with one of the headers in `_COLUMNS`, or from Mooncake's JSON lines.

    Lines at the top of a CSV that begin with # are its notes. Requests that failed in a BurstGPT trace, and so have no
    answer, are left out. HarnessError with file, line and column for any mistake.
    """
    notes = "".join(itertools.takewhile(lambda line: line.startswith("#"), io.StringIO(text)))
    ids = ends = None
    if text.lstrip().startswith("{"):
        rows, ids, ends = _json_rows(text, path)
    else:
        rows = _csv_rows(text[len(notes) :], path, notes.count("\n") + 1)
    if rows.empty:
        raise HarnessError(f"{path}: no rows", _TRACE_FORM)
    return Trace(*_checked(rows, path), ids, ends)


def _csv_rows(text: str, path: Path, first: int) -> pd.DataFrame:
    """Time, input and output tokens of each request, as written, by line number; `first`: the header's."""
    header = [cell.strip() for cell in text.partition("\n")[0].split(",")]
    columns = next((names for names in _COLUMNS if set(names) <= set(header)), None)
    if columns is None:
        what = f"{path}:{first}: '{text.partition(chr(10))[0]:.60}' is not the header of a trace"
        raise HarnessError(what if text.strip() else f"{path}: no rows", _TRACE_FORM)
    wrong: list[Any] = []

    def kept_aside(row: Any) -> str:
        wrong.append(row)
        return "skip"

    rows: pd.DataFrame = csv.read_csv(
        io.BytesIO(text.encode()),
        csv.ReadOptions(use_threads=False, column_names=header, skip_rows=1),
        csv.ParseOptions(quote_char=False, ignore_empty_lines=False, invalid_row_handler=kept_aside),
        csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string())),
    ).to_pandas()
    if wrong:
        what = f"{path}:{wrong[0].number + first - 1}: '{wrong[0].text:.60}' is not a row of a trace"
        raise HarnessError(what, f"expected {len(header)} cells, as in the header")
    rows.index += first + 1
    kept = (rows != "").any(axis=1)
    return rows[kept & (rows["Response tokens"] != "0") if "Response tokens" in columns else kept]


def _json_rows(text: str, path: Path) -> tuple[pd.DataFrame, NDArray[np.int64], NDArray[np.int64]]:
    """The same of a Mooncake trace, with the ids of all blocks, and where in those each request's begin and end."""
    lines = text.split("\n")
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    types = [pa.float64(), pa.float64(), pa.float64(), pa.list_(pa.int64())]
    form = json.ParseOptions(
        pa.schema(zip((*_MOONCAKE, "hash_ids"), types, strict=True)), unexpected_field_behavior="ignore"
    )

    def parsed(upto: int) -> pa.Table | None:
        data = io.BytesIO("\n".join(lines[:upto]).encode())
        with contextlib.suppress(pa.ArrowInvalid):
            return json.read_json(data, json.ReadOptions(block_size=1 << 26), form)
        return None

    table = parsed(len(lines))
    if table is None:
        bad = bisect.bisect_left(numbers, True, key=lambda number: parsed(number) is None)
        raise HarnessError(f"{path}:{numbers[bad]}: '{lines[numbers[bad] - 1]:.60}' is not a request", _TRACE_FORM)
    rows = table.select(_MOONCAKE).to_pandas().set_axis(numbers)
    blocks = table["hash_ids"].combine_chunks()
    ids, ends = blocks.values.to_numpy(zero_copy_only=False), blocks.offsets.to_numpy()
    if not (ids >= 0).all():
        row = np.searchsorted(ends, np.argmin(ids >= 0), side="right") - 1
        raise HarnessError(
            f"{path}:{numbers[row]}: hash_ids holds {ids[np.argmin(ids >= 0)]:g}", "expected whole numbers from 0"
        )
    return rows, ids, ends


def _checked(rows: pd.DataFrame, path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Seconds since the first request, never decreasing, and token counts."""
    times, *counts = (rows[column] for column in rows)
    if times.name == "TIMESTAMP":
        dates = pd.to_datetime(times, format="ISO8601", utc=True, errors="coerce")
        arrival_s = (dates - dates.iloc[0]).dt.total_seconds().to_numpy(float)
    else:
        arrival_s = pd.to_numeric(times, errors="coerce").to_numpy(float) / (1e3 if times.name == "timestamp" else 1)
        with np.errstate(invalid="ignore"):  # inf - inf
            arrival_s = arrival_s - arrival_s[0]
    tokens = [pd.to_numeric(column, errors="coerce").to_numpy(float) for column in counts]
    good = [np.isfinite(arrival_s) & (np.diff(arrival_s, prepend=0.0) >= 0)]
    good += [(each >= 1) & (each <= MOST) & (each == np.floor(each)) for each in tokens]
    if not np.all(good):
        row = int(np.argmin(np.all(good, axis=0)))
        column = next(i for i, each in enumerate(good) if not each[row])
        expected = WHOLE if column else "a time, not before that of the row above"
        what = f"{rows.columns[column]} is '{rows.iat[row, column]!s}'"
        raise HarnessError(f"{path}:{rows.index[row]}: {what}", f"expected {expected}")
    return arrival_s, tokens[0].astype(np.int64), tokens[1].astype(np.int64)


class _Message(BaseModel):
    speaker: str = Field(alias="from")
    value: str


class _Recorded(BaseModel):
    conversations: list[_Message]

    def turns(self) -> tuple[Prompt, ...]:
        """What users said, and was answered; a system prompt stands before the first of it."""
        texts = [message.value for message in self.conversations]
        users = [message.speaker in ("human", "user") for message in self.conversations]
        system = f"{texts[0]}\n\n" if texts and self.conversations[0].speaker == "system" else ""
        pairs = [(texts[i], texts[i + 1]) for i in range(len(texts) - 1) if users[i] and not users[i + 1]]
        said = [Prompt(prompt=text, answer=answer) for text, answer in pairs if text and answer]
        return (said[0].model_copy(update={"prompt": system + said[0].prompt}), *said[1:]) if said else ()


def parse_prompts(text: str, path: Path) -> Prompts:
    """Conversations from JSON lines of one prompt each, or from a JSON array of ShareGPT's form.

    Of the latter, what a user said and nobody answered is left out. HarnessError with file and line, or number of the
    conversation, for any mistake.
    """
    form = 'expected lines of {"prompt": "text", "output_tokens": 64}, the latter optional, or ShareGPT\'s JSON array'
    place, prompts = str(path), []
    try:
        if text.lstrip().startswith("["):
            for number, content in enumerate(from_json(text), start=1):
                prompts.append(checked(_Recorded, content, f"{path}: conversation {number}", fix=form).turns())
        else:
            for number, line in enumerate(text.split("\n"), start=1):
                place = f"{path}:{number}"
                if line.strip():
                    prompts.append((checked(Prompt, from_json(line), place, fix=form),))
    except ValueError as error:
        raise HarnessError(f"{place}: not JSON: {error}", form) from None
    prompts = [turns for turns in prompts if turns]
    if not prompts:
        raise HarnessError(f"{path}: no prompts", form)
    return tuple(prompts)

"""Published collections of benchmarks: ML.ENERGY's and InferenceX's."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.store.formats.point import Result, figures
from harness.store.formats.vllm import latencies, serve


def mlenergy_benchmark(content: Mapping[str, Any]) -> Iterator[Result]:
    """results.json of the ML.ENERGY benchmark: `vllm bench serve` with the energy of the steady state."""
    power_w = content["steady_state_energy"] / content["steady_state_duration"] or None
    per_token = content.get("steady_state_energy_per_token")
    values = {
        "joules_per_output_token": per_token or None,
        "gpu_power_w": power_w,
        "output_tokens_per_s": power_w / per_token if per_token and power_w else None,
    }
    whole = next(serve({"request_throughput": None, "output_throughput": None, **content}))
    kept = tuple(figure for figure in whole.figures if figure.name not in values)
    slots = content.get("max_num_seqs")
    yield Result(
        figures(values, content["completed"]) + kept,
        whole.model,
        engine="vllm",
        load=whole.load if "users" in whole.load or not slots else {"shape": "closed", "users": slots},
        gpu=content.get("gpu_model"),
        gpus=content.get("num_gpus"),
        notes=(*whole.notes, "energy and output rate are of the steady state; requests per second of the whole run"),
        doubts=whole.doubts,
        whole=whole.figures,
        records=whole.records,
    )


def mlenergy_leaderboard(content: Mapping[str, Any]) -> Iterator[Result]:
    """A task's JSON of the ML.ENERGY leaderboard: one point per configuration."""
    for row in content["configurations"]:
        length, rate = row.get("avg_output_len"), row["output_throughput_tokens_per_sec"]
        values = {
            "output_tokens_per_s": rate,
            "requests_per_s": rate / length if length else None,
            "joules_per_output_token": row["energy_per_token_joules"],
            "joules_per_request": row["energy_per_request_joules"],
            "gpu_power_w": row.get("avg_power_watts"),
            "itl_s": latencies(row)["itl_s"],
        }
        yield Result(
            figures(values, None),
            model=row["model_id"],
            name=f"{content['task']} {row['gpu_model']}x{row['num_gpus']} {row.get('max_num_seqs') or ''}".strip(),
            engine="vllm",
            load={"shape": "closed", "users": row["max_num_seqs"]} if row.get("max_num_seqs") else {},
            precision=row.get("weight_precision"),
            gpu=row["gpu_model"],
            gpus=row["num_gpus"],
            notes=("steady state, without TTFT; requests per second are output rate / mean output length",),
        )


def inferencex(content: Mapping[str, Any]) -> Iterator[Result]:
    """An aggregate of InferenceX (InferenceMAX): rates per GPU, latencies in seconds.

    Where prefill and decode run apart, input rates are per prefill GPU and output rates per decode GPU.
    """
    prefill, decode = (content.get(f"num_{role}_gpu") for role in ("prefill", "decode"))
    apart = bool(prefill and decode)
    gpus = int(prefill) + int(decode) if prefill and decode else int(content["tp"]) * int(content.get("pp") or 1)
    of_output, of_input = (int(decode), int(prefill)) if prefill and decode else (gpus, gpus)
    each_w = content.get("avg_power_w")
    rates = {
        "output_tokens_per_s": ("output_tput_per_gpu", of_output),
        "input_tokens_per_s": ("input_tput_per_gpu", of_input),
        "total_tokens_per_s": ("tput_per_gpu", gpus),
    }
    values = {name: float(content[key]) * n for name, (key, n) in rates.items() if content.get(key) is not None}
    derived = figures(values, None, status="derived")
    energy = {
        "gpu_power_w": None if each_w is None else each_w * gpus,
        "joules_per_output_token": None if apart else content.get("joules_per_output_token"),
    }
    found = derived + figures(energy | latencies(content, "s"), None)
    lengths = f"{content.get('isl', '?')}/{content.get('osl', '?')}"
    yield Result(
        found,
        model=content.get("model"),
        name=f"{content['hw']} x{gpus} {lengths} {content['conc']}",
        engine=content.get("framework") or "openai",
        load={"shape": "closed", "users": int(content["conc"])},
        precision=content.get("precision"),
        gpu=str(content["hw"]).partition("-")[0],
        gpus=gpus,
        notes=("rates are those of the file, which are per GPU, x the number of GPUs",),
    )

"""Bytes, operations and memory against sums by hand."""

from dataclasses import replace

import pytest

from harness.errors import HarnessError
from harness.predict.predict import known_gpu, limits_of
from harness.predict.shapes import shape_of
from harness.predict.work import Serving, check_fits, largest_batch, room, seconds, weights_per_gpu


def serving(
    model: str = "Llama-3.1-8B", gpu: str = "H100", precision: str = "bf16", batch: float = 10, **more: float
) -> Serving:
    return Serving(shape_of(model), known_gpu(gpu), precision, batch, 1000, 500, **more)  # type: ignore[arg-type]


def test_a_dense_step_reads_the_weights_and_the_cache() -> None:
    w = seconds(serving())
    assert w["dense"] == pytest.approx(2 * (8.03e9 - 128256 * 4096) / 3.35e12, rel=1e-3)
    # 2 x 32 layers x 8 heads x 128 values x 2 bytes = 131,072 bytes a token; 10 sequences of 1,250 tokens
    assert w["kv"] == pytest.approx(131072 * 12500 / 3.35e12)
    assert w["expert"] == 0
    assert w["flop"] < 0.01 * w["dense"]  # ten sequences compute while the weights are read


def test_a_step_has_a_sequence_at_least() -> None:
    assert seconds(serving(batch=0.2)) == seconds(serving(batch=1))
    rare, one = (limits_of(serving(batch=batch), 50.0) for batch in (0.2, 1))
    assert rare == one  # the roofline needs no device while there is no request


def test_a_batch_touches_more_experts_than_a_token_activates() -> None:
    one, two, many = (seconds(serving("Qwen3-30B-A3B", batch=batch))["expert"] for batch in (1, 2, 4096))
    assert one == pytest.approx(many * 8 / 128)
    assert two == pytest.approx(many * (1 - (120 / 128) ** 2))


def test_tensor_parallel_gpus_share_the_bytes_but_latent_caches_are_copied() -> None:
    one, four = seconds(serving()), seconds(serving(gpus=4))
    assert four["dense"] == pytest.approx(one["dense"] / 4)
    assert four["kv"] == pytest.approx(one["kv"] / 4)
    assert one["link"] == 0 < four["link"]
    latent, split = (seconds(serving("DeepSeek-R1", precision="fp8", gpus=n))["kv"] for n in (4, 8))
    assert latent == split


def test_a_window_bounds_the_cache_and_four_bit_peaks_are_faster() -> None:
    short, long = (replace(serving("gpt-oss-20b", precision="mxfp4"), input=tokens) for tokens in (1000, 9000))
    assert seconds(long)["kv"] / seconds(short)["kv"] == pytest.approx((12 * 9250 + 12 * 128) / (12 * 1250 + 12 * 128))
    big = serving("Llama-3.1-70B", "B200", "nvfp4", 4096)
    assert seconds(replace(big, precision="bf16"))["flop"] > 3 * seconds(big)["flop"]


def test_disaggregated_decoding_computes_no_prompts() -> None:
    assert seconds(serving(prefill_gpus=1))["prefill_flop"] == 0 < seconds(serving())["prefill_flop"]


def test_short_prompts_of_a_large_mixture_of_experts_cost_a_pass_over_its_weights() -> None:
    s = replace(serving("DeepSeek-R1", "B200", "fp8", gpus=8), input=1024, output=1024)
    w = seconds(s)
    passes = 9 / 1024  # ten sequences, the asked one among them
    assert w["prefill_weight"] == pytest.approx(passes * 671e9 / 8 / 7.7e12, rel=0.03)
    assert w["prefill_flop"] < 0.1 * w["prompt_compute"]  # reading hides most of it
    long = seconds(replace(s, input=8192))
    assert long["prefill_flop"] > 0.2 * long["prompt_compute"]


def test_prompts_that_come_in_one_step_share_a_pass_of_8192_tokens() -> None:
    s = replace(serving(batch=401), output=100)  # four prompts of 1,000 tokens a step
    assert seconds(s)["prefill_weight"] == pytest.approx(seconds(s)["dense"])
    assert seconds(replace(s, input=4096))["prefill_weight"] == pytest.approx(2 * seconds(s)["dense"])


def test_weights_and_cache_must_fit() -> None:
    s = serving()
    assert weights_per_gpu(s) == pytest.approx(2 * 8.03e9, rel=1e-3)
    assert largest_batch(s) == pytest.approx(room(s) / (131072 * 1500))
    check_fits(replace(s, batch=float(int(largest_batch(s)))))
    with pytest.raises(HarnessError, match="sequences fit"):
        check_fits(replace(s, batch=largest_batch(s) + 1))
    with pytest.raises(HarnessError, match="takes 141 GB of weights, 1 x H100 have 80 GB"):
        check_fits(serving("Llama-3.1-70B"))

"""Inference time of a student by its number of heads, side by side in one process.

    python benchmarks/head_count.py --model FOLDER [--layers 6] [--batch 64] [--length 128] [--rounds 7]

Head counts take turns, so that a slow minute hits all of them; the figure is the median over rounds,
and the ratio is to the first count. Weights do not matter for time: they are random.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from transformers import AutoConfig, AutoModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name: width, feed-forward")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--heads", type=int, nargs="+", default=[12, 6, 4, 3, 2, 1])
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--length", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    base = AutoConfig.from_pretrained(given.model)
    base.num_hidden_layers = given.layers or base.num_hidden_layers
    print(
        f"{base.num_hidden_layers} layers, width {base.hidden_size}, "
        f"feed-forward {base.intermediate_size}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {given.device}; median of {given.rounds} rounds"
    )
    print("| batch | length | heads | ms per batch | ratio |\n| --- | --- | --- | --- | --- |")
    for batch in given.batch:
        for length in given.length:
            times = measure(base, given.heads, batch, length, given.rounds, given.device)
            first = times[given.heads[0]]
            for heads, seconds in times.items():
                cells = (batch, length, heads, f"{1000 * seconds:.1f}", f"{seconds / first:.3f}")
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure(
    base: AutoConfig, counts: list[int], batch: int, length: int, rounds: int, device: str
) -> dict[int, float]:
    """Median seconds of a forward pass for each head count."""
    models = {}
    for heads in counts:
        config = copy.deepcopy(base)
        config.num_attention_heads = heads
        models[heads] = AutoModel.from_config(config, attn_implementation="sdpa").eval().to(device)
    tokens = torch.randint(1000, 2000, (batch, length), device=device)
    mask = torch.ones_like(tokens)
    times: dict[int, list[float]] = {heads: [] for heads in counts}
    with torch.inference_mode():
        for number in range(rounds + 2):
            for heads, model in models.items():
                start = time.perf_counter()
                model(input_ids=tokens, attention_mask=mask)
                if device != "cpu":
                    torch.cuda.synchronize()
                if number >= 2:  # warm-up
                    times[heads].append(time.perf_counter() - start)
    return {heads: statistics.median(values) for heads, values in times.items()}


if __name__ == "__main__":
    main()

"""Memory and time of reading a checkpoint's weights alone.

Writes a checkpoint into a temporary folder, then, each in a process of its own and in turns: scans it as `--only
weight` does, folder and report included, and reads every tensor with safetensors and takes abs().max(). Prints the
peak resident memory of both, and the ratio of their times (medians, after one run that warms the page cache). Processor
time is told too, as it depends less on what else the machine does.

    python benchmarks/weights_memory.py                  # 7B: a decoder of Llama 2 7B's shape, bfloat16, a shard a layer
    python benchmarks/weights_memory.py --layers 8       # less of it
    python benchmarks/weights_memory.py --experts 40000  # a mixture with that many small expert matrices
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GIBIBYTE = 1024**3
HIDDEN, INTERMEDIATE, HEADS, VOCABULARY, LAYERS = 4096, 11008, 32, 32000, 32
EXPERTS_A_LAYER, EXPERT_SIZE, PLANTED = 256, 128, 3
"""Experts in each layer; rows and columns of each of their three matrices; outlying entries in each matrix."""


def write_decoder(folder: Path, layers: int) -> None:
    """A decoder of Llama 2 7B's shape; every layer holds the same numbers, and they are drawn once."""
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    drawn = {name: _normal(*shape) for name, shape in shapes.items()}
    shards = [
        {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in drawn.items()}
        for layer in range(layers)
    ]
    shards.append(
        {
            "model.embed_tokens.weight": _normal(VOCABULARY, HIDDEN),
            "lm_head.weight": _normal(VOCABULARY, HIDDEN),
            "model.norm.weight": _normal(HIDDEN),
        }
    )
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
    }
    _write(folder, shards, config)


def write_mixture(folder: Path, matrices: int) -> None:
    """A mixture with about so many expert matrices, each with a few entries far above its others."""
    layers = max(1, round(matrices / (3 * EXPERTS_A_LAYER)))
    drawn = {f"{name}_proj": _normal(EXPERT_SIZE, EXPERT_SIZE) for name in ("gate", "up", "down")}
    for tensor in drawn.values():
        for index in range(PLANTED):
            tensor[17 * index + 3, 29 * index + 5] = 3.0
    shards = [
        {
            f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": tensor
            for expert in range(EXPERTS_A_LAYER)
            for name, tensor in drawn.items()
        }
        | {f"model.layers.{layer}.input_layernorm.weight": _normal(EXPERT_SIZE)}
        for layer in range(layers)
    ]
    config = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": EXPERT_SIZE,
        "moe_intermediate_size": EXPERT_SIZE,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "num_hidden_layers": layers,
        "num_experts": EXPERTS_A_LAYER,
        "vocab_size": 512,
    }
    _write(folder, shards, config)


def _normal(*shape: int) -> Tensor:
    import torch

    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02).to(torch.bfloat16)


def _write(folder: Path, shards: list[dict[str, Tensor]], config: dict[str, object]) -> None:
    from safetensors.torch import save

    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards):
        file = f"model-{number:05d}.safetensors"
        # As bytes: the library refuses names that share memory when it writes the file itself.
        (folder / file).write_bytes(save({name: tensor.clone() for name, tensor in tensors.items()}))
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))


def scan(folder: Path) -> dict[str, int]:
    """What `--only weight` does, up to the written folder with its report."""
    from outlierscope.scanning.weights import scan_weights

    out = folder / "scan"
    result = scan_weights(folder, out=out, overwrite=True)
    return {
        "matrices": len(result.evidence.weights),
        "findings": result.findings.num_rows,
        "folder_bytes": sum(path.stat().st_size for path in out.iterdir()),
    }


def read(folder: Path) -> dict[str, int]:
    """Every tensor with safetensors, and the largest magnitude of each."""
    from safetensors import safe_open

    tensors = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                file.get_tensor(name).abs().max().item()
                tensors += 1
    return {"tensors": tensors}


def measure(task: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one task in a process of its own (a small one's child: peak memory is inherited)."""
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    command += ["--layers", str(options.layers), "--experts", str(options.experts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def run_task(options: argparse.Namespace) -> None:
    """Run one task and print what it took."""
    import outlierscope.scanning.weights  # noqa: F401  (imports do not count as time)

    folder: Path = options.folder
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    if options.task == "write":
        figures: dict[str, int] = {}
        if options.experts:
            write_mixture(folder, options.experts)
        else:
            write_decoder(folder, options.layers)
    else:
        figures = scan(folder) if options.task == "scan" else read(folder)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "processor": processor, "peak": after.ru_maxrss * 1024, **figures}))


def main() -> None:
    """Measure, or run one task when called by itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument(
        "--experts", type=int, default=0, help="expert matrices of a mixture instead of a decoder"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--at", type=Path, help="where to write the checkpoint for the time being")
    parser.add_argument("--task", choices=("write", "scan", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_task(options)
        return
    with tempfile.TemporaryDirectory(dir=options.at) as temporary:
        folder = Path(temporary)
        # Twice the 7B checkpoint: it is not for a benchmark to fill a disk up.
        if not options.experts and shutil.disk_usage(folder).free < 2 * options.layers * 0.42 * GIBIBYTE:
            sys.exit(f"{folder} has too little free space; take fewer --layers, or another folder --at")
        measure("write", folder, options)
        shards = list(folder.glob("*.safetensors"))
        size = sum(path.stat().st_size for path in shards)
        print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, {platform.system()}")
        print(f"checkpoint: {size / GIBIBYTE:.2f} GiB in {len(shards)} shards")
        measure("read", folder, options)
        pairs = [
            (measure("scan", folder, options), measure("read", folder, options)) for _ in range(options.runs)
        ]
    for index, name in enumerate(("scan", "read")):
        times = [pair[index]["seconds"] for pair in pairs]
        highest = max(pair[index]["peak"] for pair in pairs) / GIBIBYTE
        spread = f"{min(times):.1f} to {max(times):.1f}"
        processor = statistics.median(pair[index]["processor"] for pair in pairs)
        print(
            f"{name}: {statistics.median(times):.1f} s ({spread}), {processor:.1f} s of processor time, "
            f"peak {highest:.2f} GiB resident"
        )
    for name, noun in (("seconds", "time"), ("processor", "processor time")):
        ratios = [first[name] / second[name] for first, second in pairs]
        print(f"{noun} ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    told = {
        name: value for name, value in pairs[0][0].items() if name not in ("seconds", "processor", "peak")
    }
    print("scan: " + ", ".join(f"{value:,.0f} {name}" for name, value in told.items()))


if __name__ == "__main__":
    main()

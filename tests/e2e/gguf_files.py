"""GGUF files as the gguf package writes them: every type of tensor, with random blocks; versions, alignments, pieces."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

TOKENS = [f"token {index}" for index in range(2000)]

_PLAIN: dict[str, Any] = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}


def every_tensor(seed: int = 0) -> dict[str, tuple[gguf.GGMLQuantizationType, npt.NDArray[Any]]]:
    """Return a small and a larger tensor of each type, as the bytes of their blocks where they are quantised."""
    random = np.random.default_rng(seed)
    tensors: dict[str, tuple[gguf.GGMLQuantizationType, npt.NDArray[Any]]] = {}
    for layer, kind in enumerate(gguf.GGMLQuantizationType):
        elements, size_bytes = gguf.GGML_QUANT_SIZES[kind]
        for name, rows, blocks in (("small", (3, 2), 2), ("large", (1100,), 1 + 1024 // size_bytes)):
            shape = (*rows, blocks * size_bytes)
            data: npt.NDArray[Any] = random.integers(0, 256, shape, dtype=np.uint8)
            if kind.name in _PLAIN:
                data = data.view(_PLAIN[kind.name])
            assert elements == 1 or data.dtype == np.uint8
            tensors[f"blk.{layer}.{kind.name}.{name}"] = kind, data
    tensors["scalar"] = gguf.GGMLQuantizationType.F32, np.array([2.5], "f4")
    return tensors


def write_gguf(path: Path, *, alignment: int | None = None, version: int = 3, seed: int = 0) -> Path:
    """Write a file with every type of tensor and of metadata; return its path."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_token_list(TOKENS)
    writer.add_array("tokenizer.ggml.scores", [float(index) for index in range(len(TOKENS))])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("llama.block_count", 36)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("tokenizer.chat_template", "{{ messages }}\x1b[31m größe")
    for name, (kind, data) in every_tensor(seed).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    _finish(writer)
    if version != 3:  # little-endian files of version 2 differ from those of 3 in this number only
        written = path.read_bytes()
        path.write_bytes(written[:4] + version.to_bytes(4, "little") + written[8:])
    return path


def write_pieces(folder: Path, pieces: int) -> list[Path]:
    """Write a model in pieces, as ``gguf-split`` does; return their paths."""
    paths = []
    for number in range(pieces):
        paths.append(folder / f"model-{number + 1:05}-of-{pieces:05}.gguf")
        writer = gguf.GGUFWriter(paths[-1], "llama")
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, number)
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, pieces)
        writer.add_int32(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, pieces)
        writer.add_tensor(f"blk.{number}.w", np.full((64, 32), number, "f4"))
        _finish(writer)
    return paths


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

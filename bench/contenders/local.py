# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call,attr-defined"
"""What else saves and loads a folder of safetensors files on a local disk: each a pair of actions for the worker.

``save`` writes what ``hold`` put into memory, durable when it returns; ``load`` returns all tensors of a folder. Every one is
used as its own documentation says for a CPU, with its defaults, and imported only in the process that runs it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders.worker import Actions, Tensors, as_bytes, touch_all

held: dict[str, Any] = {}


def weights(folder: str) -> list[str]:
    """Return the safetensors files of a folder."""
    return sorted(str(path) for path in Path(folder).glob("*.safetensors"))


def hold(source: str) -> None:
    """Keep a model's tensors for `save` to write: mapped and touched, so that they cost the memory of the page cache once."""
    import safetensors.torch  # noqa: PLC0415

    held.clear()
    for path in weights(source):
        held.update(safetensors.torch.load_file(path))
    touch_all(held)


def _sync(path: Path) -> None:
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _new(folder: str) -> Path:
    path = Path(folder)
    path.mkdir(parents=True)
    return path


def _safetensors_load(folder: str, backend: str) -> Tensors:
    import safetensors.torch  # noqa: PLC0415

    return Tensors(
        {
            name: tensor
            for path in weights(folder)
            for name, tensor in safetensors.torch.load_file(path, backend=backend).items()
        }
    )


def _safetensors_pass(folder: str) -> Tensors:
    """Load by mmap, then pass over every byte once in one thread, as cheaply as numpy can: sums of 8 bytes at a time."""
    loaded = _safetensors_load(folder, "mmap")
    for tensor in loaded.by_name.values():
        flat = as_bytes(tensor)
        np.add.reduce(flat[: len(flat) // 8 * 8].view(np.uint64))
    return loaded


def _safetensors_save(folder: str) -> None:
    import safetensors.torch  # noqa: PLC0415

    path = _new(folder)
    safetensors.torch.save_file(held, path / "model.safetensors")
    _sync(path)


def _runai_load(folder: str) -> Tensors:
    from runai_model_streamer import SafetensorsStreamer  # noqa: PLC0415

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(weights(folder))
        return Tensors(dict(streamer.get_tensors()))


def _fastsafetensors_load(folder: str) -> Tensors:
    from fastsafetensors import SafeTensorsFileLoader  # noqa: PLC0415

    loader = SafeTensorsFileLoader(None, "cpu", nogds=True)
    loader.add_filenames({0: weights(folder)})
    buffers = loader.copy_files_to_device()

    def close() -> None:
        buffers.close()
        loader.close()

    return Tensors({name: buffers.get_tensor(name) for name in loader.get_keys()}, (loader, buffers), close)


def _tensorizer_save(folder: str) -> None:
    from tensorizer import TensorSerializer  # noqa: PLC0415

    path = _new(folder)
    serializer = TensorSerializer(path / "model.tensors")
    serializer.write_state_dict(held)
    serializer.close()
    _sync(path)


def _tensorizer_load(folder: str) -> Tensors:
    from tensorizer import TensorDeserializer  # noqa: PLC0415

    deserializer = TensorDeserializer(str(Path(folder) / "model.tensors"), device="cpu")
    return Tensors(dict(deserializer.items()), deserializer)


def _torch_save(folder: str) -> None:
    import torch  # noqa: PLC0415

    path = _new(folder)
    torch.save(held, path / "model.pt")
    _sync(path)


def _torch_load(folder: str, *, mmap: bool) -> Tensors:
    import torch  # noqa: PLC0415

    return Tensors(torch.load(Path(folder) / "model.pt", mmap=mmap, weights_only=True))


def _dcp_save(folder: str) -> None:
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    dcp.save(dict(held), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    _sync(Path(folder))


def _dcp_load(folder: str) -> Tensors:
    """Load into empty tensors, as DCP asks for; their shapes come from the checkpoint itself."""
    import torch  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    reader = dcp.FileSystemReader(folder)
    described: Any = reader.read_metadata().state_dict_metadata.items()
    state = {name: torch.empty(facts.size, dtype=facts.properties.dtype) for name, facts in described}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return Tensors(state)


def _transformers_load(folder: str) -> Tensors:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return Tensors(model.state_dict(), model)


def _import(*names: str) -> Callable[[], None]:
    def warm_up() -> None:
        for name in names:
            __import__(name)

    return warm_up


safetensors_mmap: Actions = {
    "import": _import("safetensors.torch"),
    "load": lambda folder: _safetensors_load(folder, "mmap"),
    "hold": hold,
    "save": _safetensors_save,
}
safetensors_pread: Actions = {
    "import": _import("safetensors.torch"),
    "load": lambda folder: _safetensors_load(folder, "pread"),
}
safetensors_pass: Actions = {"import": _import("safetensors.torch"), "load": _safetensors_pass}
runai: Actions = {"import": _import("runai_model_streamer"), "load": _runai_load}
fastsafetensors: Actions = {"import": _import("fastsafetensors", "torch"), "load": _fastsafetensors_load}
tensorizer: Actions = {
    "import": _import("tensorizer"),
    "load": _tensorizer_load,
    "hold": hold,
    "save": _tensorizer_save,
}
torch_mmap: Actions = {
    "import": _import("torch"),
    "load": lambda folder: _torch_load(folder, mmap=True),
    "hold": hold,
    "save": _torch_save,
}
torch_read: Actions = {**torch_mmap, "load": lambda folder: _torch_load(folder, mmap=False)}
torch_dcp: Actions = {
    "import": _import("torch.distributed.checkpoint"),
    "load": _dcp_load,
    "hold": hold,
    "save": _dcp_save,
}
transformers: Actions = {"import": _import("transformers.models.llama.modeling_llama"), "load": _transformers_load}

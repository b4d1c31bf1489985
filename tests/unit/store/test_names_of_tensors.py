"""Every tensor of a version has a name of its own, whatever its files call theirs."""

from tensorkeep.records.manifest import File, Manifest, Tensor
from tensorkeep.store.names_of_tensors import find_tensor, tensors_by_name


def a_file(path: str, *names: str, format_name: str = "npz") -> File:
    tensors = (Tensor(name=name, dtype="U8", shape=(0,), start=0, length=0, digest="") for name in names)
    return File(path=path, size_bytes=0, format=format_name, extents=(), tensors=tuple(tensors), items=(), sha256="")


def a_manifest(*files: File) -> Manifest:
    return Manifest(split="tensor", part_size=1 << 20, files=files, parts=(), checks="")


def test_a_tensor_that_is_called_as_another_is_spelled_hides_none() -> None:
    manifest = a_manifest(a_file("a", "w", "b::w", "b::w::2"), a_file("b", "w", "b::w"), a_file("b::b", "w"))
    named = tensors_by_name(manifest)
    owners = {name: (file.path, tensor.name) for name, (file, tensor) in named.items()}
    assert owners == {
        "w": ("a", "w"),
        "b::w": ("a", "b::w"),
        "b::w::2": ("a", "b::w::2"),
        "b::w::3": ("b", "w"),
        "b::b::w": ("b", "b::w"),
        "b::b::w::2": ("b::b", "w"),
    }


def test_no_tensor_is_hidden_where_many_spellings_are_taken() -> None:
    taken = [f"b::w::{number}" for number in range(2, 100_000)]
    spelled = [f"{'x::' * depth}w" for depth in range(2, 200)]
    manifest = a_manifest(
        a_file("a", "w", "b::w", *taken, *spelled), *(a_file("::".join("x" * n), "w") for n in range(1, 200))
    )
    assert len(tensors_by_name(manifest)) == sum(len(file.tensors) for file in manifest.files)


def test_a_tensor_is_found_by_a_path_that_holds_colons() -> None:
    manifest = a_manifest(a_file("a", "b::w"), a_file("a::b", "v"), a_file("a::b::c", "w", format_name="safetensors"))
    named = tensors_by_name(manifest)

    def owner(name: str) -> str | None:
        found = find_tensor(manifest, named, name)
        return found and found[0].path

    assert owner("a::b::v") == "a::b"
    assert owner("a::b::c::w") == "a::b::c"
    assert owner("a::b::w") == "a"
    assert owner("a::b::c::v") is None

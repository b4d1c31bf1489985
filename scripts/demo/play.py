"""The steps of the demo, in order. Each does one thing a user would do, then checks what was promised of it."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

import tensorkeep
from bench.make_models import find_minilm, make_model
from scripts.demo.material import changed_tensors, flip_byte, folder_bytes, same_tensors, same_trees, tensors_of_library
from scripts.demo.parallel import load_from_one_and_three
from scripts.demo.stage import Stage, Step
from tensorkeep import LoadReport, Store, Version
from tensorkeep.cli.units import human_duration, human_rate, human_size
from tensorkeep.store.reports import PushReport

MINILM = "demo/minilm"
LLAMA = "demo/llama"
INTEGRITY_EXIT = 6
NOT_FOUND_EXIT = 3


class Play:
    """The demo: a stage to show things on, a folder to do them in, and one to keep the models in."""

    def __init__(self, stage: Stage, folder: Path, models: Path, llama: str) -> None:
        self._stage = stage
        self._folder = folder
        self._models = models
        self._llama_name = llama
        self._sources: dict[str, Path] = {}
        self._changed = models / f"{llama}-changed"
        self._heads: dict[str, Version] = {}

    def perform(self) -> None:
        """Do all steps."""
        self._get_models()
        self._make_store()
        with tensorkeep.open() as store:
            self._push(store)
            self._list(store)
            self._load(store)
            self._pull(store)
            self._lose_device(store)
            self._replace_device(store)
            self._flip_byte(store)
            self._push_changed(store)
            self._compare(store)
            self._roll_back(store)
            listing, history = store.models(), store.log(LLAMA)
        self._lose_catalog()
        with tensorkeep.open() as store:
            self._check_rebuilt(store, listing, history)
        load_from_one_and_three(self._stage, self._folder, self._sources[LLAMA])

    # The models and the store

    def _get_models(self) -> None:
        with self._stage.step("Get a real model, generate a Llama-shaped one"):
            self._sources[MINILM] = find_minilm(self._models)
            self._sources[LLAMA] = self._make(self._llama_name)
            self._make("frozen", self._changed, base=self._sources[LLAMA])
            rows = [
                [name, str(path), human_size(folder_bytes(path))]
                for name, path in [*self._sources.items(), ("a change of it", self._changed)]
            ]
            self._stage.table(["MODEL", "FOLDER", ">SIZE"], rows)
            self._stage.check("the real model has tensors", bool(tensors_of_library(self._sources[MINILM])))

    def _make(self, recipe: str, out: Path | None = None, *, base: Path | None = None) -> Path:
        out = out or self._models / recipe
        return out if out.exists() else make_model(recipe, out, base=base)

    def _make_store(self) -> None:
        with self._stage.step("Make a store with three devices, two copies of each part"):
            self._stage.say("export TENSORKEEP_STORE=.demo/run/store")
            self._stage.command("init --replicas 2")
            self._stage.command(f"device add disk0 {self._device_folder('disk0')}")
            with tensorkeep.open() as store:  # what commands do, Python does
                for name in ("disk1", "disk2"):
                    store.devices.add(name, str(self._device_folder(name).absolute()))
                count = len(store.devices.list())
            self._stage.command("device ls")
            self._stage.check("the store has three devices", count == 3)

    def _device_folder(self, name: str) -> Path:
        return self._folder / name

    # Pushing and reading back

    def _push(self, store: Store) -> None:
        with self._stage.step("Push both models: split, placed on the devices, committed") as step:
            for model, source in self._sources.items():
                with self._stage.progress() as progress:
                    version = store.push(source, model, tag="v1", message="first weights", progress=progress)
                self._heads[model] = version
                self._show_push(model, version, step)
            copies = Counter(path.name.split(".")[0] for path in self._folder.glob("disk*/parts/*/*"))
            parts = sum(_report_of(version).new_parts for version in self._heads.values())
            claim = f"each of {parts} parts lies on exactly two of the three devices"
            self._stage.check(claim, len(copies) == parts and set(copies.values()) == {2})

    def _show_push(self, model: str, version: Version, step: Step) -> None:
        report = _report_of(version)
        step.moved(report.bytes, report.seconds)
        self._stage.say(
            f"{model}: {human_size(report.bytes)} in {report.parts} parts, {human_duration(report.seconds)},"
            f" {human_rate(report.rate_bytes_per_s)}; {report.method}, because {report.why}"
        )
        self._stage.say(f"new {human_size(report.new_bytes)}; {_written(report)}")

    def _list(self, store: Store) -> None:
        with self._stage.step("List what is there"):
            self._stage.command("ls")
            self._stage.command(f"show {LLAMA}@v1 --files")
            self._stage.check("both models are listed", {m.name for m in store.models()} == set(self._sources))

    def _load(self, store: Store) -> None:
        with self._stage.step("Load as tensors, every block verified") as step:
            for model in self._sources:
                report = self._load_and_compare(store, f"{model}@v1", self._sources[model], step)
                self._stage.check("no damage was met", not report.damaged, found=report.damaged)
            self._stage.command(f"load {LLAMA}@v1")

    def _load_and_compare(self, store: Store, spec: str, source: Path, step: Step | None = None) -> LoadReport:
        arrays, report = self._load_arrays(store, spec)
        if step:
            step.moved(report.bytes_needed, report.seconds)
        claim = (
            f"{spec}: {len(arrays)} tensors, {human_size(report.bytes_needed)} at {human_rate(report.rate_bytes_per_s)},"
            " bit for bit what the safetensors library reads from the source"
        )
        self._stage.check(claim, same_tensors(arrays, source))
        return report

    def _load_arrays(
        self, store: Store, spec: str, include: str | None = None
    ) -> tuple[Mapping[str, npt.NDArray[Any]], LoadReport]:
        model = store.model(spec)
        with self._stage.progress() as progress:
            arrays = model.load(include=include, progress=progress)
        assert model.report is not None, "a load reports"
        return arrays, model.report

    def _pull(self, store: Store) -> None:
        with self._stage.step("Pull the files back") as step:
            self._stage.command(f"pull {MINILM}@v1 {self._folder / 'out-minilm'}")
            self._check_pull(store, f"{LLAMA}@v1", self._sources[LLAMA], step)
            claim = f"{MINILM}@v1: pulled folder and source are byte-identical"
            self._stage.check(claim, same_trees(self._folder / "out-minilm", self._sources[MINILM]))

    def _check_pull(self, store: Store, spec: str, source: Path, step: Step) -> None:
        out = self._folder / "out"
        with self._stage.progress() as progress:
            report = store.pull(spec, out, progress=progress)
        step.moved(report.bytes, report.load.seconds)
        self._stage.check(f"{spec}: pulled folder and source are byte-identical", same_trees(out, source))
        shutil.rmtree(out)

    # Losing a device, and a byte

    def _lose_device(self, store: Store) -> None:
        lost = "disk1"
        with self._stage.step(f"Delete the whole folder of {lost}; load again") as step:
            shutil.rmtree(self._device_folder(lost))
            output = self._stage.command(f"load {LLAMA}@v1")
            self._stage.check(f"the load succeeds, with a warning that names {lost}", _warns(output, lost))
            for model, source in self._sources.items():
                self._load_and_compare(store, f"{model}@v1", source, step)
            self._stage.command("status")
            down = [d for d in store.status().devices if not d.reachable]
            claim = f"status names {lost} and what it held, and no other device"
            self._stage.check(claim, [d.facts.name for d in down] == [lost] and down[0].objects > 0, found=down)
            self._stage.command("verify", exit_code=INTEGRITY_EXIT)
            named = {problem.device for problem in store.verify().problems}
            self._stage.check(f"verify does not pass, and names {lost}", lost in named, found=named)

    def _replace_device(self, store: Store) -> None:
        with self._stage.step("Give it up, add another, push again: that heals") as step:
            self._stage.command("device lost disk1 --yes")
            self._stage.command(f"device add disk3 {self._device_folder('disk3')}")
            for model, source in self._sources.items():
                version = store.push(source, model)
                report = _report_of(version)
                step.moved(report.written_bytes, report.seconds)
                self._stage.say(f"{model}: {_written(report)}")
                self._stage.check(f"{model} is the same version", version.id == self._heads[model].id)
            held = next(device.bytes for device in store.devices.list() if device.facts.name == "disk3")
            self._stage.check(f"the new device took its share: {human_size(held)}", held > 0)
            self._check_clean(store, "every part has two copies again")

    def _check_clean(self, store: Store, claim: str) -> None:
        self._stage.command("verify")
        status = store.status()
        self._stage.check(f"{claim}; verify is clean", status.ok, found=(status.short, status.warnings))

    def _flip_byte(self, store: Store) -> None:
        with self._stage.step("Flip one byte of one copy on a disk") as step:
            tensor, device, path = self._find_served_part(store)
            offset = flip_byte(path)
            self._stage.say(f"byte {offset:,} of {path} is changed; it belongs to {tensor}")
            output = self._stage.command(f"load {LLAMA}@v1 --include {tensor}")
            self._stage.check(f"the load succeeds, with a warning that names {device}", _warns(output, device))
            report = self._load_and_compare(store, f"{LLAMA}@v1", self._sources[LLAMA], step)
            self._stage.check("the damaged copy is not read again", not report.damaged, found=report.damaged)
            self._stage.command("verify", exit_code=INTEGRITY_EXIT)
            corrupt = [(p.device, p.object) for p in store.verify().problems if p.kind == "corrupt"]
            name = str(path.relative_to(self._device_folder(device)))
            self._stage.check(f"verify names it alone: {name} on {device}", corrupt == [(device, name)], found=corrupt)
            self._stage.command(f"push {self._sources[LLAMA]} {LLAMA}")
            self._stage.command("gc --grace 0")
            self._check_clean(store, "pushing again put a good copy beside it, gc took the bad one away")

    def _find_served_part(self, store: Store) -> tuple[str, str, Path]:
        """Return a tensor that is one whole part, the device that serves it, and the file there."""
        for name, tensor in store.model(f"{LLAMA}@v1").tensors.items():
            copies = [*self._folder.glob(f"disk*/parts/{tensor.digest[:2]}/{tensor.digest}.*")]
            if copies:
                _, report = self._load_arrays(store, f"{LLAMA}@v1", include=name)
                device = report.devices[0].name
                return name, device, next(p for p in copies if p.is_relative_to(self._device_folder(device)))
        raise LookupError("no tensor of the model is a part of its own")

    # Versions

    def _push_changed(self, store: Store) -> None:
        with self._stage.step("Push a changed version: only what changed is stored") as step:
            with self._stage.progress() as progress:
                version = store.push(self._changed, LLAMA, tag="v2", message="train the last layers", progress=progress)
            self._show_push(LLAMA, version, step)
            report = _report_of(version)
            share = report.new_bytes / report.bytes
            claim = f"{human_size(report.new_bytes)} of {human_size(report.bytes)} are new: {share:.1%}, at most 7 %"
            self._stage.check(claim, 0 < share <= 0.07)
            again = store.push(self._changed, LLAMA)
            made_none = again.id == version.id and not _report_of(again).new_parts and not _report_of(again).created
            self._stage.check("the same push again stores nothing and makes no version", made_none)

    def _compare(self, store: Store) -> None:
        with self._stage.step("Tag, log, compare"):
            self._stage.command(f"tag {LLAMA} release-1 v1")
            self._stage.command(f"log {LLAMA}")
            self._stage.command(f"diff {LLAMA}@v1 {LLAMA}@v2")
            named = {tensor.name for tensor in store.diff(f"{LLAMA}@v1", f"{LLAMA}@v2").tensors}
            wanted = changed_tensors(self._sources[LLAMA], self._changed)
            self._stage.check(f"diff names exactly the {len(wanted)} tensors that changed", named == wanted)

    def _roll_back(self, store: Store) -> None:
        with self._stage.step("Roll back") as step:
            self._stage.command(f"branch {LLAMA} main --to v1")
            self._load_and_compare(store, LLAMA, self._sources[LLAMA], step)
            self._load_and_compare(store, f"{LLAMA}@v2", self._changed, step)

    # The catalog

    def _lose_catalog(self) -> None:
        with self._stage.step("Delete the catalog; make it anew from the devices"):
            for path in (self._folder / "store").iterdir():
                if path.name.startswith("catalog"):
                    path.unlink()
                    self._stage.say(f"{path} is deleted")
            output = self._stage.command("ls", exit_code=NOT_FOUND_EXIT)
            self._stage.check("a command says what to do", "rebuild-catalog" in output)
            self._stage.command("rebuild-catalog")

    def _check_rebuilt(self, store: Store, listing: object, history: object) -> None:
        with self._stage.step("Check what came back") as step:
            self._stage.command("ls")
            self._stage.check("models, branches and tags are what they were", store.models() == listing)
            self._stage.check("the history is what it was", store.log(LLAMA) == history)
            self._check_clean(store, "every part has its two copies")
            self._check_pull(store, f"{LLAMA}@v2", self._changed, step)
            self._check_pull(store, f"{MINILM}@v1", self._sources[MINILM], step)


def _report_of(version: Version) -> PushReport:
    assert version.report is not None, "a push reports"
    return version.report


def _written(report: PushReport) -> str:
    written = [f"{name} {human_size(size)}" for name, size in sorted(report.device_bytes.items())]
    return f"written: {', '.join(written) or 'nothing'}"


def _warns(output: str, device: str) -> bool:
    return any(line.startswith("warning:") and device in line for line in output.splitlines())

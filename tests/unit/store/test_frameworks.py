"""Values from memory as numpy arrays."""

import importlib.metadata

import numpy as np
import pytest
import torch

from tensorkeep.errors import InvalidInput
from tensorkeep.store import frameworks


def test_installed_packages_are_looked_through_once_for_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    frameworks._registered_framework.cache_clear()
    frameworks._registered_class.cache_clear()
    asked = []

    def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
        asked.append(group)
        return importlib.metadata.entry_points(group=group)

    monkeypatch.setattr(frameworks, "entry_points", entry_points)
    for value in range(5):
        assert frameworks.to_numpy(torch.full((2,), value)).tolist() == [value, value]
    assert asked == [frameworks.ENTRY_POINT_GROUP]


@pytest.mark.parametrize("value", [[1, 2], "text", None, object(), np.dtype("f4")])
def test_what_is_no_array_is_refused_by_its_type(value: object) -> None:
    with pytest.raises(InvalidInput, match=f"{type(value).__name__} is no array"):
        frameworks.to_numpy(value)

import pytest
import torch

from fedpeft.types import is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 6, 7, 998])
def test_one_value_is_enough(dtype: torch.dtype, value: float, place: int):
    tensor = torch.randn(999).to(dtype)
    assert is_finite(tensor)
    tensor[place] = value
    assert not is_finite(tensor)
    tensor[(place + 500) % 999] = -value  # another one does not hide it
    assert not is_finite(tensor)


def test_no_values_are_finite():
    assert is_finite(torch.empty(0, 3))
    assert is_finite(torch.tensor(1e30))

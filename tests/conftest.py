"""Small tensors gain nothing from threads, and no test may change torch's global state."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_state_is_untouched() -> Iterator[None]:
    before = (torch.is_grad_enabled(), torch.get_default_dtype())
    yield
    after = (torch.is_grad_enabled(), torch.get_default_dtype())
    assert before == after

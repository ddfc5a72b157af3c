"""Results and failures of trials."""

import pytest
import torch

from synaptune.search.trial import make_failure


def test_an_allocation_that_torch_refuses_is_a_failure_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert make_failure(caught.value).kind == "memory"
    assert make_failure(RuntimeError("other")).kind == "error"

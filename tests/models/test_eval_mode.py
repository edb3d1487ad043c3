import pytest
from torch import nn

from echo_ska.models.eval_mode import in_eval_mode


def test_every_module_is_in_eval_mode_meanwhile_and_in_its_own_mode_afterwards():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()  # by its owner
    modes = [module.training for module in model.modules()]

    def interrupted():
        with in_eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [module.training for module in model.modules()] == modes
    model.eval()
    with in_eval_mode(model):
        pass
    assert not any(module.training for module in model.modules())

"""utils/common/distributed.py without a launcher."""
import pytest
import torch

from utils.common import distributed


@pytest.mark.parametrize("variables", [{"RANK": "0"}, {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}])
def test_a_part_of_torchruns_variables_is_one_process_and_it_is_said(monkeypatch, capsys, variables):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.start(torch.device("cpu")) == torch.device("cpu")
    assert distributed.world_size() == 1 and distributed.is_main() and distributed.launcher() == "python"
    line, = capsys.readouterr().out.splitlines()
    assert "RANK is set" in line and "LOCAL_RANK" in line and "one process" in line


def test_without_them_nothing_is_said(monkeypatch, capsys):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    distributed.start(torch.device("cpu"))
    assert distributed.world_size() == 1 and capsys.readouterr().out == ""

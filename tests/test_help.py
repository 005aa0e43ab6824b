"""The help of all scripts."""
import re

import pytest
from conftest import assert_user_error


@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py", "train.py", "txt_annotation.py"])
def test_help_explains_every_flag_and_an_unknown_one_points_to_it(call_script, script):
    result = call_script(script, "--help")
    assert result.returncode == 0 and result.stderr == ""
    flags = re.findall(r"^  (--[\w-]+)", result.stdout, re.MULTILINE)
    assert len(flags) >= 2
    for described in re.split(r"\n  (?=-)", result.stdout)[1:]:
        assert described.startswith("-h") or "(default: " in " ".join(described.split()), described
    assert_user_error(call_script(script, "--no-such-flag"), "--no-such-flag", "--help")

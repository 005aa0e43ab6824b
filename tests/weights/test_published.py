"""The published weights, downloaded from a local server."""
import pytest
from conftest import assert_user_error, files, write_small_weights

from utils.common import files as machine_files
from utils.common.errors import UserError
from utils.weights import published


@pytest.fixture
def beside_the_code(tmp_path, monkeypatch):
    """Use tmp_path as the repository and as the working folder."""
    monkeypatch.setattr(machine_files, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def publisher(server, monkeypatch, published_weights, beside_the_code):
    """Replace the publisher's server by a local one that has the real MobileFaceNet."""
    monkeypatch.setattr(published, "ADDRESS", server.address)
    server.files["/arcface_mobilefacenet.pth"] = published_weights.read_bytes()
    return server


def test_each_backbone_has_its_own_file_beside_the_bundled_one(publisher, tmp_path):
    for backbone in ("mobilenet", "iresnet50"):
        content = write_small_weights(backbone, tmp_path / "made.pth").read_bytes()
        publisher.files[f"/arcface_{backbone}.pth"] = content
        path = published.published_weights(backbone)
        assert path.as_posix() == f"model_data/published_{backbone}.pth" and path.read_bytes() == content
    assert published.published_weights("mobilenetv1").name == "published_mobilenet.pth"


def test_a_download_without_weights_of_its_backbone_is_not_kept(publisher, tmp_path):
    publisher.files["/arcface_mobilenet.pth"] = b"<html>log in</html>"
    publisher.files["/arcface_iresnet50.pth"] = write_small_weights("mobilenet", tmp_path / "made.pth").read_bytes()
    for backbone in ("mobilenet", "iresnet50"):
        with pytest.raises(UserError, match=rf"cannot download http.*{backbone}\.pth .* or download"):
            published.published_weights(backbone)
    assert files(tmp_path) == ["made.pth"]


@pytest.mark.parametrize("backbone", ["iresnet18", "resnet7"])
def test_a_backbone_without_published_weights_is_a_user_error_that_lists_those_with(backbone):
    with pytest.raises(UserError, match=f"published for {backbone}: choose from mobilefacenet, mobilenet, iresnet50$"):
        published.published_weights(backbone)


def test_predict_downloads_and_uses_the_published_weights(call_script, publisher, same, tmp_path):
    result = call_script("predict.py", "--download", "mobilefacenet")
    assert result.returncode == 0 and result.stderr == "" and "model_data/published_mobilefacenet.pth" in result.stdout
    assert files(tmp_path) == ["model_data/published_mobilefacenet.pth"]
    result = call_script("predict.py", *same, "--device", "cpu", "--weights", "published")
    assert result.returncode == 0 and result.stdout.startswith("model_data/published_mobilefacenet.pth (mobilefacenet)")
    assert publisher.asked == ["/arcface_mobilefacenet.pth"]
    by_path = call_script("predict.py", *same, "--device", "cpu", "--model-path",
                          "model_data/published_mobilefacenet.pth")
    assert by_path.stdout == result.stdout


@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py"])
def test_without_a_network_one_line_names_the_file_and_its_place(call_script, script, nowhere, beside_the_code,
                                                                 monkeypatch):
    monkeypatch.setattr(published, "ADDRESS", nowhere)
    assert_user_error(call_script(script, "--weights", "published", "--backbone", "iresnet50"),
                      f"download {nowhere}/arcface_iresnet50.pth", "model_data/published_iresnet50.pth")


@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py"])
def test_weights_named_twice_or_unknown_are_a_user_error(call_script, script, published_weights):
    assert_user_error(call_script(script, "--weights", "published", "--model-path", published_weights),
                      "--weights", "--model-path")
    assert_user_error(call_script(script, "--weights", "best"), "--weights", "best", "published")

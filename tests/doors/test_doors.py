"""The doors run from nothing to a picture, and say what the page "Bring your own model" says of them."""

import re
import sys
from pathlib import Path

import doors
import numpy as np
import pytest
from PIL import Image

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), float)


def test_no_door_has_the_name_of_a_package_that_it_would_hide():
    hidden = {package for name in doors.DOORS for package in doors.imported(name)} & set(doors.DOORS)
    assert hidden == set()


@pytest.mark.parametrize("name", doors.DOORS)
def test_door_saves_a_picture_within_ten_lines_that_a_page_can_show(name):
    assert len(doors.code_until_picture(name)) <= 10
    assert max(map(len, (doors.FOLDER / f"{name}.py").read_text().splitlines())) <= 90


def test_every_package_that_a_door_imports_is_pinned():
    text = (Path(__file__).parents[2] / "constraints-doors.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE))
    imported = {package for name in doors.DOORS for package in doors.imported(name)} - {"lrp_jax"}
    of_modules = {"PIL": "pillow", "haiku": "dm-haiku"}
    assert imported
    assert {of_modules.get(name, name) for name in imported - sys.stdlib_module_names} <= pinned


@pytest.mark.doors
@pytest.mark.parametrize("name", doors.DOORS)
def test_door_prints_and_draws_what_the_page_shows(name, tmp_path):
    missing = doors.missing(name)
    if missing:
        pytest.skip(f"{name}.py needs {', '.join(missing)}")
    printed, expected = doors.run(name, tmp_path), (doors.EXPECTED / f"{name}.txt").read_text()
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    np.testing.assert_allclose(*(np.array(NUMBER.findall(text), float) for text in (printed, expected)), rtol=0.02)
    written = {path.name for path in tmp_path.iterdir()} - {doors.PHOTOGRAPH}
    assert written == {doors.PICTURE} | ({"my.onnx"} if name == "onnx_model" else set())
    drawn, shown = pixels(tmp_path / doors.PICTURE), pixels(doors.EXPECTED / f"{name}.png")
    assert drawn.shape == shown.shape
    assert drawn.std() > 1  # of 255: something is drawn
    assert abs(drawn - shown).mean() < 0.1 * shown.std()

"""The doors run from nothing to a picture, and say what the page "Bring your own model" says of them."""

import re

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


@pytest.mark.doors
@pytest.mark.parametrize("name", doors.DOORS)
def test_door_prints_and_draws_what_the_page_shows(name, tmp_path):
    missing = doors.missing(name)
    if missing:
        pytest.skip(f"{name}.py needs {', '.join(missing)}")
    printed, expected = doors.run(name, tmp_path), (doors.EXPECTED / f"{name}.txt").read_text()
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    np.testing.assert_allclose(*(np.array(NUMBER.findall(text), float) for text in (printed, expected)), rtol=0.02)
    assert [path.name for path in tmp_path.iterdir()] == [doors.PICTURE]
    drawn, shown = pixels(tmp_path / doors.PICTURE), pixels(doors.EXPECTED / f"{name}.png")
    assert drawn.shape == shown.shape
    assert drawn.std() > 1  # of 255: something is drawn
    assert abs(drawn - shown).mean() < 0.1 * shown.std()

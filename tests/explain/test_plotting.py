"""Relevance maps are drawn with the right colours, labels and scales, and bad arrays are refused."""

import sys
import warnings

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from lrp_jax.errors import ArrayError, LRPWarning, MissingExtraError
from lrp_jax.plotting import grid, heatmap, overlay

RANDOM = np.random.default_rng(0)


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def images():
    return np.linspace(0, 1, 2 * 4 * 3).reshape(2, 4, 3)


def test_heatmap_is_centred_on_zero(ax):
    image = heatmap([[0.5, -2.0], [0.0, 1.0]], ax)
    assert image.get_clim() == (-2, 2)
    red, green, blue, _ = image.to_rgba(0.0)
    assert red == pytest.approx(green, abs=0.01) == pytest.approx(blue, abs=0.01)


def test_heatmap_makes_positive_red_and_negative_blue(ax):
    image = heatmap([[1.0, -1.0]], ax)
    assert image.to_rgba(1.0)[0] > image.to_rgba(1.0)[2]
    assert image.to_rgba(-1.0)[0] < image.to_rgba(-1.0)[2]


def test_heatmap_takes_the_given_limit_and_colours(ax):
    image = heatmap([[0.5, -2.0]], ax, limit=7.0, colormap="PuOr")
    assert image.get_clim() == (-7, 7)
    assert image.get_cmap().name == "PuOr"


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_heatmap_draws_the_sum_of_the_channels(ax, array):
    relevance = np.arange(24.0).reshape(4, 2, 3) - 12
    image = heatmap(array(relevance), ax)
    np.testing.assert_allclose(image.get_array(), relevance.sum(axis=-1))


def test_heatmap_of_one_channel_is_that_channel(ax):
    relevance = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(heatmap(relevance[..., None], ax).get_array(), relevance)


def test_heatmap_of_zeros_can_be_drawn(ax):
    assert heatmap(np.zeros((2, 2)), ax).get_clim() == (-1, 1)


def test_a_map_has_a_frame_on_all_sides_in_every_style():
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        _, ax = plt.subplots()
        heatmap(np.ones((2, 2)), ax)
    assert all(side.get_visible() for side in ax.spines.values())
    plt.close()


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
def test_heatmap_refuses_other_shapes(ax, shape):
    with pytest.raises(ArrayError, match=r"\(H, W\) or \(H, W, C\), but has"):
        heatmap(np.zeros(shape), ax)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_heatmap_refuses_what_is_not_finite(ax, value):
    with pytest.raises(ArrayError, match="finite"):
        heatmap([[0.0, value]], ax)


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan])
def test_heatmap_refuses_a_limit_that_is_not_positive(ax, limit):
    with pytest.raises(ArrayError, match="limit"):
        heatmap([[1.0]], ax, limit=limit)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_overlay_hides_the_image_where_relevance_is_large(ax, channels):
    relevance = np.array([[1.0, -2.0, 0.0]])
    drawn = overlay(np.ones((1, 3, *channels)) / 2, relevance, ax, channel_axis=-1)
    np.testing.assert_array_equal(drawn.get_array(), relevance)
    np.testing.assert_array_equal(drawn.get_alpha(), [[0.5, 1, 0]])
    np.testing.assert_array_equal(ax.images[0].get_array(), np.full((1, 3), 0.75))


def test_overlay_of_integers_reaches_to_255_and_takes_a_limit(ax):
    drawn = overlay(np.array([[0, 255]], np.uint8), [[1.0, 4.0]], ax, limit=2.0, colormap="PuOr")
    assert ax.images[0].get_clim() == (0, 255)
    assert drawn.get_clim() == (-2, 2)
    assert drawn.get_cmap().name == "PuOr"
    np.testing.assert_array_equal(drawn.get_alpha(), [[0.5, 1]])


@pytest.mark.parametrize(
    ("image", "relevance", "message"),
    [
        (
            np.zeros((2, 3)),
            np.zeros((3, 2)),
            r"\(2, 3\) pixels, but the relevance \(3, 2\), whose prop",
        ),
        (np.zeros((2, 3, 2)), np.zeros((2, 3)), r"image needs the shape \(H, W\).*has \(2, 3, 2\)"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), "relevance must be finite"),
    ],
)
def test_overlay_says_what_does_not_fit(ax, image, relevance, message):
    with pytest.raises(ArrayError, match=message):
        overlay(image, relevance, ax)


def test_grid_draws_images_labels_maps_and_a_labelled_colour_bar(images):
    figure = grid(images, [images[0], -3 * images[1]], ["1", "8"], colorbar_label="share")
    first, second, first_map, second_map, colorbar = figure.axes
    np.testing.assert_array_equal(second.images[0].get_array(), images[1])
    np.testing.assert_array_equal(second_map.images[0].get_array(), -3 * images[1])
    assert [first.get_xlabel(), second.get_xlabel()] == ["1", "8"]
    assert first_map.images[0].get_clim() == second_map.images[0].get_clim() == (-3, 3)
    assert colorbar.get_ylabel() == "share"


def test_grid_gives_each_named_row_a_scale_of_its_own(images):
    figure = grid(images, {"LRP-0": images, "z+": 5 * images}, ["1", "8"])
    limits = [ax.images[0].get_clim()[1] for ax in figure.axes[2:6]]
    assert limits == pytest.approx([1, 1, 5, 5])
    assert [figure.axes[2].get_ylabel(), figure.axes[4].get_ylabel()] == ["LRP-0", "z+"]
    assert len(figure.axes) == 8


@pytest.mark.parametrize(("scale", "limit"), [(2.0, 2), ("all", 5)])
def test_grid_takes_one_scale_for_all_rows(images, scale, limit):
    figure = grid(images, {"LRP-0": images, "z+": 5 * images}, ["1", "8"], scale=scale)
    assert {ax.images[0].get_clim() for ax in figure.axes[2:6]} == {(-limit, limit)}


def test_grid_gives_each_map_a_scale_of_its_own(images):
    maps = {"LRP-0": [images[0], -3 * images[1]], "z+": [0 * images[0], 5 * images[1]]}
    figure = grid(images, maps, ["1", "8"], scale="image")
    largest = [np.abs(ax.images[0].get_array()).max() for ax in figure.axes[2:6]]
    assert largest == [1, 1, 0, 1]
    assert {ax.images[0].get_clim() for ax in figure.axes[2:6]} == {(-1, 1)}
    assert figure.axes[6].get_ylabel() == "relative"


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 2), (3, 2, 8)])
def test_grid_draws_each_image_straight_above_its_maps(shape):
    values = RANDOM.random(shape)
    figure = grid(values, {"LRP-0": values, "z+": 1e4 * values}, ["label"] * len(values))
    figure.draw_without_rendering()
    rows = np.reshape([ax.get_position().intervalx for ax in figure.axes[: 3 * len(values)]], (3, -1))
    np.testing.assert_allclose(rows[1:], rows[:1].repeat(2, axis=0), atol=1e-6)


@pytest.mark.parametrize(("scale", "message"), [("rows", "not 'rows'"), (0.0, "a positive number, but it is 0.0")])
def test_grid_refuses_another_scale(images, scale, message):
    with pytest.raises(ArrayError, match=message):
        grid(images, images, ["1", "8"], scale=scale)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_draws_images_with_channels(images, channels):
    with_channels = jnp.repeat(images[..., None], channels, axis=-1)
    figure = grid(with_channels, with_channels, ["1", "8"])
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), channels * images[0], 1e-6)


def test_grid_shows_integers_up_to_255(images):
    figure = grid((200 * images).astype(np.uint8), images, ["1", "8"])
    assert figure.axes[0].images[0].get_clim() == (0, 255)


def test_grid_leaves_no_figure_open(images):
    before = plt.get_fignums()
    grid(images, images, ["1", "8"])
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("relevance", "labels", "message"),
    [
        (np.zeros((3, 4, 3)), ["1", "8"], "2 images, but 3 maps"),
        (np.zeros((2, 4, 3)), ["1"], "2 images, but 1 labels"),
        ({"z+": np.zeros((2, 4))}, ["1", "8"], r"'z\+' needs the shape \(N, H, W\)"),
        ({"z+": np.full((2, 4, 3), np.nan)}, ["1", "8"], r"'z\+' must be finite"),
    ],
)
def test_grid_says_what_does_not_fit(images, relevance, labels, message):
    with pytest.raises(ArrayError, match=message):
        grid(images, relevance, labels)


@pytest.mark.parametrize("size", [(0, 5), (4, 0), (4, 0, 3), (0, 0)])
def test_no_pixels_are_refused(ax, size):
    nothing = np.zeros(size)
    for draw in (lambda: heatmap(nothing, ax), lambda: overlay(nothing, nothing, ax)):
        with pytest.raises(ArrayError, match=r"has \(\d, \d\) pixels: there is nothing to draw"):
            draw()
    with pytest.raises(ArrayError, match="nothing to draw"):
        grid(nothing[None], nothing[None], ["1"])


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3, 2)])
def test_grid_refuses_images_of_other_shapes(shape):
    with pytest.raises(ArrayError, match=r"images needs the shape"):
        grid(np.zeros(shape), np.zeros((2, 4, 3)), ["1", "8"])


def test_grid_without_matplotlib_names_the_extra(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtraError, match=r"matplotlib is missing: pip install matplotlib \(the extra 'plot' brings it\)"
    ):
        grid(images, images, ["1", "8"])


@pytest.mark.parametrize("channel_axis", [None, 0, -3])
def test_channels_first_are_summed(channel_axis):
    maps, images = RANDOM.normal(size=(2, 3, 5, 6)), RANDOM.random((2, 3, 5, 6))
    drawn = heatmap(maps[0], Figure().subplots(), channel_axis=channel_axis)
    np.testing.assert_allclose(drawn.get_array(), maps[0].sum(0))
    figure = grid(images, {"LRP-0": maps}, ["a", "b"], channel_axis=channel_axis)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.moveaxis(images[0], 0, -1))
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), maps[0].sum(0))
    drawn = overlay(images[0], maps[0], Figure().subplots(), channel_axis=channel_axis)
    np.testing.assert_allclose(drawn.get_array(), maps[0].sum(0))


@pytest.mark.parametrize("shape", [(3, 5, 3), (1, 5, 3), (5, 6, 7)])
def test_channels_that_can_be_in_two_places_or_none_are_asked_for(ax, shape):
    maps, images = RANDOM.normal(size=(2, *shape)), RANDOM.random((2, 3, 5, 3))
    with pytest.raises(ArrayError, match=r"Pass channel_axis=-1 if they are last, or channel_axis=0 if .* first"):
        heatmap(maps[0], ax)
    with pytest.raises(ArrayError, match=r"array of images has .* cannot be told where the channels are"):
        grid(images, maps, ["a", "b"])
    for channel_axis in (0, 2, -1):
        drawn = heatmap(maps[0], Figure().subplots(), channel_axis=channel_axis)
        np.testing.assert_allclose(drawn.get_array(), maps[0].sum(channel_axis))


@pytest.mark.parametrize("channel_axis", [3, -4, "first", True, 1.0])
def test_an_axis_that_a_sample_does_not_have_is_refused(ax, channel_axis):
    with pytest.raises(ArrayError, match=r"channel_axis is the axis of one sample .* from -3 to 2, but it is"):
        heatmap(np.ones((3, 4, 5)), ax, channel_axis=channel_axis)


def test_maps_of_another_size_than_the_images_are_refused():
    images = RANDOM.random((2, 4, 5))
    with pytest.raises(ArrayError, match=r"images have \(4, 5\) pixels, but the maps 'z\+' \(7, 9\)"):
        grid(images, {"LRP-0": images, "z+": RANDOM.random((2, 7, 9))}, ["a", "b"])


def test_images_that_are_cut_off_are_warned_of():
    images = RANDOM.random((2, 4, 5, 3))
    with pytest.warns(LRPWarning, match=r"reaches from -.* to .*cut off"):
        grid(images * 4 - 2, images, ["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid(images, images, ["a", "b"])
        grid((255 * images).astype(np.uint8), images, ["a", "b"])

"""What an explanation draws, writes and says of itself, and the pictures of series and texts."""

import base64
import io
import pickle
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from PIL import Image

from lrp_jax import relevance, rules
from lrp_jax.errors import ArrayError, InputError, LRPWarning, MissingExtraError, StoreError, import_extra
from lrp_jax.explain.relevance import Explanation
from lrp_jax.plotting import grid, heatmap, overlay, strips, words, words_as_html

RANDOM = np.random.default_rng(0)
CLASSES = ["tabby", "German shepherd", "fox"]


def made(*shape, output=((1.0, 3.0, 2.0), (5.0, 4.0, 3.0)), dtype=np.float32):
    """An explanation of random numbers."""
    x = RANDOM.random(shape).astype(dtype) if dtype == np.float32 else RANDOM.integers(0, 9, shape)
    return Explanation(np.float32(output), RANDOM.normal(size=shape).astype(np.float32), x=x)


def pixels(figure):
    """What a notebook shows, as numbers from 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"), int)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: heatmap([[1.0, -1.0]]),
        lambda: overlay(np.ones((2, 2)), np.eye(2)),
        lambda: grid(np.ones((1, 2, 2)), np.ones((1, 2, 2)), ["a"]),
        lambda: strips(np.arange(20.0), np.arange(20.0)),
        lambda: words(["so", "it", "is"], [1.0, -2.0, 0.0]),
        lambda: made(2, 6, 6).plot(),
    ],
    ids=["heatmap", "overlay", "grid", "strips", "words", "plot"],
)
def test_figures_show_themselves_and_are_pickled(draw):
    figure = draw()
    assert isinstance(figure, Figure)
    shown = pixels(figure)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 3
    loaded = pickle.loads(pickle.dumps(figure))
    assert loaded is not figure
    np.testing.assert_allclose(pixels(loaded).shape, shown.shape, atol=10)  # the layout is solved again
    loaded.clear()
    assert len(np.unique(pixels(loaded))) == 1  # it shows itself, not what it was made from


def test_heatmap_of_an_explanation_draws_its_samples_on_one_scale():
    explanation = made(2, 3, 6, 5)
    figure = heatmap(explanation)
    first, second, bar = figure.axes
    for ax, values in zip((first, second), explanation.relevance, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), values.sum(0))
        assert ax.images[0].get_clim()[1] == np.abs(explanation.relevance.sum(1)).max()
    assert bar.get_ylabel() == "relevance"
    one = jax.tree.map(lambda array: array[:1], explanation)
    np.testing.assert_allclose(heatmap(one, Figure().subplots()).get_array(), explanation.relevance[0].sum(0))


@pytest.mark.parametrize(
    ("shape", "draw"),
    [
        ((6, 5, 3), lambda x, maps: heatmap(maps, Figure().subplots())),
        ((6, 5, 3), overlay),
        ((200, 2), strips),
        ((3,), lambda x, maps: words(["so", "it", "is"], maps)),
        ((3,), lambda x, maps: words_as_html(["so", "it", "is"], maps)),
    ],
    ids=["heatmap", "overlay", "strips", "words", "words_as_html"],
)
def test_picture_of_one_sample_takes_an_explanation_of_one(shape, draw):
    two = made(2, *shape)
    one = jax.tree.map(lambda array: array[1:], two)
    drawn, expected = draw(two.x[1], one), draw(two.x[1], two.relevance[1])
    if isinstance(drawn, Figure):
        np.testing.assert_array_equal(pixels(drawn), pixels(expected))
    elif not isinstance(drawn, str):
        np.testing.assert_array_equal(drawn.get_array(), expected.get_array())
    else:
        assert drawn == expected
    with pytest.raises(ArrayError, match=r"but the explanation has 2\. Pass explanation\.relevance\[0\]"):
        draw(two.x[1], two)


@pytest.mark.parametrize("number", [1, 3])
def test_several_samples_are_refused_where_one_is_drawn(number):
    images = np.ones((number, 6, 5, 3))
    with pytest.raises(ArrayError, match=r"has \(\d, 6, 5, 3\)\. Pass that of one sample, such as relevance\[0\]"):
        heatmap(images)
    with pytest.raises(ArrayError, match=r"has \(\d, 6, 5, 3\)\. Pass one of them, such as images\[0\]"):
        overlay(images, images[0])


def test_grid_takes_explanations_by_name():
    explanation = made(2, 6, 5, 3)
    figure = grid(explanation.x, {"z+": explanation}, ["a", "b"])
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), explanation.relevance[1].sum(-1))


@pytest.mark.parametrize(
    ("explanation", "message"),
    [
        (Explanation(np.ones((1, 2)), {"a": np.ones((1, 4, 4))}, x={"a": np.ones((1, 4, 4))}), "of several arrays"),
        (Explanation(np.ones((1, 2)), np.ones((2, 1, 4, 4)), x=np.ones((1, 4, 4))), "of all classes"),
        (Explanation(np.ones((0, 2)), np.ones((0, 4, 4)), x=np.ones((0, 4, 4))), "has no samples"),
    ],
)
def test_heatmap_says_what_it_does_not_draw(explanation, message):
    with pytest.raises(ArrayError, match=message):
        heatmap(explanation)


def test_overlay_of_a_photograph_has_a_percentile_as_limit_and_may_be_in_colour():
    photograph = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
    values = RANDOM.normal(size=(3, 40, 60))
    values[0, 0, 0] = 1000.0  # one pixel would make all others pale
    drawn = overlay(Image.fromarray(photograph), values, ax := Figure().subplots(), background="colour")
    np.testing.assert_array_equal(ax.images[0].get_array(), photograph)
    ordered = np.sort(np.abs(values.sum(0)), axis=None)
    assert drawn.get_clim()[1] == ordered[int(np.ceil(0.99 * (ordered.size - 1)))] < 10
    assert drawn.get_alpha().max() == 1
    with pytest.raises(ArrayError, match="background is 'pale' or 'colour', but it is 'grey'"):
        overlay(photograph, values, background="grey")


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "HSV", "LA", "1"])
def test_photograph_in_another_mode_of_pillow_is_drawn_in_its_colours(mode):
    # Black, white, blue and yellow are in every palette; the modes without colours have their greys.
    colours = np.array([[[0, 0, 0], [255, 255, 255]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    photograph = Image.fromarray(colours).convert(mode)
    overlay(photograph, np.ones((2, 2)), ax := Figure().subplots(), background="colour")
    expected = colours if mode in {"RGBA", "P", "CMYK", "HSV"} else np.asarray(photograph.convert("RGB"))
    np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=3)  # the rounding of a hue


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, jnp.int32])
def test_integers_up_to_255_are_drawn_as_bytes(dtype):
    photograph = RANDOM.integers(0, 256, (4, 5, 3)).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overlay(photograph, np.ones((4, 5)), ax := Figure().subplots(), background="colour")
        figure = grid(photograph[None], np.ones((1, 4, 5)), ["a"])
    np.testing.assert_array_equal(ax.images[0].get_array(), photograph)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), photograph)
    for cut in (photograph.astype(np.float32), 300 * np.ones((4, 5), int)):
        with pytest.warns(LRPWarning, match="divide by 255 if that is white"):
            overlay(cut, np.ones((4, 5)))


def test_array_with_transparency_is_refused_and_what_helps_is_named():
    with pytest.raises(ArrayError, match=r"has \(4, 5, 4\)\. Of a picture with transparency.*picture\[\.\.\., :3\]"):
        overlay(np.ones((4, 5, 4)), np.ones((4, 5)))


@pytest.mark.parametrize("size", [(20, 30), (10, 15), (80, 120)])
def test_map_of_another_size_is_stretched_over_its_image(size):
    drawn = overlay(np.ones((40, 60)), RANDOM.normal(size=size), ax := Figure().subplots())
    assert drawn.get_extent() == ax.images[0].get_extent() == [-0.5, 59.5, 39.5, -0.5]


@pytest.mark.parametrize("channel_axis", [None, 0])
def test_photograph_has_channels_last_and_relevance_first(channel_axis):
    photograph, values = RANDOM.integers(0, 256, (40, 60, 3), np.uint8), RANDOM.normal(size=(3, 40, 60))
    drawn = overlay(photograph, values, ax := Figure().subplots(), channel_axis=channel_axis, background="colour")
    np.testing.assert_array_equal(ax.images[0].get_array(), photograph)
    np.testing.assert_allclose(drawn.get_array(), values.sum(0))
    with pytest.raises(ArrayError, match="channel_axis is the axis"):
        overlay(photograph, values.sum(0), channel_axis="last")


def test_map_of_other_proportions_is_refused_and_what_helps_is_named():
    image, values = np.ones((40, 60, 3)), RANDOM.normal(size=(20, 20))
    with pytest.raises(ArrayError, match=r"\(40, 60\) pixels, .*jax\.image\.resize\(map, \(40, 60\), 'nearest'\)"):
        overlay(image, values)
    overlay(image, jax.image.resize(values, (40, 60), "nearest"))


@pytest.mark.parametrize("channels", ["first", "last"])
def test_strips_draw_each_channel_with_its_relevance(channels):
    series, values = RANDOM.normal(size=(2, 200)), RANDOM.normal(size=(2, 200))
    turned = (series, values) if channels == "first" else (series.T, values.T)
    figure = strips(*turned, names=["left", "right"], limit=2.0)
    for ax, line, one, name in zip(figure.axes, series, values, ["left", "right"], strict=False):
        np.testing.assert_array_equal(ax.images[0].get_array(), one[None])
        assert ax.images[0].get_clim() == (-2, 2)
        assert ax.get_ylabel() == name
        drawn = ax.lines[-1].get_ydata()
        np.testing.assert_allclose(np.corrcoef(drawn, line)[0, 1], 1)
        assert 0 < drawn.min() < drawn.max() < 1
    height, width, _ = pixels(figure).shape
    assert height < width / 2


def test_few_steps_are_as_wide_as_their_colours():
    ax = strips(np.array([1.0, 3.0, 2.0]), np.ones(3)).axes[0]
    x, y = ax.lines[-1].get_path().vertices.T
    assert (x.min(), x.max()) == ax.get_xlim() == (-0.5, 2.5)
    for place, height in zip((-0.4, 0.4, 0.6, 1.4, 1.6, 2.4), (0.1, 0.1, 0.9, 0.9, 0.5, 0.5), strict=True):
        np.testing.assert_allclose(np.interp(place, x, y), height)


def test_strips_of_many_channels_are_one_map():
    figure = strips(np.ones((300, 64)), values := RANDOM.normal(size=(300, 64)), channel_axis=-1)
    assert len(figure.axes) == 2
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), values.T)


@pytest.mark.parametrize("shape", [(20, 30), (4, 5)])
def test_series_whose_channels_cannot_be_told_are_refused(shape):
    with pytest.raises(ArrayError, match="Pass channel_axis=-1 if they are last, or channel_axis=0"):
        strips(np.ones(shape), np.ones(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((20, 2)), np.ones((2, 20))), r"series has the shape \(20, 2\), but its relevance \(2, 20\)"),
        ((np.ones((1, 20, 2)), np.ones((1, 20, 2))), r"needs the shape \(T,\), \(T, C\) or \(C, T\)"),
        ((np.ones(0), np.ones(0)), "series is empty"),
        ((np.ones(9), np.full(9, np.nan)), "relevance must be finite"),
    ],
)
def test_strips_say_what_does_not_fit(arguments, message):
    with pytest.raises(ArrayError, match=message):
        strips(*arguments)


def test_words_have_the_colours_of_their_relevance():
    figure = words(["▁not", "$bad$", "\n"], [-1.0, 2.0, 0.0])
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["not", "$bad$", "↵"]
    (not_, bad, end) = (patch.get_facecolor()[:3] for patch in ax.patches)
    assert not_[2] > not_[0]
    assert bad[0] > bad[2]
    assert end == (1, 1, 1)
    assert [text.get_color() for text in ax.texts] == ["black", "white", "black"]


def test_words_are_wrapped_within_the_figure():
    ax = words(["word"] * 100, np.ones(100)).axes[0]
    corners = np.concatenate([patch.get_xy() for patch in ax.patches])
    assert corners.min() >= 0
    assert corners[:, 0].max() <= ax.get_xlim()[1]
    assert corners[:, 1].max() <= ax.get_ylim()[0]
    assert len({patch.get_xy()[0, 1] for patch in ax.patches}) > 3


def test_words_as_html_are_escaped_and_readable():
    spans = BeautifulSoup(words_as_html(["<b>", "bad"], [-1.0, 2.0]), "html.parser").select("span")
    assert [span.text for span in spans] == ["<b>", "bad"]
    assert [span["title"] for span in spans] == ["-1", "2"]
    for span in spans:
        style = dict(part.split(": ") for part in span["style"].split("; "))
        assert contrast(style["background"], style["color"]) >= 4.5


def contrast(background, ink):
    """The ratio of luminances of WCAG 2, of which 4.5 is asked for text."""
    parts = np.array([int(part) for part in background[4:-1].split(",")]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminances = sorted([linear @ [0.2126, 0.7152, 0.0722], {"black": 0.0, "white": 1.0}[ink]])
    return (luminances[1] + 0.05) / (luminances[0] + 0.05)


@pytest.mark.parametrize("share", np.linspace(-1, 1, 21))
def test_every_colour_of_a_word_can_be_read(share):
    (_, span) = BeautifulSoup(words_as_html(["a", "b"], [1.0, share], limit=1.0), "html.parser").select("span")
    style = dict(part.split(": ") for part in span["style"].split("; "))
    assert contrast(style["background"], style["color"]) >= 4.5


def test_relevance_of_an_embedding_is_summed_for_each_word():
    values = RANDOM.normal(size=(3, 8))
    assert words_as_html(list("abc"), values) == words_as_html(list("abc"), values.sum(-1))


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        (["a"], [1.0, 2.0], "There are 2 words, but 1 tokens"),
        ("ab", [1.0, 2.0], "tokens must be a list of texts, but it is a str"),
        (["a"], np.ones((1, 2, 3)), r"needs the shape \(T,\) or \(T, D\)"),
    ],
)
def test_words_say_what_does_not_fit(tokens, values, message):
    for draw in (words, words_as_html):
        with pytest.raises(ArrayError, match=message):
            draw(tokens, values)


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 5, 3), (2, 3, 6, 5), (2, 1, 6, 5)])
def test_plot_of_images_shows_them_above_their_maps(shape):
    explanation = made(*shape)
    figure = explanation.plot(classes=CLASSES)
    axis = None if len(shape) == 3 else 1 if shape[1] in (1, 3) else 3
    assert [ax.get_xlabel() for ax in figure.axes[:2]] == ["German\nshepherd: 3".replace("\n", " "), "tabby: 5"]
    for i in range(2):
        whole = explanation.relevance[i] if axis is None else explanation.relevance[i].sum(axis - 1)
        np.testing.assert_allclose(figure.axes[2 + i].images[0].get_array(), whole, rtol=1e-6)
        image = explanation.x[i] if axis is None else np.moveaxis(explanation.x[i], axis - 1, -1)
        np.testing.assert_allclose(figure.axes[i].images[0].get_array().squeeze(), image.squeeze(), rtol=1e-6)


def test_long_name_of_a_class_is_cut_and_its_value_is_not():
    name = "German shepherd, German shepherd dog, German police dog, alsatian"
    figure = made(8, 6, 6, output=np.ones((8, 2)) * [1.0, 2.5]).plot(classes=["fox", name])
    assert figure.axes[0].get_xlabel() == "German\nshepherd,\n… 2.5"
    labels = made(2, 6, 6).plot(classes=["a", f"{name[:44]}", "c"]).axes[0].get_xlabel()
    assert labels.replace("\n", " ") == f"{name[:44]}: 3"


def test_plot_shows_a_standardised_image_from_its_least_to_its_largest_value():
    explanation = made(1, 6, 5, output=[[1.0, 2.0]])
    standardised = Explanation(explanation.output, explanation.relevance, x=explanation.x * 4 - 2)
    shown = standardised.plot().axes[0].images[0].get_array()
    assert (shown.min(), shown.max()) == (0, 1)


def test_plot_asks_where_channels_are_and_takes_the_answer():
    explanation = made(2, 3, 7, 3)
    with pytest.raises(ArrayError, match=r"\(3, 7, 3\) is drawn neither .* Pass channel_axis"):
        explanation.plot()
    drawn = explanation.plot(channel_axis=0).axes[2].images[0].get_array()
    np.testing.assert_allclose(drawn, explanation.relevance[0].sum(0), rtol=1e-6)
    drawn = made(2, 64, 7, 9).plot(channel_axis=0).axes[0].images[0].get_array()
    assert drawn.shape == (7, 9)


def test_plot_of_series_is_of_bounded_size():
    explanation = made(4, 200, 2, output=RANDOM.normal(size=(4, 3)))
    figure = explanation.plot()
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), explanation.relevance[0, None, :, 0])
    height, width, _ = pixels(figure).shape
    assert (height < 900) & (width < 900)
    leads = made(1, 12, 500, output=[[1.0, 2.0]]).plot()  # an electrocardiogram
    assert [ax.get_ylabel() for ax in leads.axes[:-1]] == [str(lead) for lead in range(12)]


def test_plot_of_texts_shows_words():
    explanation = made(2, 5, dtype=np.int32)
    words_of = ["a", "b", "c", "d", "e"]
    figure = explanation.plot(tokens=words_of)
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [words_of, words_of]
    figure = explanation.plot(tokens=[words_of, words_of[::-1]], samples=[1])
    assert [text.get_text() for text in figure.axes[0].texts] == words_of[::-1]
    shown = [text.get_text() for text in explanation.plot().axes[0].texts]
    assert shown == list(map(str, explanation.x[0]))
    assert made(2, 5, 64).plot(tokens=words_of).axes[0].texts[1].get_text() == "b"


@pytest.mark.parametrize("tokens", [["a", "b"], [["a"] * 5], 3, "abcde", [["a"] * 4] * 2])
def test_plot_refuses_tokens_of_another_number(tokens):
    with pytest.raises(ArrayError, match="tokens"):
        made(2, 5, dtype=np.int32).plot(tokens=tokens)


def test_plot_of_several_inputs_draws_each():
    x = {"image": RANDOM.random((2, 6, 5)), "extra": RANDOM.random((2, 9))}
    figure = Explanation(np.ones((2, 3)), jax.tree.map(lambda array: array - 0.5, x), x=x).plot()
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == ["extra, class 0: 1", "extra, class 0: 1", "image"]
    pair = (x["image"], x["extra"])
    titles = [part.get_suptitle() for part in Explanation(np.ones((2, 3)), pair, x=pair).plot().subfigs]
    assert titles == ["input 0", "input 1, class 0: 1", "input 1, class 0: 1"]


def test_plot_of_all_classes_shows_that_of_the_largest_output():
    explanation = made(2, 6, 5)
    maps = RANDOM.normal(size=(3, 2, 6, 5))
    figure = Explanation(explanation.output, maps, x=explanation.x).plot()
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), maps[1, 0])
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), maps[0, 1])


def test_plot_takes_eight_samples_or_those_that_are_asked_for():
    explanation = made(20, 6, 5, output=np.ones((20, 3)))
    assert len(explanation.plot().axes) == 2 * 8 + 1
    drawn = explanation.plot(samples=[13]).axes[1].images[0].get_array()
    np.testing.assert_array_equal(drawn, explanation.relevance[13])
    for samples, message in (([20], "no sample 20"), ([], "list of indices"), ([-1], "at least 0"), (3, "list of")):
        with pytest.raises(ArrayError, match=message):
            explanation.plot(samples=samples)


def test_plot_refuses_what_it_cannot_draw():
    with pytest.raises(ArrayError, match=r"\(2, 3, 4, 5\) is drawn neither as an image nor as a series"):
        made(2, 2, 3, 4, 5).plot()
    with pytest.raises(ArrayError, match="no samples"):
        made(0, 6, 5, output=np.ones((0, 3))).plot()
    with pytest.raises(ArrayError, match="finite"):
        Explanation(np.ones((1, 2)), np.full((1, 6, 5), np.nan), x=np.ones((1, 6, 5))).plot()


def test_to_png_writes_what_plot_draws(tmp_path):
    path = tmp_path / "map.png"
    made(2, 6, 5, 3).to_png(path, classes=CLASSES)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    made(2, 6, 5, 3).to_png(tmp_path / "map.v2")
    with Image.open(tmp_path / "map.v2") as image:
        assert image.format == "PNG"
    with pytest.raises(StoreError, match=r"cannot be written: there is no folder '.*none'\. Make it first"):
        made(2, 6, 5).to_png(tmp_path / "none" / "map.png")
    with pytest.raises(StoreError, match=r"cannot be written: it is a folder"):
        made(2, 6, 5).to_png(tmp_path)
    for name in ("map.jpg", "map.PDF"):
        with pytest.raises(StoreError, match=rf"writes a PNG file, but .*plot\(\)\.savefig\('.*{name}'\)"):
            made(2, 6, 5).to_png(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_what_is_traced_is_not_drawn(tmp_path):
    explanation = made(2, 6, 5)
    for draw in (Explanation.plot, lambda traced: traced.to_png(tmp_path / "map.png")):
        traced = lambda output, draw=draw: draw(Explanation(output, explanation.relevance, x=explanation.x))
        with pytest.raises(ArrayError, match=r"traced.* Draw it outside of jax\.jit"):
            jax.make_jaxpr(traced)(explanation.output)


@pytest.mark.parametrize("classes", [CLASSES, dict(enumerate(CLASSES))], ids=["list", "mapping"])
def test_summary_names_classes_and_sums(classes):
    explanation = relevance(lambda x: x @ jnp.diag(jnp.array([1.0, 2.0, 3.0])), jnp.ones((6, 3)), 2, rules.Zero())
    lines = explanation.summary(classes).splitlines()
    assert lines[0].startswith("Relevance of 6 samples, of which 4 are shown. Rules: any_layer: Zero")
    assert lines[1] == "Of 18 that are explained, 18 arrived at the input."
    assert lines[3].split("  ")[-1].split() == ["3"]
    assert "fox: 3, German shepherd: 2, tabby: 1" in lines[3]
    assert len(lines) == 7


def test_summary_of_no_samples_says_so():
    none = made(0, 3, output=np.ones((0, 2)))
    assert none.summary().splitlines() == ["Relevance of 0 samples", "sample  largest outputs  sum of the relevance"]
    assert "Relevance of 0 samples" in none._repr_html_()


def test_summary_of_several_inputs_sums_over_them():
    x = (jnp.ones((2, 3)), jnp.ones((2, 4)))
    weight = jnp.ones((2, 2))
    summary = relevance(lambda x: jnp.stack([x[0].sum(1), x[1].sum(1)], 1) @ weight, x, 0).summary()
    assert [line.split()[-1] for line in summary.splitlines()[3:]] == ["7", "7"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:2], "There are 3 outputs, but 2 classes"),
        ([*CLASSES, "cow"], "There are 3 outputs, but 4 classes"),
        ({0: "tabby"}, "integers 0 to 2, one for each output, to names, but it has no 1"),
        ({"0": "tabby", "1": "fox", "2": "cow"}, "to names, but it has no 0"),  # as JSON has them
    ],
)
def test_other_classes_than_those_of_the_output_are_refused(classes, message):
    explanation = made(2, 6, 5)
    for ask in (explanation.summary, lambda classes: explanation.plot(classes=classes)):
        with pytest.raises(ArrayError, match=message):
            ask(classes)
    with pytest.raises(ArrayError, match="classes name the outputs"):
        made(2, 6, 5, output=[1.0, 2.0]).summary(classes)


def test_repr_is_a_line():
    explanation = made(2, 6, 5)
    assert repr(explanation) == "Explanation(output=float32[2,3], relevance=float32[2,6,5])"
    x = {"left": np.ones((2, 3)), "right": (np.ones((2, 1)),)}
    with_hidden = Explanation(np.ones((2, 3)), x, {"conv": jnp.ones((2, 8))}, x)
    shown = "{'left': float64[2,3], 'right': (float64[2,1],)}"
    assert repr(with_hidden) == f"Explanation(output=float64[2,3], relevance={shown}, at={{'conv': float32[2,8]}})"
    traced = []
    jax.make_jaxpr(lambda x: traced.append(repr(Explanation(x, x))))(np.float32([1, 2]))
    assert traced == ["Explanation(output=float32[2], relevance=float32[2])"]


def sizes(explanation):
    """The width and the height of each picture on the page, and in its file."""
    shown = []
    for image in BeautifulSoup(explanation._repr_html_(), "html.parser").select("img"):
        style = dict(part.split(": ") for part in image["style"].split("; "))
        file = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        size = (int(style["width"].removesuffix("px")), int(style["height"].removesuffix("px")))
        shown.append((*size, Image.open(io.BytesIO(file)).size))
    return shown


@pytest.mark.parametrize(
    "shape", [(4, 200, 2), (4, 2, 200), (4, 10_000, 3), (4, 1000), (4, 400, 10), (4, 10, 400), (4, 28, 28, 3)]
)
def test_pictures_in_a_notebook_are_of_bounded_size(shape):
    found = sizes(made(*shape, output=np.ones((4, 3))))
    assert len(found) == 8
    for width, height, file in found:
        assert 8 <= width <= 224
        assert 8 <= height <= 112
        assert max(file) <= 448


def test_peaks_of_a_long_series_are_seen_in_its_strip():
    values = np.zeros((1, 10_000), np.float32)
    values[0, 5000] = -1.0
    explanation = Explanation(np.ones((1, 2)), values, x=np.ones((1, 10_000)))
    _, strip = BeautifulSoup(explanation._repr_html_(), "html.parser").select("img")
    file = io.BytesIO(base64.b64decode(strip["src"].removeprefix("data:image/png;base64,")))
    red, _, blue = np.moveaxis(np.asarray(Image.open(file).convert("RGB"), int), -1, 0)
    assert ((blue - red) > 60).sum() == 1


def test_integers_are_shown_as_words():
    explanation = made(2, 5, dtype=np.int32)
    spans = BeautifulSoup(explanation._repr_html_(), "html.parser").select("span")
    assert [span.text for span in spans] == [str(token) for token in explanation.x.ravel()]
    assert spans[0]["title"] == f"{explanation.relevance[0, 0]:.4g}"


@pytest.mark.parametrize(
    ("module", "package"),
    [("matplotlib.figure", "matplotlib"), ("PIL.Image", "pillow"), ("tqdm.auto", "tqdm"), ("no_such.part", "no-such")],
)
def test_hint_names_the_package(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    hint = rf"^{package} is missing: pip install {package} \(the extra 'plot' brings it\)$"
    with pytest.raises(MissingExtraError, match=hint):
        import_extra(module, "plot")
    with pytest.raises(MissingExtraError, match=r"brings it\)\. Or wait\.$"):
        import_extra(module, "plot", instead="wait")


@pytest.mark.parametrize("draw", [strips, lambda x, r, **options: heatmap(np.ones((2, 2)), **options)])
def test_colormap_that_there_is_not_is_refused(draw):
    with pytest.raises(InputError, match="colormap must be the name of a colour map"):
        draw(np.ones(9), np.ones(9), colormap="rainbows")


def test_colour_bar_ends_in_points_where_relevance_is_cut_off():
    images = np.ones((1, 4, 5))
    for scale, extend in ((2.0, "both"), ("row", "neither")):
        figure = grid(images, 3 * images, ["a"], scale=scale)
        assert figure.axes[1].images[0].colorbar.extend == extend


def test_limit_of_a_new_figure_is_a_percentile_and_that_in_axes_the_largest_value():
    values = np.arange(1000.0).reshape(20, 50)
    assert heatmap(values).axes[0].images[0].get_clim()[1] == 990
    assert heatmap(values, Figure().subplots()).get_clim()[1] == 999


def test_ipython_shows_a_figure_as_a_picture():
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(grid(np.ones((1, 4, 5)), np.ones((1, 4, 5)), ["a"]))
    assert data["image/png"][:4] == b"\x89PNG"

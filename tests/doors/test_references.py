"""Networks of PyTorch through torchax, against zennit and LXT with the same weights (`make_references.py`)."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lrp_jax import relevance, rules
from lrp_jax.composites import AttnLRP, Composite, any_layer, conv

pytestmark = pytest.mark.doors

REFERENCES = np.load(Path(__file__).with_name("references.npz"))
CONVOLUTIONAL = sorted({key.split("/")[0] for key in REFERENCES if key.endswith("/epsilon_plus")})
LANGUAGE = sorted({key.split("/")[0] for key in REFERENCES if key.endswith("/attnlrp")})
# As in zennit, a stabilizer is a number in units of z, and a constant that is added passes its share on.
EPSILON = (any_layer, rules.Epsilon(1e-6))
RULES = {
    "epsilon": Composite([EPSILON], constants="pass"),
    "epsilon_plus": Composite([(conv, rules.ZPlus(1e-6)), EPSILON], constants="pass"),
}


@pytest.fixture
def networks():
    for package in ("torchax", "torchvision", "transformers"):
        pytest.importorskip(package)
    sys.path.append(str(Path(__file__).parent))
    yield pytest.importorskip("networks")
    sys.path.remove(str(Path(__file__).parent))


def of_torch(module):
    import torchax

    weights, apply = torchax.extract_jax(module)
    return lambda x: apply(weights, (x,))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_maps_are_those_of_zennit(float64, networks, name, rule):
    module, image = networks.convolutional(name)
    explanation = relevance(of_torch(module), image, None, RULES[rule])
    np.testing.assert_allclose(explanation.output, REFERENCES[f"{name}/output"], rtol=1e-9)
    expected = REFERENCES[f"{name}/{rule}"]
    found = np.asarray(explanation.relevance)[..., ::4, ::4]
    assert abs(found - expected).max() < 1e-6 * abs(expected).max()


@pytest.mark.parametrize("name", LANGUAGE)
def test_relevance_of_tokens_is_that_of_lxt(networks, name):
    module, tokens = networks.language(name)
    model = of_torch(module)
    explanation = relevance(lambda ids: model(ids)["logits"][:, -1], tokens, None, AttnLRP(0.0))
    np.testing.assert_allclose(explanation.output, REFERENCES[f"{name}/output"], rtol=1e-4, atol=1e-5)
    expected = REFERENCES[f"{name}/attnlrp"]
    assert abs(explanation.relevance - expected).max() < 1e-5 * abs(expected).max()

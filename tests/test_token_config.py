"""`TokenPooling`: both schemas, other systems' names, and modules that behave as sentence-transformers' own."""

from __future__ import annotations

import json

import numpy as np
import pytest

import anypool as ap
from anypool.token_config import MODES

OLD = {
    "word_embedding_dimension": 4,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def test_the_list_of_modules_says_where_the_pooling_lies(tmp_path):
    (tmp_path / "2_Pool").mkdir()
    (tmp_path / "2_Pool" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "2_Pool", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    listed = tmp_path / "modules.json"
    listed.write_text(json.dumps(modules))
    assert ap.TokenPooling.from_sentence_transformers(tmp_path).reduction == ("max",)
    for wrong, message in (
        (modules[:1], "must list one Pooling module, got 0"),
        (modules + modules, "must list one Pooling module, got 2"),
        ([{}], "must be a JSON list of modules"),
        (3, "must be a JSON list of modules"),
    ):
        listed.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            ap.TokenPooling.from_sentence_transformers(tmp_path)
    for config in (None, 5, []):
        with pytest.raises(TypeError, match="config must be a path or a mapping"):
            ap.TokenPooling.from_sentence_transformers(config)


@pytest.mark.parametrize(
    ("config", "reduction", "dimension"),
    [
        (OLD, ("mean",), 4),
        ({**OLD, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, ("first", "max", "mean"), 4),
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True}, ("last",), 8),
        ({"pooling_mode": ["weightedmean", "cls"]}, ("weightedmean", "first"), None),
        ({"pooling_mode": "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len",), None),
    ],
)
def test_both_schemas(tmp_path, config, reduction, dimension):
    folder = tmp_path / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for given in (config, tmp_path, folder, folder / "config.json", str(folder)):
        pooling = ap.TokenPooling.from_sentence_transformers(given)
        assert pooling.reduction == reduction
        assert pooling.dimension == dimension
        assert ap.TokenPooling.from_sentence_transformers(pooling.to_dict()).reduction == reduction
    assert "config.json" in str(pooling)
    assert "pooling_mode" in str(pooling)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**OLD, "pooling_mode_median": True}, "has keys that are not known: pooling_mode_median"),
        ({"pooling_mode": "median"}, "mode must be one of cls, max, mean, .* got 'median'"),
        ({**OLD, "pooling_mode_mean_tokens": False}, "chooses no mode"),
        ({**OLD, "pooling_mode": "cls"}, "which disagree"),
        ({"pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token must be true or false, got 'yes'"),
        ({"pooling_mode": "cls", "include_prompt": 1}, "include_prompt must be true or false"),
        ({"pooling_mode": "cls", "embedding_dimension": -1}, "must be one positive integer"),
        (
            {"pooling_mode": "cls", "embedding_dimension": 3, "word_embedding_dimension": 4},
            "must be one positive integer",
        ),
        ({}, "chooses no mode"),
    ],
)
def test_what_is_not_known_is_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        ap.TokenPooling.from_sentence_transformers(config)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no 1_Pooling/config\.json"):
        ap.TokenPooling.from_sentence_transformers(tmp_path)


@pytest.mark.parametrize("system", list(MODES))
def test_names_of_other_systems(system):
    for mode, ours in MODES[system].items():
        if ours is None:
            with pytest.raises(ValueError, match="does not pool the tokens of a row into one vector"):
                ap.TokenPooling.from_mode(mode, system)
        else:
            assert ap.TokenPooling.from_mode(mode, system).reduction == (ours,)
    with pytest.raises(ValueError, match=f"mode must be one of .* of {system}, got 'pool'"):
        ap.TokenPooling.from_mode("pool", system)
    with pytest.raises(ValueError, match=rf"mode must name at least one mode of {system}, got \[\]"):
        ap.TokenPooling.from_mode([], system)
    with pytest.raises(ValueError, match="system must be one of"):
        ap.TokenPooling.from_mode("cls", "mine")


def test_calls():
    x = np.arange(24.0).reshape(2, 3, 4)
    pooling = ap.TokenPooling.from_sentence_transformers(OLD)
    np.testing.assert_array_equal(pooling(x, lengths=[2, 3]), ap.pool_tokens(x, "mean", lengths=[2, 3]))
    np.testing.assert_array_equal(pooling(x, prompt_length=1), ap.pool_tokens(x, "mean"))
    without = ap.TokenPooling.from_sentence_transformers({**OLD, "include_prompt": False})
    np.testing.assert_array_equal(without(x, prompt_length=1), ap.pool_tokens(x, "mean", exclude_prefix=1))
    with pytest.raises(ValueError, match="x must have 4 features as the configuration says, got 5"):
        pooling(np.ones((1, 2, 5)))
    with pytest.raises(ValueError, match="sentence-transformers has no mode for 'std'"):
        ap.TokenPooling(("std",)).to_dict()


# ------------------------------------------------------------------------------------ modules


def test_the_module_takes_padded_and_flattened_features(tmp_path):
    torch = pytest.importorskip("torch")
    from anypool.nn import TokenPooling

    x = torch.randn(3, 6, 4)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    packed = x[mask.bool()].unsqueeze(0)
    for mode in MODES["sentence-transformers"]:
        for include in (True, False):
            module = TokenPooling(mode, include_prompt=include)
            padded = {"token_embeddings": x, "attention_mask": mask, "prompt_length": torch.tensor([2])}
            flat = {"token_embeddings": packed, "cu_seq_lens_q": torch.tensor([0, 4, 8, 14]), "prompt_length": 2}
            a, b = (module(f)["sentence_embedding"] for f in (padded, flat))
            assert torch.equal(a, b)
            alone = [
                module({"token_embeddings": r[m.bool()][None], "prompt_length": 2})
                for r, m in zip(x, mask, strict=True)
            ]
            assert torch.equal(a, torch.cat([f["sentence_embedding"] for f in alone]))
    module = TokenPooling({"embedding_dimension": 4, "pooling_mode": ["cls", "mean"]})
    assert module.get_embedding_dimension() == 8
    module.save(tmp_path)
    assert ap.TokenPooling.from_sentence_transformers(tmp_path / "config.json").reduction == ("first", "mean")
    given = {"token_embeddings": x, "cls_token_embeddings": x[:, 5], "token_weights_sum": torch.tensor([2.0, 4.0, 8.0])}
    wanted = torch.cat([x[:, 5], x.sum(1) / torch.tensor([[2.0], [4.0], [8.0]])], 1)
    torch.testing.assert_close(module(given)["sentence_embedding"], wanted)
    pooling = ap.TokenPooling.from_mode(["max", "mean_sqrt_len_tokens", "mean"], "sentence-transformers")
    module = TokenPooling(pooling)
    assert module.pooling is pooling
    total = given["token_weights_sum"][:, None]
    wanted = torch.cat([x.amax(1), x.sum(1) / total.sqrt(), x.sum(1) / total], 1)
    found = module({"token_embeddings": x, "token_weights_sum": total[:, 0]})["sentence_embedding"]
    torch.testing.assert_close(found, wanted)
    with pytest.raises(NotImplementedError, match="token_weights_sum with weightedmean"):
        TokenPooling("weightedmean")({"token_embeddings": x, "token_weights_sum": torch.ones(3)})


@pytest.mark.parametrize("project", [False, True])
def test_attention_pool_module(project):
    torch = pytest.importorskip("torch")
    from anypool.nn import AttentionPool

    torch.manual_seed(0)
    module = AttentionPool(4, heads=3, project_keys=project, project_values=project).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
    k, v = (module.key(x), module.value(x)) if project else (x, x)
    p = (k @ module.query.T / 2).masked_fill(~mask.bool()[..., None], -torch.inf).softmax(1)
    torch.testing.assert_close(module(x, mask=mask), (p.transpose(1, 2) @ v).flatten(-2))
    packed = x[mask.bool()]
    assert torch.equal(module(packed, offsets=torch.tensor([0, 3, 7])), module(x, mask=mask))
    module(x, mask=mask).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    with pytest.raises(ValueError, match="value_dim needs project_values=True"):
        AttentionPool(4, value_dim=3)


def test_attentive_statistics_module():
    torch = pytest.importorskip("torch")
    from anypool.nn import AttentiveStatsPool

    torch.manual_seed(0)
    module = AttentiveStatsPool(4, bottleneck=6).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    w = module.score(x).squeeze(-1).masked_fill(~mask.bool(), -torch.inf).softmax(1)[..., None]
    mean = (w * x).sum(1)
    std = (w * (x - mean[:, None]) ** 2).sum(1).sqrt()
    wanted = torch.cat([mean, std], -1)
    torch.testing.assert_close(module(x, mask=mask), wanted)
    packed = x[mask.bool()]
    torch.testing.assert_close(module(packed, offsets=torch.tensor([0, 3, 7, 12])), wanted)
    torch.testing.assert_close(module(packed, segment_ids=torch.tensor([0] * 3 + [1] * 4 + [2] * 5)), wanted)
    g = torch.randn(wanted.shape, dtype=torch.float64)
    parameters = [x, *module.parameters()]
    ours = torch.autograd.grad((module(x, mask=mask) * g).sum(), parameters)
    theirs = torch.autograd.grad((wanted * g).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="takes no spans"):
        module(x[0], spans=[[0, 2]])

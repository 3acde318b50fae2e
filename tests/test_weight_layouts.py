"""Layouts of checkpoint tensors: transposed, reordered, stacked per expert or fused, renamed, one way or another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ostinato.errors import ModelLoadError
from ostinato.models.spec import LayerSpec
from ostinato.models.weights import stream
from ostinato.models.weights.layouts import interleaved_halves, per_group_qkv
from ostinato.models.weights.rules import OneOf, Rule, gate_rows, k_rows, q_rows, up_rows, v_rows
from toy_weights import Shapes, State, layer_spec, load, model_of, numbered, save, status

H, E, EXPERT = 7, 3, 5  # hidden size, experts, their width
QKV = "layers.{layer}.attention.qkv"
GATE_UP = "layers.{layer}.ffn.gate_up"
DOWN = "layers.{layer}.ffn.down"


@pytest.fixture(params=["one piece", "many pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A buffer of one element forces single rows (and single elements, where rows are not rearranged)."""
    if request.param == "many pieces":
        monkeypatch.setattr(stream, "CPU_BUFFER_BYTES", 4)
    return str(request.param)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(*args, **options)
    return str(caught.value)


# ---------------------------------------------------------------------------------- transposed and reordered


def test_a_transposed_matrix_is_turned_and_its_bias_is_not(pieces: str, tmp_path: Path) -> None:
    theirs = {"h.0.c_attn.weight": numbered(H, 24), "h.0.c_attn.bias": numbered(24)}
    shapes: Shapes = {"layers.0.attention.qkv.weight": (24, H), "layers.0.attention.qkv.bias": (24,)}
    loaded, _ = load(save(tmp_path, theirs), shapes, (Rule("h.{layer}.c_attn", QKV, transposed=True),))
    assert torch.equal(loaded["layers.0.attention.qkv.weight"], theirs["h.0.c_attn.weight"].T)
    assert torch.equal(loaded["layers.0.attention.qkv.bias"], theirs["h.0.c_attn.bias"])


def test_transposed_parts_fill_their_rows(pieces: str, tmp_path: Path) -> None:
    theirs = {"gate.weight": numbered(H, 5), "up.weight": numbered(H, 5, start=100)}
    rules = tuple(
        Rule(name, "gate_up", rows, transposed=True) for name, rows in {"gate": gate_rows, "up": up_rows}.items()
    )
    loaded, _ = load(save(tmp_path, theirs), {"gate_up.weight": (10, H)}, rules)
    assert torch.equal(loaded["gate_up.weight"], torch.cat([theirs["gate.weight"], theirs["up.weight"]], dim=1).T)


def neox(tensor: Tensor, layer: LayerSpec) -> Tensor:
    heads, dim = layer.attention.num_heads, layer.attention.head_dim
    return tensor.view(heads, 3, dim, -1).transpose(0, 1).reshape(tensor.shape)


def falcon(tensor: Tensor, layer: LayerSpec) -> Tensor:
    attention = layer.attention
    group = attention.num_heads // attention.num_kv_heads
    split = tensor.view(attention.num_kv_heads, group + 2, attention.head_dim, -1)
    parts = [split[:, :-2], split[:, -2], split[:, -1]]
    return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])


def gpt_oss(tensor: Tensor, layer: LayerSpec) -> Tensor:
    return torch.cat([tensor[::2], tensor[1::2]])


LAYOUTS = [
    (per_group_qkv, neox, layer_spec(4, 4), 36),
    (per_group_qkv, neox, layer_spec(1, 1, 8), 24),
    (per_group_qkv, falcon, layer_spec(6, 2, 4), 40),
    (per_group_qkv, falcon, layer_spec(4, 4), 36),
    (per_group_qkv, falcon, layer_spec(5, 1), 21),
    (interleaved_halves, gpt_oss, layer_spec(intermediate_size=9), 18),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("order", "reference", "layer", "rows"), LAYOUTS)
def test_orders_give_what_views_and_concatenation_give(
    order: Any, reference: Any, layer: LayerSpec, rows: int, transposed: bool, pieces: str, tmp_path: Path
) -> None:
    weight, bias = numbered(rows, H), numbered(rows)
    save(tmp_path, {"fused.weight": weight.T if transposed else weight, "fused.bias": bias})
    rule = Rule("fused", "mine", transposed=transposed, order=order)
    loaded, _ = load(tmp_path, {"mine.weight": (rows, H), "mine.bias": (rows,)}, (rule,), (layer,))
    assert torch.equal(loaded["mine.weight"], reference(weight, layer))
    assert torch.equal(loaded["mine.bias"], reference(bias, layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [None, interleaved_halves])
def test_a_rearranged_tensor_is_cast_on_the_way(order: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = torch.randn(H, 10, generator=torch.Generator().manual_seed(0))
    rule = Rule("x", "mine", transposed=True, order=order)
    loaded, _ = load(save(tmp_path, {"x.weight": weight}), {"mine.weight": (10, H)}, (rule,), dtype=dtype)
    expected = gpt_oss(weight.T, layer_spec()) if order else weight.T
    assert torch.equal(loaded["mine.weight"], expected.to(dtype))


def test_a_transposed_tensor_of_the_wrong_shape_is_named_in_the_shape_of_the_file(tmp_path: Path) -> None:
    save(tmp_path, {"x.weight": numbered(10, H)})
    message = refusal(tmp_path, {"mine.weight": (10, H)}, (Rule("x", "mine", transposed=True),))
    assert "x.weight: expected [7, 10], got [10, 7]" in message


@pytest.mark.parametrize("bad", [[0, 1, 1], [0, 1], [0, 1, 3], [-1, 0, 1]])
def test_an_order_that_loses_rows_is_a_mistake_of_the_family(bad: list[int], tmp_path: Path) -> None:
    rule = Rule("x", "mine", order=lambda layer: torch.tensor(bad))
    message = refusal(save(tmp_path, {"x.weight": numbered(3, H)}), {"mine.weight": (3, H)}, (rule,))
    assert "family toy: mine.weight: expected an order that names each of 3 rows once, got another" in message


@pytest.mark.parametrize("order", [None, interleaved_halves])
def test_a_rearranged_value_that_is_not_finite_is_named(order: Any, tmp_path: Path) -> None:
    weight = numbered(H, 10)
    weight[-1, -1] = float("nan")
    rule = Rule("x", "mine", transposed=True, order=order)
    message = refusal(save(tmp_path, {"x.weight": weight}), {"mine.weight": (10, H)}, (rule,))
    assert "x.weight: expected finite values in float32, got NaN or infinity from F32" in message


@pytest.mark.parametrize("order", [None, interleaved_halves])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("differs", [False, True])
def test_a_tied_copy_is_compared_in_its_own_layout(
    differs: bool, transposed: bool, order: Any, pieces: str, tmp_path: Path
) -> None:
    weight = numbered(10, H)
    model = model_of({"embed.weight": (10, H), "head.weight": (10, H)})
    model.get_submodule("head").weight = model.get_submodule("embed").weight
    head = weight if order is None else torch.stack([weight[:5], weight[5:]], dim=1).reshape(10, H)
    head = head.clone()
    head[9, 0] += differs
    save(tmp_path, {"embed.weight": weight, "head.weight": head.T if transposed else head})
    rules = Rule("embed", "embed"), Rule("head", "head", transposed=transposed, order=order)
    if differs:
        assert "head.weight: expected the values of embed.weight" in refusal(tmp_path, {}, rules, model=model)
    else:
        assert torch.equal(load(tmp_path, {}, rules, model=model)[0]["head.weight"], weight)


# ------------------------------------------------------------------------------------------------------ experts

EXPERT_SHAPES: Shapes = {
    "layers.0.ffn.gate_up.weight": (E, 2 * EXPERT, H),
    "layers.0.ffn.gate_up.bias": (E, 2 * EXPERT),
    "layers.0.ffn.down.weight": (E, H, EXPERT),
    "layers.0.ffn.down.bias": (E, H),
}
PER_EXPERT = (
    Rule("l.{layer}.experts.{expert}.w1", GATE_UP, gate_rows),
    Rule("l.{layer}.experts.{expert}.w3", GATE_UP, up_rows),
    Rule("l.{layer}.experts.{expert}.w2", DOWN),
)
BARE = {"weight": "", "bias": "_bias"}
FUSED = (
    Rule("l.{layer}.experts.gate_up_proj", GATE_UP, suffixes=BARE),
    Rule("l.{layer}.experts.down_proj", DOWN, suffixes=BARE),
)
GPT_OSS = (
    Rule("l.{layer}.experts.gate_up_proj", GATE_UP, transposed=True, order=interleaved_halves, suffixes=BARE),
    Rule("l.{layer}.experts.down_proj", DOWN, transposed=True, suffixes=BARE),
)
FUSED_HALVES = (
    Rule("l.{layer}.experts.gate", GATE_UP, gate_rows),
    Rule("l.{layer}.experts.up", GATE_UP, up_rows),
    FUSED[1],
)


def experts() -> State:
    """Our parameters: different numbers everywhere."""
    return {name: numbered(*shape, start=1000 * i) for i, (name, shape) in enumerate(EXPERT_SHAPES.items())}


def stored(form: str) -> State:
    """``experts()`` as a checkpoint has them."""
    up, up_bias, down, down_bias = experts().values()
    if form == "per expert":
        files: State = {}
        for e in range(E):
            for name, rows in {"w1": slice(0, EXPERT), "w3": slice(EXPERT, None)}.items():
                files |= {
                    f"l.0.experts.{e}.{name}.weight": up[e, rows],
                    f"l.0.experts.{e}.{name}.bias": up_bias[e, rows],
                }
            files |= {f"l.0.experts.{e}.w2.weight": down[e], f"l.0.experts.{e}.w2.bias": down_bias[e]}
        return files
    names = [f"l.0.experts.{name}" for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")]
    if form == "fused":
        return dict(zip(names, (up, up_bias, down, down_bias), strict=True))
    if form == "fused halves":
        halves = {"gate": slice(0, EXPERT), "up": slice(EXPERT, None)}
        files = {f"l.0.experts.{name}.weight": up[:, rows] for name, rows in halves.items()}
        files |= {f"l.0.experts.{name}.bias": up_bias[:, rows] for name, rows in halves.items()}
        return files | {names[2]: down, names[3]: down_bias}
    turned = torch.stack([up[:, :EXPERT], up[:, EXPERT:]], dim=2).reshape(E, 2 * EXPERT, H).transpose(1, 2)
    turned_bias = torch.stack([up_bias[:, :EXPERT], up_bias[:, EXPERT:]], dim=2).reshape(E, 2 * EXPERT)
    return dict(zip(names, (turned, turned_bias, down.transpose(1, 2), down_bias), strict=True))


FORMS = {"per expert": PER_EXPERT, "fused": FUSED, "fused halves": FUSED_HALVES, "gpt-oss": GPT_OSS}


@pytest.mark.parametrize("form", FORMS)
def test_experts_arrive_in_their_slices(form: str, pieces: str, tmp_path: Path) -> None:
    loaded, report = load(save(tmp_path, stored(form)), EXPERT_SHAPES, FORMS[form])
    expected = experts()
    assert loaded.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(loaded[name], expected[name])] == []
    assert report.num_parameters == sum(tensor.numel() for tensor in expected.values())


@pytest.mark.parametrize(
    ("form", "name", "line"),
    [
        ("per expert", "l.0.experts.1.w3.weight", "expected [5, 7] for layers.0.ffn.gate_up.weight[1, 5:10], got"),
        ("per expert", "l.0.experts.2.w2.bias", "expected [7] for layers.0.ffn.down.bias[2], got no such"),
        ("fused", "l.0.experts.down_proj_bias", "expected [3, 7] for layers.0.ffn.down.bias, got no such"),
        ("fused halves", "l.0.experts.up.bias", "expected [3, 5] for layers.0.ffn.gate_up.bias[:, 5:10], got no such"),
        ("gpt-oss", "l.0.experts.gate_up_proj", "expected [3, 7, 10] for layers.0.ffn.gate_up.weight, got no such"),
    ],
)
def test_a_missing_expert_is_named_with_its_shape(form: str, name: str, line: str, tmp_path: Path) -> None:
    state = stored(form)
    del state[name]
    assert f"(1 found):\n  {name}: {line}" in refusal(save(tmp_path, state), EXPERT_SHAPES, FORMS[form])


def test_an_expert_too_many_is_named(tmp_path: Path) -> None:
    state = stored("per expert") | {"l.0.experts.3.w1.weight": numbered(EXPERT, H)}
    message = refusal(save(tmp_path, state), EXPERT_SHAPES, PER_EXPERT)
    assert "(1 found):\n  model.safetensors: l.0.experts.3.w1.weight: expected no such tensor" in message


def test_a_fused_tensor_with_other_experts_is_named(tmp_path: Path) -> None:
    state = stored("fused") | {"l.0.experts.down_proj": numbered(E + 1, H, EXPERT)}
    message = refusal(save(tmp_path, state), EXPERT_SHAPES, FUSED)
    assert "l.0.experts.down_proj: expected [3, 7, 5], got [4, 7, 5]" in message


def test_an_expert_without_a_rule_is_a_mistake_of_the_family(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, stored("per expert")), EXPERT_SHAPES, (PER_EXPERT[0], PER_EXPERT[2]))
    assert "family toy: layers.0.ffn.gate_up.weight: expected rules for 210 elements, got 105" in message


def test_a_rule_for_experts_says_nothing_about_a_dense_module(tmp_path: Path) -> None:
    save(tmp_path, {"down.weight": numbered(H, 5)})
    rules = Rule("experts.{expert}.w2", "down"), Rule("down", "down")
    assert torch.equal(load(tmp_path, {"down.weight": (H, 5)}, rules)[0]["down.weight"], numbered(H, 5))
    (tmp_path / "model.safetensors").unlink()
    message = refusal(save(tmp_path, {}), {"down.weight": (H, 5)}, (OneOf(((rules[0],), (rules[1],))),))
    assert "(1 found):\n  down.weight: expected [7, 5] for down.weight, got no such tensor" in message


def test_a_parameter_can_be_named_itself(tmp_path: Path) -> None:
    save(tmp_path, {"l.1.attn.sinks": numbered(4), "l.1.e_score_correction_bias": numbered(E)})
    shapes: Shapes = {"layers.1.attention.sinks": (4,), "layers.1.ffn.correction_bias": (E,)}
    rules = (
        Rule("l.{layer}.attn.sinks", "layers.{layer}.attention.sinks"),
        Rule("l.{layer}.e_score_correction_bias", "layers.{layer}.ffn.correction_bias"),
    )
    loaded, _ = load(tmp_path, shapes, rules, (layer_spec(),) * 2)
    assert torch.equal(loaded["layers.1.attention.sinks"], numbered(4))
    assert torch.equal(loaded["layers.1.ffn.correction_bias"], numbered(E))


# ------------------------------------------------------------------------------------- alternatives and renames

EITHER = (OneOf((PER_EXPERT, FUSED)),)
SEPARATE_OR_FUSED = OneOf(
    (
        (Rule("q", "qkv", q_rows), Rule("k", "qkv", k_rows), Rule("v", "qkv", v_rows)),
        (Rule("qkv", "qkv"),),
    )
)


@pytest.mark.parametrize("form", ["per expert", "fused"])
def test_experts_may_be_stored_in_either_form(form: str, tmp_path: Path) -> None:
    loaded, _ = load(save(tmp_path, stored(form)), EXPERT_SHAPES, EITHER)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in experts().items())


@pytest.mark.parametrize("parts", [("qkv",), ("q", "k", "v")])
def test_a_projection_may_be_fused_or_not(parts: tuple[str, ...], tmp_path: Path) -> None:
    weight = numbered(24, H)
    sizes = [24] if len(parts) == 1 else [12, 6, 6]
    save(tmp_path, {f"{name}.weight": part for name, part in zip(parts, weight.split(sizes), strict=True)})
    assert torch.equal(load(tmp_path, {"qkv.weight": (24, H)}, (SEPARATE_OR_FUSED,))[0]["qkv.weight"], weight)


def test_the_first_alternative_says_what_is_missing(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, {}), {"qkv.weight": (24, H)}, (SEPARATE_OR_FUSED,))
    assert "q.weight: expected [12, 7] for qkv.weight[0:12], got no such tensor" in message
    assert "(3 found)" in message


def test_the_alternative_in_use_says_what_is_missing(tmp_path: Path) -> None:
    state = stored("fused")
    del state["l.0.experts.gate_up_proj"]
    message = refusal(save(tmp_path, state), EXPERT_SHAPES, EITHER)
    assert "(1 found):\n  l.0.experts.gate_up_proj: expected [3, 10, 7]" in message


def test_both_alternatives_at_once_are_too_much(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, stored("per expert") | stored("fused")), EXPERT_SHAPES, EITHER)
    assert "(4 found):\n  model.safetensors: l.0.experts.down_proj: expected no such tensor" in message


@pytest.mark.parametrize("form", ["per expert", "fused"])
def test_dense_and_sparse_layers_share_a_target(form: str, tmp_path: Path) -> None:
    dense = (Rule("l.{layer}.mlp.gate", GATE_UP, gate_rows), Rule("l.{layer}.mlp.up", GATE_UP, up_rows))
    dense += (Rule("l.{layer}.mlp.down", DOWN),)
    gate, up, down = numbered(5, H), numbered(5, H, start=50), numbered(H, 5)
    save(tmp_path, stored(form) | {f"l.1.mlp.{n}.weight": t for n, t in {"gate": gate, "up": up, "down": down}.items()})
    shapes: Shapes = EXPERT_SHAPES | {"layers.1.ffn.gate_up.weight": (10, H), "layers.1.ffn.down.weight": (H, 5)}
    loaded, _ = load(tmp_path, shapes, (OneOf((PER_EXPERT, FUSED, dense)),), (layer_spec(),) * 2)
    assert torch.equal(loaded["layers.1.ffn.gate_up.weight"], torch.cat([gate, up]))
    assert torch.equal(loaded["layers.1.ffn.down.weight"], down)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in experts().items())


RENAMES = ((r"^language_model\.", ""), (r"^(?!transformer\.)", "transformer."))
NAMED = (Rule("transformer.wte", "embed"),)


@pytest.mark.parametrize("name", ["wte", "transformer.wte", "language_model.wte", "language_model.transformer.wte"])
def test_renames_are_applied_in_turn(name: str, tmp_path: Path) -> None:
    save(tmp_path, {f"{name}.weight": numbered(4, H)})
    assert torch.equal(
        load(tmp_path, {"embed.weight": (4, H)}, NAMED, renames=RENAMES)[0]["embed.weight"], numbered(4, H)
    )


def test_errors_show_names_as_they_are_in_the_file(tmp_path: Path) -> None:
    save(tmp_path, {"wte.weight": numbered(4, H + 1), "other": numbered(1)})
    message = refusal(tmp_path, {"embed.weight": (4, H)}, NAMED, renames=RENAMES)
    assert "model.safetensors: wte.weight: expected [4, 7], got [4, 8]" in message
    assert "model.safetensors: other: expected no such tensor" in message


def test_two_names_that_become_one_are_named(tmp_path: Path) -> None:
    save(tmp_path, {"wte.weight": numbered(4, H), "transformer.wte.weight": numbered(4, H)})
    message = refusal(tmp_path, {"embed.weight": (4, H)}, NAMED, renames=RENAMES)
    both = "wte.weight: expected to be the only transformer.wte.weight, got transformer.wte.weight in model.safetensors"
    assert f"(1 found):\n  model.safetensors: {both} too" in message


def test_ignored_names_are_matched_after_renaming_and_reported_before(tmp_path: Path) -> None:
    save(tmp_path, {"wte.weight": numbered(4, H), "h.0.attn.bias": numbered(1)})
    ignored = ("transformer.h.*.attn.bias",)
    _, report = load(tmp_path, {"embed.weight": (4, H)}, NAMED, renames=RENAMES, ignored=ignored)
    assert report.ignored == ("h.0.attn.bias",)


# ------------------------------------------------------------------------------------------ buffers and memory


class Slopes(nn.Module):
    """A table that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, device="meta"))
        self.register_buffer("slopes", torch.empty(3, device="meta"), persistent=False)

    def make_buffers(self, device: torch.device) -> None:
        assert (self.weight.device, self.weight.dtype) == (device, torch.bfloat16)
        self.slopes = torch.arange(3.0, device=device)


def test_modules_make_their_buffers(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": Slopes(), "b": nn.ModuleList([Slopes()])})
    save(tmp_path, {"a.weight": numbered(2), "b.0.weight": numbered(2)})
    load(tmp_path, {}, (Rule("a", "a"), Rule("b.0", "b.0")), model=model, dtype=torch.bfloat16)
    for module in (model["a"], model["b"][0]):
        assert module.slopes.tolist() == [0, 1, 2]


def transposed_case() -> tuple[State, Shapes, tuple[Rule, ...]]:
    state = {"x.weight": torch.ones(3_000, 9_000, dtype=torch.bfloat16)}
    return state, {"mine.weight": (9_000, 3_000)}, (Rule("x", "mine", transposed=True),)


def ordered_case() -> tuple[State, Shapes, tuple[Rule, ...]]:
    state = {"x.weight": torch.ones(9_000, 3_000, dtype=torch.bfloat16)}
    return state, {"mine.weight": (9_000, 3_000)}, (Rule("x", "mine", order=interleaved_halves),)


def experts_case() -> tuple[State, Shapes, tuple[Rule, ...]]:
    state = {"x": torch.ones(9, 1_000, 3_000, dtype=torch.bfloat16)}
    rule = Rule("x", "mine", transposed=True, order=interleaved_halves, suffixes=BARE)
    return state, {"mine.weight": (9, 3_000, 1_000)}, (rule,)


@pytest.mark.alone
@pytest.mark.parametrize("case", [transposed_case, ordered_case, experts_case])
def test_peak_memory_is_the_parameters_and_a_small_buffer(
    case: Callable[[], tuple[State, Shapes, tuple[Rule, ...]]], tmp_path: Path
) -> None:
    state, shapes, rules = case()
    save(tmp_path, state)
    del state
    size = torch.Size(next(iter(shapes.values())))
    layers = (layer_spec(intermediate_size=size[-2] // 2),)
    (tmp_path / "warm").mkdir()
    save(tmp_path / "warm", {"x.weight": numbered(10, H)})
    warm = Rule("x", "mine", order=interleaved_halves)
    load(tmp_path / "warm", {"mine.weight": (10, H)}, (warm,), dtype=torch.bfloat16)
    model = model_of(shapes)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    before = status("VmRSS")
    _, report = load(tmp_path, shapes, rules, layers, dtype=torch.bfloat16, model=model)
    assert report.parameter_bytes == 54e6
    assert status("VmHWM") - before < 1.05 * report.parameter_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_gets_the_same_experts(form: str, tmp_path: Path) -> None:
    loaded, _ = load(save(tmp_path, stored(form)), EXPERT_SHAPES, FORMS[form], device="cuda")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in experts().items())

"""``ostinato doctor``: each kind of fault is found and named, alone and beside others; and nothing is found in none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

import ostinato.doctor
from engines import checkpoint
from ostinato.cli import app
from ostinato.doctor import Diagnosis, diagnose
from ostinato.models.decoder import Decoder
from ostinato.models.doctor import ours
from ostinato.models.doctor.trace import BEHIND, PARTS
from ostinato.models.doctor.words import indices
from small_tokenizers import byte_level, sentencepiece
from tiny_checkpoints import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of a Qwen3 with a tied head, without tokenizer."""
    return shutil.copytree(checkpoint("qwen3")[0], tmp_path / "model")


def edit(folder: Path, **values: Any) -> None:
    """Set keys of config.json; ``...`` takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def doctor(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def row(text: str, name: str) -> str:
    """The value of the first line called ``name``."""
    return next(line.strip()[len(name) :].strip() for line in text.splitlines() if line.strip().startswith(f"{name} "))


# --------------------------------------------------------------------------------------------------------------- sound


def test_a_sound_checkpoint_is_described_and_exits_0(folder: Path) -> None:
    done = doctor(folder)
    assert (done.exit_code, done.stderr) == (0, "")
    assert row(done.stdout, "model") == f"Qwen3ForCausalLM (family qwen3) from {folder}"
    assert row(done.stdout, "layers") == "3 of 3: 0-2"
    assert row(done.stdout, "attention") == "4 heads of 16 on 2 KV heads (GQA), scale 0.25; QK norm by head"
    assert row(done.stdout, "positions") == "RoPE, theta 1e+06"
    assert row(done.stdout, "feed-forward") == "gated silu, width 80"
    assert row(done.stdout, "norm") == "RMS norm, eps 0.001"
    assert row(done.stdout, "tensors") == "35 matched, 0 missing, 0 unexpected, 0 misshapen, 0 ignored"
    assert row(done.stdout, "tied head") == "not in the files, as usual"
    assert done.stdout.endswith("\nverdict         sound\n")


@pytest.mark.parametrize(
    "variant", ["gpt_oss", "falcon_rw", "gemma3", "mpt_clipped", "qwen3_moe_mixed", "phi3_longrope"]
)
def test_every_shape_of_model_is_sound(variant: str) -> None:
    found = diagnose(checkpoint(variant)[0])
    assert found.problems == ()
    assert found.fit is not None
    assert found.fit.num_parameters == sum(p.numel() for p in checkpoint(variant)[1].parameters())


def test_layers_of_different_kinds_are_shown_apart() -> None:
    text = doctor(checkpoint("gpt_oss")[0]).stdout
    assert "2 of 3: 0, 2\n" in text
    assert "window of 8 tokens; sinks; biases on q, k, v and output" in text
    assert "yarn scaling by 8 from 32 tokens" in text
    assert row(text, "feed-forward").startswith("6 experts, 2 for a token, each gated clamped glu")


def test_no_weights_are_read_without_a_comparison(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert doctor(folder).exit_code == 0


def test_a_diagnosis_imports_no_transformers(folder: Path) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom ostinato.doctor import diagnose\n"
        "diagnose(Path(sys.argv[1]))\nprint('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([0], "0"),
        ([0, 1], "0, 1"),
        ([3, 4, 5], "3-5"),
        ([0, 2, 4], "0, 2, 4"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, … 38"),
    ],
)
def test_indices_are_short(numbers: list[int], text: str) -> None:
    assert indices(list(numbers)) == text


# -------------------------------------------------------------------------------------------------------------- config


def test_a_missing_key_is_shown_with_its_default(folder: Path) -> None:
    edit(folder, rms_norm_eps=..., dtype=..., rope_parameters=..., tie_word_embeddings=True)
    defaults = diagnose(folder).config.defaults
    assert defaults["rms_norm_eps"] == 1e-6
    assert defaults["torch_dtype"] == "float32"
    assert defaults["rope_theta"] == 10_000.0
    assert "rms_norm_eps 1e-06" in row(doctor(folder).stdout, "defaults")


def test_a_key_that_stands_in_another_place_is_no_default(folder: Path) -> None:
    report = diagnose(folder).config
    assert "rope_parameters.rope_theta" in report.read
    assert "rope_theta" not in report.defaults
    edit(folder, rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    report = diagnose(folder).config
    assert {"rope_theta", "rope_scaling.type", "rope_scaling.factor"} <= set(report.read)
    assert not {key for key in report.defaults if key.endswith(("rope_theta", "type"))}


def test_keys_that_nothing_reads_are_shown(folder: Path) -> None:
    edit(folder, rms_norm_epsilon=1e-5, n_routed_experts=8, vision_config={"depth": 3}, use_cache=False, nothing=None)
    done = doctor(folder)
    assert row(done.stdout, "ignored") == "n_routed_experts, rms_norm_epsilon, vision_config"
    assert "use_cache" in row(done.stdout, "bookkeeping")
    assert done.exit_code == 0


def test_keys_within_a_section_are_told_apart(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "finetuned": True}
    build("qwen3", tmp_path)
    edit(tmp_path, rope_parameters=yarn)
    report = diagnose(tmp_path).config
    assert report.ignored == ("rope_parameters.finetuned",)
    assert report.defaults["rope_parameters.beta_fast"] == 32.0


@pytest.mark.parametrize(
    ("variant", "options", "read"),
    [
        ("gpt_neox", {"old_config": True}, {"rotary_pct", "rotary_emb_base"}),
        ("gemma3", {}, {"rope_parameters.full_attention.factor", "rope_parameters.sliding_attention.rope_theta"}),
        ("minimax_m2", {"old_config": True}, {"rotary_dim"}),
        ("falcon_rw", {"n_layer": 2}, {"n_layer"}),
    ],
)
def test_keys_are_followed_through_the_copies_that_families_make(
    variant: str, options: dict[str, Any], read: set[str], tmp_path: Path
) -> None:
    build(variant, tmp_path, **{"old_config": False} | {key: options[key] for key in options if key == "old_config"})
    edit(tmp_path, **{key: value for key, value in options.items() if key != "old_config"})
    report = diagnose(tmp_path).config
    assert read <= set(report.read)
    assert report.ignored is not None and not read & {*report.ignored, *report.defaults}


def test_a_key_that_the_family_overrules_is_ignored(tmp_path: Path) -> None:
    build("falcon_7b", tmp_path)  # multi_query: one key head, whatever the number says
    assert diagnose(tmp_path).config.ignored == ("num_kv_heads",)


def test_an_unsupported_setting_is_refused_and_the_tensors_are_counted_all_the_same(folder: Path) -> None:
    edit(folder, quantization_config={"quant_method": "fp8"})
    done = doctor(folder)
    assert done.exit_code == 1
    assert row(done.stdout, "problem").startswith("config.json: quantization_config: expected none (quantised weights")
    assert row(done.stdout, "config.json").endswith("then refused")
    assert row(done.stdout, "weights").endswith("35 F32 (265.7 KiB)")
    assert diagnose(folder).config.ignored is None


def test_an_unsupported_architecture_is_a_problem(folder: Path) -> None:
    edit(folder, architectures=["MambaForCausalLM"])
    done = doctor(folder)
    assert done.exit_code == 1
    assert row(done.stdout, "model").startswith("MambaForCausalLM (family unknown)")
    assert "architectures: expected one of" in row(done.stdout, "problem")


def test_a_model_that_transformers_code_runs_is_sound_and_says_so(tmp_path: Path) -> None:
    build("starcoder2", tmp_path)
    done = doctor(tmp_path, "--against", "transformers")
    assert done.exit_code == 0, done.stdout
    assert "its own code runs the model" in done.stdout
    assert "transformers' own code runs the model" in done.stdout


# ------------------------------------------------------------------------------------------------------------- tensors


def test_faults_of_tensors_are_sorted_and_all_named(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.self_attn.q_proj.weight"]
        tensors["model.layers.0.mlp.down_proj.bias"] = torch.zeros(48)
        tensors["model.norm.weight"] = torch.zeros(47)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(80, 48, dtype=torch.int8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    change_tensors(folder, spoil)
    done = doctor(folder)
    assert done.exit_code == 1
    assert row(done.stdout, "tensors") == "32 matched, 1 missing, 1 unexpected, 2 misshapen, 1 ignored"
    assert row(done.stdout, "verdict") == "4 problems found"
    fit = diagnose(folder).fit
    assert fit is not None
    assert [(m.name, m.file, m.expected, m.got) for m in (*fit.missing, *fit.unexpected, *fit.misshapen)] == [
        (
            "model.layers.1.self_attn.q_proj.weight",
            None,
            "[64, 48] for layers.1.attention.qkv.weight[0:64]",
            "no such tensor in model.safetensors",
        ),
        ("model.layers.0.mlp.down_proj.bias", "model.safetensors", "no such tensor", "F32 [48]"),
        ("model.norm.weight", "model.safetensors", "[48]", "[47]"),
        ("model.layers.2.mlp.up_proj.weight", "model.safetensors", "one of F32, F16, BF16", "I8"),
    ]
    assert fit.ignored == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert fit.others == ()


def test_a_tied_head_that_the_files_carry_is_told(folder: Path) -> None:
    def add_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(folder, add_head)
    assert row(doctor(folder).stdout, "tied head") == "carried as well, and compared when loading"
    found = diagnose(folder)
    assert found.fit is not None
    assert (found.fit.repeated, found.fit.matched, found.problems) == (("lm_head.weight",), 36, ())


def test_shards_dtypes_and_sizes_are_counted(tmp_path: Path) -> None:
    build("llama_bias", tmp_path, dtype="bfloat16", max_shard_size="40KB")
    found = diagnose(tmp_path)
    assert found.files is not None and found.fit is not None
    (total,) = found.files.dtypes
    assert (total.dtype, total.num_elements, total.num_bytes) == (
        "BF16",
        found.fit.num_parameters,
        2 * total.num_elements,
    )
    assert len(found.files.files) > 1
    assert found.files.file_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_a_cut_file_is_one_problem(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    done = doctor(folder)
    assert done.exit_code == 1
    assert row(done.stdout, "verdict") == "1 problem found"
    assert "(truncated)" in row(done.stdout, "problem")


def test_a_folder_without_weights_is_described_as_far_as_it_goes(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    done = doctor(folder)
    assert done.exit_code == 1
    assert row(done.stdout, "layers") == "3 of 3: 0-2"
    assert "expected model.safetensors" in row(done.stdout, "problem")


def test_many_problems_are_cut_in_the_text_and_whole_in_the_json(folder: Path, tmp_path: Path) -> None:
    change_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "proj" in name])
    done = doctor(folder, "--json", tmp_path / "report.json")
    assert "… and 9 more (--json has them all)" in done.stdout
    assert len(json.loads((tmp_path / "report.json").read_text())["fit"]["missing"]) == 21


# ----------------------------------------------------------------------------------------------------------- tokenizer


def test_a_checkpoint_without_tokenizer_is_sound(folder: Path) -> None:
    done = doctor(folder)
    assert row(done.stdout, "tokenizer") == "none opened"
    assert "no tokenizer: prompts must be token ids" in done.stdout


def test_a_tokenizer_is_set_against_the_model(tmp_path: Path) -> None:
    build("qwen3", tmp_path, vocab_size=400, eos_token_id=0)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    done = doctor(tmp_path)
    assert done.exit_code == 0
    assert row(done.stdout, "tokenizer").startswith("BPE, ByteLevel; ")
    assert row(done.stdout, "its tokens") == "eos '<|end|>' = 0"
    assert row(done.stdout, "ends a text") == "0 (<|end|>) (config.json)"
    assert row(done.stdout, "chat template") == "present"


def test_a_tokenizer_with_more_ids_than_the_model_has_is_a_problem(folder: Path) -> None:
    sentencepiece().save(str(folder / "tokenizer.json"))
    done = doctor(folder)
    assert done.exit_code == 1
    assert "expected ids below the model's vocabulary of 112, got ids up to 270" in row(done.stdout, "problem")


def test_ids_that_end_a_text_must_exist(tmp_path: Path) -> None:
    build("qwen3", tmp_path, vocab_size=400)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path, eos_token_id=400)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 399]}')
    assert diagnose(tmp_path).problems == (
        "config.json: eos_token_id: expected ids below 400, got 400",
        "generation_config.json: eos_token_id: expected a token of tokenizer.json, got 399",
    )


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{}"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "end"}'),
        ("tokenizer_config.json", "{"),
        ("chat_template.json", "{"),
    ],
)
def test_a_broken_file_is_a_problem_beside_the_others(folder: Path, file: str, content: str) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    edit(folder, vocab_size=113)
    (folder / file).write_text(content)
    found = diagnose(folder)
    assert sum(file in problem for problem in found.problems) == 1
    assert any("embed_tokens" in problem for problem in found.problems)


# ------------------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("variant", ["llama3_gqa", "falcon_40b", "gpt_oss", "mpt", "gemma2_uncapped"])
def test_a_sound_model_equals_transformers(variant: str) -> None:
    done = doctor(checkpoint(variant)[0], "--against", "transformers")
    assert done.exit_code == 0, done.stdout
    assert row(done.stdout, "verdict") == "sound, and equal to transformers"
    assert "DIFFERS" not in done.stdout


def test_the_tokenizer_gives_the_text(tmp_path: Path) -> None:
    build("qwen3", tmp_path, vocab_size=400)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    comparison = diagnose(tmp_path, against=True).comparison
    assert comparison is not None
    assert byte_level().decode(list(comparison.token_ids)) == ostinato.doctor.SENTENCE
    assert comparison.unseen == ()


def perturbed(variant: str, spoil: Callable[[Decoder], Any], monkeypatch: pytest.MonkeyPatch) -> Diagnosis:
    """The diagnosis where our model, not transformers', was changed after loading."""
    load = ours.load_ours

    def load_spoiled(*arguments: Any) -> Any:
        decoder = load(*arguments)
        with torch.no_grad():
            spoil(decoder)
        return decoder

    monkeypatch.setattr(ours, "load_ours", load_spoiled)
    return diagnose(checkpoint(variant)[0], against=True)


def grown(path: str) -> Callable[[Decoder], Any]:
    """Make one value of a parameter larger."""
    return lambda decoder: decoder.get_parameter(path).view(-1)[:1].add_(0.5)


@pytest.mark.parametrize(
    ("variant", "path", "layer", "suspect"),
    [
        ("llama3_gqa", "layers.1.attention.qkv.weight", 1, "attention"),
        ("llama3_gqa", "layers.2.ffn.gate_up.weight", 2, "feed-forward"),
        ("llama3_gqa", "layers.0.pre_attn_norm.weight", 0, PARTS["attention input"]),
        ("llama3_gqa", "layers.1.pre_ffn_norm.weight", 1, PARTS["feed-forward input"]),
        ("llama3_gqa", "norm.weight", None, "the final norm"),
        ("llama3_gqa", "lm_head.weight", None, "the head"),
        ("falcon_40b", "layers.1.attention.o.weight", 1, "attention"),
        ("falcon_40b", "layers.0.ffn.down.weight", 0, "feed-forward"),
        ("falcon_40b", "embed.weight", None, "the head"),
        ("gpt_oss", "layers.2.ffn.router.bias", 2, "feed-forward"),
        ("gpt_oss", "layers.1.attention.sinks", 1, "attention"),
        ("mpt", "layers.1.ffn.up.weight", 1, "feed-forward"),
        ("gpt2", "embed_positions.weight", None, "the embedding"),
        ("gemma2_uncapped", "layers.0.post_ffn_norm.weight", 0, BEHIND),
    ],
)
def test_the_first_difference_names_the_layer_and_the_part(
    variant: str, path: str, layer: int | None, suspect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = perturbed(variant, grown(path), monkeypatch)
    assert found.comparison is not None and found.comparison.first is not None
    assert (found.comparison.first.layer, found.comparison.suspect) == (layer, suspect)
    (problem,) = found.problems
    assert problem.startswith(f"transformers: {'layer' if layer is not None else found.comparison.first.place}")
    assert problem.endswith(f"see {suspect}")


def test_a_setting_that_is_understood_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ours.load_ours

    def load_with_other_theta(folder: Path, family: Any, spec: Any) -> Any:
        attention = spec.layers[0].attention
        layer = replace(spec.layers[0], attention=replace(attention, rope=replace(attention.rope, theta=9e4)))
        return load(folder, family, replace(spec, layers=(layer,) * len(spec.layers)))

    monkeypatch.setattr(ours, "load_ours", load_with_other_theta)
    done = doctor(checkpoint("llama3_gqa")[0], "--against", "transformers")
    assert done.exit_code == 1
    assert "layer 0 differs first" in row(done.stdout, "problem")
    assert row(done.stdout, "problem").endswith("see attention")
    assert row(done.stdout, "attention input").startswith("equal")


def test_values_that_are_not_finite_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(decoder: Decoder) -> None:
        decoder.get_parameter("layers.1.ffn.down.weight").fill_(float("nan"))

    found = perturbed("llama3_gqa", spoil, monkeypatch)
    assert found.comparison is not None
    assert (found.comparison.first.layer, found.comparison.suspect) == (1, "feed-forward")  # type: ignore[union-attr]


def test_weights_that_cannot_be_loaded_are_a_problem(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("inf")))
    done = doctor(folder, "--against", "transformers")
    assert done.exit_code == 1
    assert "model.norm.weight: expected finite values" in row(done.stdout, "problem")


def test_a_model_that_cannot_be_loaded_is_not_compared(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    done = doctor(folder, "--against", "transformers")
    assert done.exit_code == 1
    assert "not compared with transformers" in done.stdout


def test_a_model_that_transformers_does_not_know_cannot_be_compared(folder: Path) -> None:
    edit(folder, model_type="unheard_of")
    code, stderr = (done := doctor(folder, "--against", "transformers")).exit_code, done.stderr
    assert (code, stderr.count("\n")) == (2, 1)
    assert "transformers cannot load it" in stderr


def test_a_model_that_does_not_fit_into_memory_is_not_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ostinato.doctor, "free_bytes", lambda device: 100_000)
    done = doctor(folder, "--against", "transformers")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --against transformers: the model needs 292.3 KiB in float32, and 97.66 KiB are free\n"
    )


# ------------------------------------------------------------------------------------------------------ as a stranger


def test_json_takes_the_place_of_the_text(folder: Path) -> None:
    done = doctor(folder, "--json", "-", "--against", "transformers")
    report = json.loads(done.stdout)
    assert (report["sound"], report["family"], report["fit"]["matched"]) == (True, "qwen3", 35)
    assert report["spec"]["layers"][0]["attention"]["qk_norm"] == "head"
    assert report["config"]["ignored"] == []
    assert (report["comparison"]["equal"], report["comparison"]["first"]) == (True, None)
    assert [stage["place"] for stage in report["comparison"]["stages"]] == [
        "embedding", "layer", "layer", "layer", "final norm", "logits",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["demo", "--against", "vllm"], "--against: expected transformers, got 'vllm'"),
        (["demo", "--json", "nowhere/report.json"], "--json: cannot write 'nowhere/report.json'"),
        (["demo", "more"], "more"),
        (["demo", "--revision", "main"], "revision"),
        (["./absent"], "found nothing there"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = doctor(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize("content", [None, "", "{", "[]", '"x"', "\x00"])
def test_a_folder_without_a_readable_config_exits_2(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    done = doctor(tmp_path)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "config.json" in done.stderr


@pytest.mark.parametrize("config", [{}, {"architectures": "LlamaForCausalLM"}, {"architectures": [{}]}])
def test_a_config_that_says_nothing_is_a_problem(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = doctor(tmp_path)
    assert (done.exit_code, done.stderr) == (1, "")
    assert row(done.stdout, "verdict") == "2 problems found"

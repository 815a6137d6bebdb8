import contextlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from mlprune_jax.config.geometry import Frozen, Integer, ModelConfig, Real
from mlprune_jax.config.loading import MAX_BYTES, MAX_SHOWN, config_schema, dump_config, load_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.config.yaml_text import read_yaml
from mlprune_jax.errors import ConfigError


class Blocks(Frozen):
    density: Annotated[Real, Field(gt=0, le=1)] = 0.2
    shape: tuple[Integer, Integer] | Literal["auto"] = (32, 32)


class Prune(Frozen):
    density: Annotated[Real, Field(gt=0, le=1)] = 0.5
    blocks: Blocks | None = Blocks()

    @model_validator(mode="after")
    def _blocks_cut_further(self) -> "Prune":
        if self.blocks and self.blocks.density > self.density:
            raise ValueError(f"blocks.density {self.blocks.density} is above density {self.density}")
        return self


class Run(Frozen):
    model: str
    learning_rate: Annotated[Real, Field(gt=0)] = 3e-5
    steps: Annotated[Integer, Field(ge=1)] = 100
    stages: tuple[str, ...] = ()
    prune: Prune = Prune()


@pytest.fixture
def load(tmp_path):
    """Loads settings from the text of a file, with overrides."""

    def read(text: str, *overrides: str) -> Run:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(Run, path, overrides)

    return read


def message(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_file_then_overrides_the_later_wins(load):
    run = load(
        "model: tiny\nlearning_rate: 3e-5\nprune: {density: 0.3}", "steps=7", "prune.blocks.density=0.1", "steps=8"
    )
    assert run == Run(model="tiny", steps=8, prune=Prune(density=0.3, blocks=Blocks(density=0.1)))


def test_a_pipe_is_as_good_as_a_file():
    """As a shell's ``--config <(...)`` gives it."""
    reading, writing = os.pipe()
    os.write(writing, b"max_length: 48\n")
    os.close(writing)
    assert load_config(RunConfig, Path(f"/dev/fd/{reading}"), ["model=m", "task=t", "data=d"]).max_length == 48
    os.close(reading)


def test_a_path_may_be_text_in_ones_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("model: m\n")
    for path in (str(tmp_path / "my.yaml"), "~/my.yaml", tmp_path / "my.yaml"):
        assert load_config(Run, path) == Run(model="m")
    assert "there is no config file" in message(load_config, Run, str(tmp_path / "your.yaml"))


def test_overrides_leave_the_callers_defaults_alone():
    defaults = {"model": "m", "prune": {"density": 0.5}}
    assert load_config(Run, None, ["prune.density=0.2"], defaults).prune.density == 0.2
    assert defaults["prune"] == {"density": 0.5}


def test_no_file_uses_defaults_and_overrides():
    assert load_config(Run, None, ["model=tiny"]) == Run(model="tiny")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.blocks=null", Run(model="m", prune=Prune(blocks=None))),
        ("prune.blocks={density: 0.1}", Run(model="m", prune=Prune(blocks=Blocks(density=0.1)))),
        ("prune.blocks.shape=[16, 64]", Run(model="m", prune=Prune(blocks=Blocks(shape=(16, 64))))),
        ("stages=[a, b]", Run(model="m", stages=("a", "b"))),
        ("model=a=b", Run(model="a=b")),
        ("learning_rate=1e-3", Run(model="m", learning_rate=1e-3)),
    ],
)
def test_override_values_are_yaml(load, override, expected):
    assert load("model: m", override) == expected


def test_override_reaches_into_a_null(load):
    assert load("model: m\nprune: ~", "prune.density=0.4") == Run(model="m", prune=Prune(density=0.4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: m\nprune: {blocs: {}}", "prune.blocs: unknown key, did you mean prune.blocks?"),
        ("model: m\ndensity: 0.2", "density: unknown key, did you mean prune.density?"),
        ("model: m\nprune: {blocks: {zzzz: 1}}", "prune.blocks.zzzz: unknown key; known here: density, shape"),
        ("{}", "model: is required and not given"),
        ("model: 3", "model: should be a valid string, got 3"),
        ("model: m\nsteps: true", "steps: expected a number, got the boolean True"),
        ("model: m\nsteps: 1.5", "steps: should be a valid integer, got 1.5"),
        ("model: m\nprune: {density: 0}", "prune.density: should be greater than 0, got 0"),
        ("model: m\nprune: {density: .nan}", "prune.density: should be a finite number, got nan"),
        ("model: m\nprune: {density: 0.1}", "prune: blocks.density 0.2 is above density 0.1"),
        ("model: m\nstages: [a, 2]", "stages.1: should be a valid string, got 2"),
        ("model: m\nprune: 3", "prune: should be a valid dictionary or instance of Prune, got 3"),
    ],
)
def test_one_wrong_setting(load, text, expected):
    assert message(load, text).endswith(f"run.yaml: {expected}")


def test_place_of_a_union_holds_no_branch_names(load):
    lines = message(load, "model: m\nprune: {blocks: {shape: [1, x]}}").splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["prune.blocks.shape.1", "prune.blocks.shape"]


def test_all_wrong_settings_in_one_message(load):
    told = message(load, "steps: 0\nlearning_rate: -1\nprune: {density: 2, dens: 1}")
    assert "5 settings are wrong" in told
    for place in ("model", "steps", "learning_rate", "prune.density", "prune.dens"):
        assert f"\n  {place}: " in told


def test_many_wrong_settings_fit_on_a_screen(load):
    told = message(load, "\n".join(f"key{i}: {'x' * 500}" for i in range(100)))
    assert len(told.splitlines()) == MAX_SHOWN + 2
    assert "and 89 more" in told  # the hundred keys and the missing model, less those shown


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "cannot read the override 'steps'"),
        ("=3", "cannot read the override '=3'"),
        ("prune..density=1", "cannot read the override 'prune..density=1'"),
        ("model.name=x", "cannot set model.name: model is 'm', which has no keys"),
        ("steps=[1", "--set steps=[1, line 1"),
        ("prune.densty=0.2", "prune.densty: unknown key, did you mean prune.density?"),
    ],
)
def test_wrong_override(load, override, expected):
    assert expected in message(load, "model: m", override)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "the top level must be"),
        (b"just text", "the top level must be"),
        (b"\xff\xfe\xfa", "cannot read"),
        (b"a: " + b"x" * MAX_BYTES, "is larger than"),
        (b"model: m\nmodel: n", "key 'model' is given twice"),
    ],
)
def test_wrong_file(tmp_path, content, expected):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert expected in message(load_config, Run, path)


def test_missing_file_names_the_near_one(tmp_path):
    (tmp_path / "mnli.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(Run, tmp_path / "mlni.yaml")
    assert caught.value.hint == f"did you mean {tmp_path / 'mnli.yaml'}?"


def test_a_recipe_goes_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("minilm_mrpc_d20")
    recipe = load_config(RunConfig, name, ["data=glue"])
    assert (recipe.task, recipe.data, recipe.prune.density) == ("mrpc", "glue", 0.2)
    assert message(load_config, RunConfig, name, ["seed=x"]).startswith("minilm_mrpc_d20: seed: ")
    name.mkdir()  # a run's folder, say
    assert load_config(RunConfig, name).task == "mrpc"
    name.rmdir()
    name.write_text("model: my own")
    assert load_config(Run, name).model == "my own"  # a file goes before a recipe


@pytest.mark.parametrize("name", ["minilm_mrcp_d20", "configs/minilm_mrpc_d20.yaml"])
def test_what_may_have_been_a_recipe_is_told(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no config file {name}") as caught:
        load_config(Run, Path(name))
    assert "packaged recipe minilm_mrpc_d20?" in caught.value.hint


def test_folder_instead_of_file(tmp_path):
    assert "is a folder" in message(load_config, Run, tmp_path)


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m")
    assert load_config(Run, path).model == "m"


def test_schema_names_every_setting():
    schema = config_schema(Run)
    assert schema["properties"].keys() == Run.model_fields.keys()
    assert schema["additionalProperties"] is False


def test_the_schema_of_a_run_says_what_is_allowed_in_standard_words():
    schema = config_schema(RunConfig)
    stage = schema["$defs"]["BlockStage"]["properties"]
    assert stage["batch_size"]["minimum"] == 1
    assert stage["recover"]["exclusiveMaximum"] == 1
    text, pair = stage["shape"]["anyOf"]
    assert re.search(text["pattern"], "16x32")
    assert not re.search(text["pattern"], "16")
    assert pair["items"]["minimum"] == 1
    assert not re.search(r'"(ge|gt|le|lt)":', json.dumps(schema))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["labels=[a, b]", "regression=true"], "labels, regression is for task custom"),
        (["text_columns=[a]", "label_column=b"], "text_columns, label_column is for task custom"),
        (["data=demo"], "model demo and data demo go together"),
        (["distillation={logit_weight: 0, hidden_weight: 0, attention_weight: 0, task_weight: 0}"], "nothing would be"),
        (
            ["distillation.recovery=logits", "prune.heads_rows.recover=0", "prune.blocks.recover=0"],
            "distillation.recovery is of recovery, and no stage has any",
        ),
        (["prune.blocks.temperature=0.01"], "temperature must be 0.03 at least"),
        (["prune.blocks={densities: learned, temperature: 0.1}"], "temperature must be 0.33 at least"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(overrides, told):
    assert told in message(load_config, RunConfig, None, ["model=m", "task=sst2", "data=d", *overrides])


@given(st.builds(Run, model=st.text(), learning_rate=st.floats(1e-12, 1e12), stages=st.lists(st.text()).map(tuple)))
def test_dumped_settings_load_equal(run):
    data = read_yaml(dump_config(run), source="dump")
    assert Run.model_validate(data) == run


KEYS = st.sampled_from(["model", "steps", "prune", "density", "blocks", "shape", "stages", ""]) | st.text(max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=10)


@pytest.mark.parametrize("cls", [Run, ModelConfig])
@given(overrides=st.lists(st.builds("{}={}".format, st.lists(KEYS).map(".".join), TREES) | st.text(), max_size=4))
def test_any_override_is_applied_or_refused(cls, overrides):
    with contextlib.suppress(ConfigError):
        load_config(cls, None, overrides)

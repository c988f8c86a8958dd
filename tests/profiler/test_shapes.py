"""The shapes of models: what is shipped, and what is refused."""

import pytest
import yaml

from policies.core.errors import ConfigError
from serve_app.profiler.shapes import SHAPES, load_shapes, shape_of, write_model_folder


@pytest.mark.parametrize(
    ("name", "parameters", "kv_values"),
    [
        # As the model cards on Hugging Face count them.
        ("llama-3.1-8b", 8_030_261_248, 65_536),
        ("qwen3-8b", 8_190_735_360, 73_728),
        ("smollm2-135m", 134_515_008, 11_520),
    ],
)
def test_a_shipped_shape_has_the_parameters_of_its_model(name, parameters, kv_values):
    shape = shape_of(name)
    assert shape.num_parameters == parameters
    assert shape.kv_values_per_token == kv_values


def test_every_shipped_shape_says_where_it_comes_from():
    for name, shape in load_shapes().items():
        assert shape.source, name
        assert shape.licence, name


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean qwen3-8b\? known shapes: llama-3.1-8b, "):
        shape_of("Qwen3-8")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("hidden_size", 0, "hidden_size is 0; allowed: above 0"),
        ("hidden_size", "4096", "hidden_size is '4096'; allowed: a whole number"),
        ("rope_theta", -1.0, "rope_theta is -1.0; allowed: a finite number >= 0"),
        ("head_dim", 15, "head_dim is 15; allowed: an even number"),
        ("num_key_value_heads", 3, "num_key_value_heads is 3; allowed: a divisor of num_att"),
        ("model_type", "mamba", "model_type is 'mamba'; allowed: llama, qwen3"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no'; allowed: true or false"),
        ("num_experts", 8, "unknown key num_experts"),
        ("vocab_size", None, "vocab_size is None"),
    ],
)
def test_a_fault_names_file_shape_and_key(tmp_path, key, value, line):
    values = yaml.safe_load(SHAPES.read_text())["tiny"] | {key: value}
    path = tmp_path / "shapes.yaml"
    path.write_text(yaml.safe_dump({"mine": values}))
    with pytest.raises(ConfigError) as caught:
        load_shapes(path)
    assert str(caught.value).startswith(f"{path}: mine: ")
    assert line in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "a: 1"])
def test_a_file_that_holds_no_shapes_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "shapes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_shapes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing.yaml: No such file"):
        load_shapes(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-8b", "tiny"])
def test_a_model_folder_is_what_transformers_reads_as_that_shape(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = write_model_folder(shape_of(name), tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == shape_of(name).num_parameters

"""The configuration as text that can be edited."""

from __future__ import annotations

import pytest

from capture.errors import UsageError
from passes.pruning.prune import Prune, PruneConfig
from passes.quantize import QuantConfig
from runtime.tuned import Configuration

INT8 = QuantConfig(observer="mse", smooth=0.5, layers={"stem": "float", "block.*": "int8"})
CHANNELS = Prune("channels", 0.3, PruneConfig(exclude=("head",), ratios={"stem": 0.1}))


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(),
        Configuration(INT8),
        Configuration(prune=Prune("channels", 0.3)),
        Configuration(INT8, CHANNELS),
        Configuration(prune=CHANNELS),
    ],
)
def test_it_reads_back_as_it_was(configuration, tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(configuration.to_toml())
    assert Configuration.from_toml(path) == configuration


def test_without_pruning_it_is_a_quantisation_configuration(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(Configuration(INT8).to_toml())
    assert QuantConfig.from_toml(path) == INT8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[prune", "is no TOML"),
        ("prune = 0.3", "prune is no table"),
        ("[prune]\nratio = 0.3", "has no setting 'ratio'"),
        ("[prune]\nsparsity = true", "sparsity is True"),
        ("[prune]\nsparsity = 1.0", "out of range"),
        ('[prune]\nmethod = "heads"', "no pruning method 'heads'"),
        ('[prune.ratios]\nstem = "much"', "stem is 'much'"),
        ("obsever = 1", "there is no setting 'obsever'"),
        ('[layers]\nstem = "int9"', "the scheme of the layer stem is 'int9'"),
    ],
)
def test_what_cannot_be_read_is_told(text, said, tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        Configuration.from_toml(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        Configuration.from_toml(tmp_path / "none.toml")

"""The workloads compute what their originals do, are the same every time, and can be exported."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models import bert, gpt2, llama, mlp, resnet, vit
from tests.models.workloads import BATCHED

# What run_decompositions itself stumbles over inside torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SMALL = [*BATCHED, "gpt2:small_with_cache"]
FULL = {
    "bert:build": (109_482_240, 199),
    "bert:masked": (109_482_240, 199),
    "gpt2:build": (124_439_808, 148),
    "gpt2:with_cache": (124_439_808, 148),
    "llama:build": (124_668_672, 111),
    "mlp:build": (1_863_690, 6),
    "resnet:build": (25_557_032, 320),
    "resnet:resnet18": (11_689_512, 122),
    "resnet:resnet34": (21_797_672, 218),
    "resnet:resnet50": (25_557_032, 320),
    "resnet:resnet101": (44_549_160, 626),
    "vit:build": (86_567_656, 152),
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def module_and_factory(name: str) -> tuple[ModuleType, str]:
    module, factory = name.split(":")
    return importlib.import_module(f"models.{module}"), factory


def make(name: str) -> nn.Module:
    module, factory = module_and_factory(name)
    return getattr(module, factory)()


def inputs(name: str, batch: int = 1) -> tuple[Tensor, ...]:
    module, factory = module_and_factory(name)
    return module.example_inputs(batch, factory)


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected), atol=1e-5, rtol=1e-5)


# The convention


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_finite_float32_and_of_order_one(name):
    model = make(name)
    assert not any(module.training for module in model.modules())
    for y in tree_leaves(model(*inputs(name))):
        assert y.dtype == torch.float32
        assert y.shape[0] == 1
        assert y.isfinite().all()
        assert 0.05 < y.std() < 5


@pytest.mark.parametrize("name", BATCHED)
def test_each_of_a_batch_has_an_output_of_its_own(name):
    model = make(name)
    batch = inputs(name, 3)
    assert all(x.shape[0] == 3 for x in batch)
    for y in tree_leaves(model(*batch)):
        assert y.shape[0] == 3
        assert min((y[0] - y[1]).abs().max(), (y[1] - y[2]).abs().max()) > 0.02
    alone = model(*(x[1:2] for x in batch))
    close(alone, [y[1:2] for y in tree_leaves(model(*batch))])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bert:small", [(2, 8, 32), (2, 32)]),
        ("gpt2:small", [(2, 8, 100)]),
        ("llama:small", [(2, 8, 100)]),
        ("mlp:small", [(2, 4)]),
        ("resnet:small", [(2, 10)]),
        ("vit:small", [(2, 10)]),
    ],
)
def test_output_shapes(name, shape):
    outputs = make(name)(*inputs(name, 2))
    assert [tuple(y.shape) for y in tree_leaves(outputs)] == shape


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_the_same_each_time_and_random_state_is_left_alone(name):
    before = torch.random.get_rng_state()
    first = make(name).state_dict()
    example = inputs(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    close(make(name).state_dict(), first)
    close(inputs(name), example)


@pytest.mark.parametrize("name", SMALL)
def test_no_norm_is_the_identity(name):
    state = make(name).state_dict()
    norms = {key for key, value in state.items() if key.endswith("weight") and value.ndim == 1}
    assert norms or name == "mlp:small"
    for key in norms:
        assert state[key].unique().numel() > 1
        assert state.get(key.replace("weight", "bias"), torch.ones(1)).abs().sum() > 0
        assert state.get(key.replace("weight", "running_mean"), torch.ones(1)).abs().sum() > 0


@pytest.mark.parametrize("module", [bert, gpt2, llama, mlp, resnet, vit])
def test_an_unknown_factory_is_named_with_those_there_are(module):
    with pytest.raises(ValueError, match=r"no factory 'tiny'; there are build, .*small"):
        module.example_inputs(1, "tiny")


# The full sizes


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        model = make(name)
    parameters, entries = FULL[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("name", ["resnet:build", "bert:build"])
def test_signals_keep_their_size_through_full_depth(name):
    stds = []
    model = make(name)
    for module in model.modules():
        if isinstance(module, (resnet.Bottleneck, bert.Layer)):
            module.register_forward_hook(lambda _module, _args, y: stds.append(y.std()))
    model(*inputs(name))
    assert 0.1 < min(stds) <= max(stds) < 3


def test_resnet50_keys_are_torchvisions():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in resnet.resnet50().state_dict().items()}

    def norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
        vectors = dict.fromkeys(["weight", "bias", "running_mean", "running_var"], (channels,))
        return {f"{prefix}.{name}": shape for name, shape in {**vectors, "num_batches_tracked": ()}.items()}

    expected: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inner = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            expected |= {f"{prefix}.conv1.weight": (width, inner, 1, 1), **norm(f"{prefix}.bn1", width)}
            expected |= {f"{prefix}.conv2.weight": (width, width, 3, 3), **norm(f"{prefix}.bn2", width)}
            expected |= {
                f"{prefix}.conv3.weight": (4 * width, width, 1, 1),
                **norm(f"{prefix}.bn3", 4 * width),
            }
            if block == 0:
                expected[f"{prefix}.downsample.0.weight"] = (4 * width, inner, 1, 1)
                expected |= norm(f"{prefix}.downsample.1", 4 * width)
            inner = 4 * width
    expected |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    assert list(shapes.items()) == list(expected.items())


def test_a_bottleneck_strides_in_its_3x3_convolution():
    block = resnet.small().layer2[0]
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]


def test_vit_keys_are_timms():
    keys = set(vit.small().state_dict())
    ends = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = ["patch_embed.proj", "norm", "head", *(f"blocks.{i}.{end}" for i in range(2) for end in ends)]
    assert keys == {"cls_token", "pos_embed"} | {f"{x}.{kind}" for x in layers for kind in ("weight", "bias")}


# The same numbers as an independent implementation with the same weights


def test_resnet_agrees_with_transformers():
    from transformers import ResNetConfig, ResNetForImageClassification

    ours = resnet.small()
    sizes = dict(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[2, 1, 1, 1], num_labels=10)
    theirs = ResNetForImageClassification(ResNetConfig(**sizes)).eval()

    def our_key(key: str) -> str:
        key = key.replace("resnet.embedder.embedder.convolution", "conv1")
        key = key.replace("resnet.embedder.embedder.normalization", "bn1")
        key = re.sub(r"resnet\.encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", key)
        key = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", key)
        key = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", key)
        key = key.replace("shortcut.convolution", "downsample.0").replace(
            "shortcut.normalization", "downsample.1"
        )
        return key.replace("classifier.1", "fc")

    state = ours.state_dict()
    theirs.load_state_dict({key: state[our_key(key)] for key in theirs.state_dict()})
    images = inputs("resnet:small", 2)
    close(ours(*images), theirs(*images).logits)


def test_bert_agrees_with_transformers():
    from transformers import BertConfig, BertModel

    sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = BertConfig(**sizes, intermediate_size=64, max_position_embeddings=16)
    ours, theirs = bert.small(), BertModel(config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids, mask = inputs("bert:small_masked", 3)
    reference = theirs(ids, attention_mask=mask)
    close(ours(ids, mask), [reference.last_hidden_state, reference.pooler_output])
    reference = theirs(ids)
    close(ours(ids), [reference.last_hidden_state, reference.pooler_output])


def test_gpt2_loads_a_checkpoint_and_agrees_with_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    # Weights large enough to tell one GELU from the other.
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()
    masks = {"h.0.attn.bias": torch.ones(1, 1, 32, 32).tril(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    ours = gpt2.small()
    ours.load_state_dict(gpt2.from_checkpoint({**theirs.transformer.state_dict(), **masks}))
    ids = inputs("gpt2:small", 3)
    close(ours(*ids), theirs(*ids).logits)


def test_llama_agrees_with_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config = LlamaConfig(**sizes, intermediate_size=64, max_position_embeddings=32, rms_norm_eps=1e-5)
    ours, theirs = llama.small(), LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = inputs("llama:small", 3)
    close(ours(*ids), theirs(*ids).logits)


def test_a_vit_block_agrees_with_torchs_encoder_layer():
    block = vit.small().blocks[0]
    options = dict(dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True)
    layer = nn.TransformerEncoderLayer(32, 4, 64, **options).eval()
    names = [("norm1.", "norm1."), ("norm2.", "norm2."), ("mlp.fc1.", "linear1."), ("mlp.fc2.", "linear2.")]
    names += [("attn.qkv.", "self_attn.in_proj_"), ("attn.proj.", "self_attn.out_proj.")]
    state = block.state_dict()
    layer.load_state_dict({b + kind: state[a + kind] for a, b in names for kind in ("weight", "bias")})
    x = torch.randn(3, 17, 32)
    close(block(x), layer(x))


# The key-value cache


def test_decoding_token_by_token_equals_the_full_forward():
    full, cached = gpt2.small(), gpt2.small_with_cache(batch=2)
    close(cached.state_dict(), full.state_dict())
    for seed in (0, 1):  # the second sequence meets what the first left in the cache
        ids = torch.randint(100, (2, 16), generator=torch.Generator().manual_seed(seed))
        steps = [cached(ids[:, t : t + 1], torch.tensor([t])) for t in range(16)]
        close(torch.cat(steps, dim=1), full(ids))


def test_a_prompt_may_fill_the_cache_at_once():
    full, cached = gpt2.small(), gpt2.small_with_cache()
    ids = torch.randint(100, (1, 12))
    close(cached(ids[:, :9], torch.arange(9)), full(ids)[:, :9])
    close(cached(ids[:, 9:], torch.arange(9, 12)), full(ids)[:, 9:])


def test_the_exported_decoder_writes_its_cache():
    example = inputs("gpt2:small_with_cache")
    program = torch.export.export(gpt2.small_with_cache(), example, strict=False).run_decompositions({})
    assert set(program.graph_signature.buffers_to_mutate.values()) == {
        f"h.{layer}.attn.cache.{kind}" for layer in range(2) for kind in "kv"
    }
    exported, ids = program.module(), torch.randint(100, (1, 8))
    steps = [exported(ids[:, t : t + 1], torch.tensor([t])) for t in range(8)]
    close(torch.cat(steps, dim=1), gpt2.small()(ids))


# Capture


@pytest.mark.parametrize("name", BATCHED)
def test_export_with_a_dynamic_batch_agrees_at_three_sizes(name):
    model, example = make(name), inputs(name, 2)
    batch = torch.export.Dim("N", min=1, max=64)
    program = torch.export.export(
        model, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False
    )
    exported = program.run_decompositions({}).module()
    for size in (1, 3, 8):
        batch_inputs = inputs(name, size)
        close(exported(*batch_inputs), model(*batch_inputs))


@pytest.mark.parametrize("name", ["bert:small", "gpt2:small", "llama:small"])
def test_text_models_export_with_a_dynamic_length(name):
    model, example = make(name), inputs(name, 2)
    length = torch.export.Dim("T", min=1, max=16)
    program = torch.export.export(model, example, dynamic_shapes=({1: length},), strict=False)
    exported = program.run_decompositions({}).module()
    for size in (1, 5, 16):
        ids = torch.randint(100, (2, size))
        close(exported(ids), model(ids))


@pytest.mark.parametrize(
    "name", ["bert:small_masked", "gpt2:small", "mlp:small", "resnet:small", "vit:small"]
)
def test_symbolic_trace_agrees_at_three_batches(name):
    model = make(name)
    traced = torch.fx.symbolic_trace(model)
    for size in (1, 3, 8):
        batch_inputs = inputs(name, size)
        close(traced(*batch_inputs), model(*batch_inputs))

"""The operations of a decode step in PyTorch: the definition of what `kernels.py` computes, and what runs where there
is no Triton.

Rows of a step are lanes: each lane holds one unfinished completion, its length, its prompt's place in the prompt cache
and its slot in the cache of own tokens. `advance` records what was sampled and hands the lanes of finished completions
to waiting ones (continuous batching), all on the device. Shapes: B rows (lanes), H hidden size, N outputs, K key-value
heads, G query heads per key-value head, D head size, R completions of a call, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from swarmgame.inference.sampler import SamplingParams
from swarmgame.inference.token_sampler import TokenSampler


@dataclass(frozen=True)
class AttentionShape:
    """What all layers share that rotate queries and keys, or all that do not.

    Args:
        scaling: of attention scores.
        cos, sin: rotary tables [positions, D], in the model's type; ones and zeros where nothing is rotated.
        longest: positions that a row can reach.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    cos: Tensor
    sin: Tensor
    longest: int


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, and the norms of its queries and keys.

    Args:
        keys, values: one buffer each: first those of all prompts, one behind the other [K, prompt_capacity, D], then
            those of own tokens [S, K, steps, D].
        query_scale, key_scale: [D], or None where the architecture has no such norms.
        epsilon: of those norms.
        bias: of the product that makes queries, keys and values [(G + 2) * K * D], for one that comes in parts.
    """

    keys: Tensor
    values: Tensor
    prompt_capacity: int
    steps: int
    query_scale: Tensor | None
    key_scale: Tensor | None
    epsilon: float
    bias: Tensor | None = None

    @staticmethod
    def size(kv_heads: int, head_dim: int, prompt_capacity: int, slots: int, steps: int) -> int:
        """Numbers in a buffer."""
        return kv_heads * head_dim * (prompt_capacity + slots * steps)

    def prompt(self, buffer: Tensor, shape: AttentionShape) -> Tensor:
        """The prompts' part of a buffer [K, prompt_capacity, D]."""
        size = shape.num_kv_heads * self.prompt_capacity * shape.head_dim
        return buffer[:size].view(shape.num_kv_heads, self.prompt_capacity, shape.head_dim)

    def own(self, buffer: Tensor, shape: AttentionShape) -> Tensor:
        """The own tokens' part of a buffer [S, K, steps, D]."""
        size = shape.num_kv_heads * self.prompt_capacity * shape.head_dim
        return buffer[size:].view(-1, shape.num_kv_heads, self.steps, shape.head_dim)


@dataclass(frozen=True)
class Lanes:
    """The rows of a step; every tensor is [B] and is written in place.

    Args:
        token: to be fed.
        row: the completion that the lane holds; -1 when it is idle.
        slot: its place in the cache of own tokens.
        length: own tokens in the cache.
        prompt_start, prompt_length: of its prompt in the prompt cache.
        forbid_eos: 1 where the next token must not be EOS.
        uniform: fp64, the random number of the next token.
    """

    token: Tensor
    row: Tensor
    slot: Tensor
    length: Tensor
    prompt_start: Tensor
    prompt_length: Tensor
    forbid_eos: Tensor
    uniform: Tensor

    def first(self, count: int) -> Lanes:
        """Return the first lanes, as views."""
        return Lanes(*(value[:count] for value in vars(self).values()))

    def move(self, source: Tensor) -> None:
        """Put the lanes `source` first, in that order."""
        for value in vars(self).values():
            value[: len(source)] = value[source]


@dataclass(frozen=True)
class Batch:
    """The completions of a call; tensors are [R] or [R, steps].

    Args:
        ids, logprobs: what was sampled so far.
        uniforms: fp64; empty when greedy.
        budget: tokens a completion may have.
        first_token: sampled from the prompt.
        prompt_start, prompt_length: of its prompt in the prompt cache.
        queue: completions in the order in which they get a lane.
        state: [4] int64: how many of the queue have had a lane, the queue's length, completions that are not finished,
            tokens sampled in steps.
    """

    ids: Tensor
    logprobs: Tensor
    uniforms: Tensor
    budget: Tensor
    first_token: Tensor
    prompt_start: Tensor
    prompt_length: Tensor
    queue: Tensor
    state: Tensor


# ── norm and activation
def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of the last dimension, computed in fp32 and rounded before the scale is applied, as in transformers."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), scale, epsilon)
    return scale * F.rms_norm(x, (x.shape[-1],), None, epsilon)


def add_rms_norm(hidden: Tensor, delta: Tensor | None, scale: Tensor, epsilon: float) -> Tensor:
    """Add to the residual stream [B, H], in place, and return its RMSNorm.

    Args:
        delta: [B, H], or parts of it [S, B, H] that are to be added up; None: nothing is to be added.
    """
    if delta is not None:
        hidden.add_(delta if delta.dim() == 2 else delta.sum(0))
    return rms_norm(hidden, scale, epsilon)


def split_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product for `add_rms_norm` or the attention: complete [B, N], or in parts along its inner dimension [S, B, N],
    in fp32 and without its bias.
    """
    return F.linear(x, weight, bias)


def complete(product: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add up a product in parts [S, B, N] and its bias [N]; one that is complete [B, N] is returned as it is."""
    if product.dim() == 2:
        return product
    added = product.sum(0)
    return (added if bias is None else added + bias).to(dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SiLU(gate) · up of the joined product [B, 2N] → [B, N]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


# ── attention
def decode_attention(qkv: Tensor, layer: LayerCache, lanes: Lanes, shape: AttentionShape) -> Tensor:
    """Write the new token's key and value to the cache, and attend over the prompt, the row's own tokens and the new
    one.

    Args:
        qkv: queries, keys and values of the new token [B, (G + 2) * K * D], neither normalised nor rotated; or parts
            of them [S, B, (G + 2) * K * D], to be added up with the layer's bias.

    Returns:
        [B, K * G * D].
    """
    qkv = complete(qkv, layer.bias, layer.keys.dtype)
    keys, rows = shape.num_kv_heads, len(qkv)
    query, key, value = _rotate(qkv, layer, shape, lanes.prompt_length + lanes.length)
    own_keys, own_values = layer.own(layer.keys, shape), layer.own(layer.values, shape)
    own_keys[lanes.slot, :, lanes.length] = key
    own_values[lanes.slot, :, lanes.length] = value
    prompt = lanes.prompt_start[:, None] + torch.arange(int(lanes.prompt_length.max()), device=qkv.device)
    prompt_visible = prompt < (lanes.prompt_start + lanes.prompt_length)[:, None]
    own = torch.arange(int(lanes.length.max()) + 1, device=qkv.device).expand(rows, -1)
    own_visible = own <= lanes.length[:, None]
    prompt = prompt.clamp(max=layer.prompt_capacity - 1)
    everything = [
        torch.cat([of_prompt[:, prompt].transpose(0, 1), of_own[lanes.slot, :, : own.shape[1]]], dim=2)
        for of_prompt, of_own in (
            (layer.prompt(layer.keys, shape), own_keys),
            (layer.prompt(layer.values, shape), own_values),
        )
    ]
    scores = query.view(rows, keys, -1, shape.head_dim).float() @ everything[0].float().transpose(2, 3) * shape.scaling
    scores = scores.masked_fill(~torch.cat([prompt_visible, own_visible], dim=1)[:, None, None, :], -torch.inf)
    # What is not visible may be anything, NaN too, and its share of 0 must stay 0.
    values = everything[1].float().masked_fill(~torch.cat([prompt_visible, own_visible], dim=1)[:, None, :, None], 0.0)
    return (scores.softmax(dim=-1) @ values).to(qkv.dtype).reshape(rows, -1)


def prefill_rotary(
    qkv: Tensor, layer: LayerCache, shape: AttentionShape, positions: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate the queries and keys of prompt tokens, and write keys and values to the prompt cache.

    Args:
        positions: of the tokens in their prompts [T].
        places: in the cache [T]; -1 for padding, which is not written.

    Returns:
        Queries [T, K * G, D] and keys [T, K, D], rotated.
    """
    query, key, value = _rotate(qkv, layer, shape, positions)
    real = places >= 0
    layer.prompt(layer.keys, shape)[:, places[real]] = key[real].transpose(0, 1)
    layer.prompt(layer.values, shape)[:, places[real]] = value[real].transpose(0, 1)
    return query, key


def _rotate(qkv: Tensor, layer: LayerCache, shape: AttentionShape, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = qkv.view(len(qkv), -1, shape.head_dim)
    query, key, value = torch.split(heads, [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
    if layer.query_scale is not None and layer.key_scale is not None:
        query, key = rms_norm(query, layer.query_scale, layer.epsilon), rms_norm(key, layer.key_scale, layer.epsilon)
    cos, sin = shape.cos[positions].unsqueeze(1), shape.sin[positions].unsqueeze(1)
    return _rotary(query, cos, sin), _rotary(key, cos, sin), value


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


# ── sampling
def sample_tokens(
    logits: Tensor, source: Tensor, uniforms: Tensor, forbid_eos: Tensor, eos_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sample one token for each element of `source` from the full distribution.

    Args:
        logits: [B, V].
        source: the row of the logits that each token is sampled from [M].
        uniforms: fp64 [M].
        forbid_eos: [B], not 0 where EOS must not be sampled.

    Returns:
        Ids [M] and their log-probabilities [M] in fp32, of the distribution without EOS where it is forbidden; NaN
        where a row's logits are not finite.
    """
    sampler = TokenSampler(SamplingParams(1, temperature=temperature), eos_ids.tolist())
    return sampler(logits[source], uniforms, forbid_eos=forbid_eos[source] != 0)


def advance(lanes: Lanes, batch: Batch, sampled: Tensor, logprob: Tensor, eos_ids: Tensor, min_new_tokens: int) -> None:
    """Record the sampled tokens, end completions at EOS or budget, and give their lanes to those that wait."""
    active = lanes.row >= 0
    rows, places = lanes.row[active], lanes.length[active] + 1
    batch.state[3] += len(rows)
    batch.ids[rows, places], batch.logprobs[rows, places] = sampled[active], logprob[active]
    done = active & torch.isin(sampled, eos_ids)
    done[active] |= places + 1 >= batch.budget[rows]
    free = ~active | done
    turn = batch.state[0] + free.cumsum(0) - 1
    taken = free & (turn < batch.state[1])
    lanes.row[free] = -1
    lanes.row[taken] = batch.queue[turn[taken]]
    lanes.length.add_(1)
    lanes.length[free] = 0
    lanes.token.copy_(sampled)
    lanes.token[taken] = batch.first_token[lanes.row[taken]]
    active = lanes.row >= 0
    for own, of_row in ((lanes.prompt_start, batch.prompt_start), (lanes.prompt_length, batch.prompt_length)):
        own.zero_()
        own[active] = of_row[lanes.row[active]]
    lanes.forbid_eos.copy_(lanes.length + 1 < min_new_tokens)
    if batch.uniforms.numel():
        follows = active & (lanes.length + 1 < batch.uniforms.shape[1])
        lanes.uniform[follows] = batch.uniforms[lanes.row[follows], lanes.length[follows] + 1]
    batch.state[0] += taken.sum()
    batch.state[2] = active.sum() + batch.state[1] - batch.state[0]

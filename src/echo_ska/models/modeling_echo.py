"""Echo as a Hugging Face model."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from echo_ska.models.cache_echo import EchoCache
from echo_ska.models.configuration_echo import EchoConfig
from echo_ska.models.embedding import ScaledEmbedding
from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.generation import CachedGeneration
from echo_ska.models.loss import EchoCausalLMOutput, is_plain_head, loss_without_logits
from echo_ska.models.padding import joined, packed_boundaries, padding_boundaries, scatter
from echo_ska.models.rollback import Rollback
from echo_ska.models.sealed_weights import SealedWeights
from echo_ska.models.segments import SEGMENT_LENGTH, read_in_segments
from echo_ska.nn import Block, SequenceMixer
from echo_ska.nn.initialization import start_as
from echo_ska.nn.mixer import KEPT_IN_FLOAT32, MixerState
from echo_ska.nn.registry import FEED_FORWARDS, MIXERS

# The last projection of every mixer and feed-forward layer: what is added to the residual stream.
RESIDUAL_PROJECTIONS = ("o_proj", "out_proj", "down_proj", "readout_proj")


class EchoBlock(GradientCheckpointingLayer, Block):
    """A `Block` that keeps its input alone for the backward pass, where gradient checkpointing is enabled.

    That is Hugging Face's layer for it: hooks on the block are called once, not again when it is computed anew.
    """

    @property
    def loses_gradients_of_states(self) -> bool:
        """Whether the next call would be checkpointed in the reentrant way, which follows tensor arguments alone."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return False
        return bool(getattr(self._gradient_checkpointing_func, "keywords", {}).get("use_reentrant", True))


class EchoPreTrainedModel(SealedWeights):
    """What the Echo models share: their configuration and how parameters start."""

    config_class = EchoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("EchoBlock",)
    # A model whose states cannot be taken back is "stateful" to Hugging Face, and refused assisted decoding.
    _is_stateful = False
    # Read in float32 even where the model is cast to half precision.
    _keep_in_fp32_modules_strict: Collection[str] = KEPT_IN_FLOAT32

    def __init__(self, config: EchoConfig, *arguments: Any, **settings: Any) -> None:
        config.validate()  # `from_pretrained` sets the fields that it is given after the configuration checked its own
        super().__init__(config, *arguments, **settings)

    def _init_weights(self, module: nn.Module) -> None:
        """Every module knows its own start, `reset_parameters`; residual projections start smaller."""
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        scale, weight = getattr(module, "start_scale", 1.0), getattr(module, "weight", None)
        if isinstance(weight, Tensor) and scale != 1.0:
            start_as(weight, scale * weight)

    def post_init(self) -> None:
        """Hugging Face's last step of __init__; of the names above, those that this model has parameters of."""
        super().post_init()
        own = {name.rpartition(".")[2] for name, _ in self.named_parameters()}
        self._keep_in_fp32_modules_strict = own.intersection(self._keep_in_fp32_modules_strict)

    @classmethod
    def _from_config(cls, config: EchoConfig, **settings: Any) -> Any:
        """Hugging Face's `from_config`; what `from_pretrained` keeps in float32 is so here too."""
        model = super()._from_config(config, **settings)
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in KEPT_IN_FLOAT32 and parameter.dtype.itemsize < 4:
                parameter.data = parameter.data.float()
        return model

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: Hugging Face would then skip the start of modules that own no parameter themselves (W_q = W_k).

        What that protects, parameters loaded from a file, `torch.nn.init` under its guard and `start_as` leave alone.
        """
        return False

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class EchoModel(EchoPreTrainedModel):
    """Embedding, blocks, final norm: token ids to hidden states."""

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(config)
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            EchoBlock(
                config.hidden_size,
                MIXERS[name](config),
                FEED_FORWARDS[config.feed_forward](config),
                config.norm_eps,
                mixer_dropout=config.mixer_dropout[index] if config.mixer_dropout else 0.0,
            )
            for index, name in enumerate(config.layer_types)
        )
        for name, module in self.layers.named_modules():
            if name.endswith(RESIDUAL_PROJECTIONS):
                # 2 N branches add to the residual stream: with this factor, their sum starts no larger than one.
                module.start_scale = (2 * config.num_hidden_layers) ** -0.5
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        if config.tie_word_embeddings:
            # A token's logit for itself is then about sqrt(d) times its others'; this starts it at 1.
            self.norm.start_scale = config.hidden_size**-0.5
        self.post_init()

    @property
    def mixers(self) -> list[SequenceMixer]:
        """The mixer of each layer."""
        return [block.mixer for block in self.layers if isinstance(block, Block)]

    @property
    def has_state(self) -> bool:
        """Whether every layer can go on from a state."""
        return all(mixer.has_state for mixer in self.mixers)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: EchoCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Run the blocks.

        Args:
            input_ids: [B, T] int64, or give `inputs_embeds` [B, T, d].
            attention_mask: [B, T] (with a cache, the last T columns count): 0 marks padding, which is removed before
                the blocks, so that it changes nothing.
            past_key_values: what an earlier call returned; updated in place, as Hugging Face caches are. Without
                gradients, one token a row updates the tensors of its states themselves (`SequenceMixer.step`).
            use_cache: whether to return the states; the default is yes in evaluation (unless the configuration or a
                layer without a state says no) and no in training.
            cu_seqlens: [N + 1] boundaries of sequences packed into one row; each starts from an empty state.
            cu_seq_lens_q, seq_idx: the same by the names of Hugging Face's collators; seq_idx [1, T] numbers them.
            position_ids: not needed, since states know their positions; refused where they restart inside a row that
                nothing divides. Other keywords that Hugging Face's tools pass are not used.

        Returns:
            `last_hidden_state` [B, T, d] and `past_key_values` (an `EchoCache` or None).

        Raises:
            ValueError: inputs that do not fit together, or a cache under reentrant gradient checkpointing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None and input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [batch, time], got {list(input_ids.shape)}")
        return_dict = self.config.return_dict if return_dict is None else return_dict
        keep_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if use_cache is None:
            asked = getattr(self.config, "use_cache", None)
            use_cache = self.has_state and not self.training and asked is not False
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cu_seqlens = packed_boundaries(cu_seqlens, cu_seq_lens_q, seq_idx, hidden_states)
        cache = past_key_values
        if cache is None and use_cache:
            cache = EchoCache(self.config)
        if cache is not None:
            if not isinstance(cache, EchoCache):
                raise ValueError(f"past_key_values must be an EchoCache, got {type(cache).__name__}")
            cache.require_usable_by(self.config)
        new_tokens = hidden_states.shape[1]
        cached = 0 if cache is None else cache.get_seq_length()
        padded = padding_boundaries(attention_mask, hidden_states, cached)
        embedded, real = hidden_states, None if padded is None else padded[1]
        rollback = None if cache is None or not use_cache else cache.recorder()
        if rollback is not None and cu_seqlens is not None:
            rollback.forget()  # packed rows have no common length that tokens could be taken back from
            rollback = None
        if cache is not None and rollback is not None:
            if first := rollback.too_long(cached, new_tokens):
                output = self._read_in_two(embedded, real, cache, rollback, first, bool(keep_all))
                return output if return_dict else output.to_tuple()
            rollback.before(cached, cache.point)
        if padded is not None:
            if cu_seqlens is not None:
                raise ValueError("give cu_seqlens or an attention_mask with padding, not both")
            cu_seqlens, columns = padded
            hidden_states = hidden_states[columns].unsqueeze(0)
        elif cu_seqlens is None and position_ids is not None and bool((position_ids.diff(dim=-1) <= 0).any()):
            raise ValueError(
                "position_ids restart inside a row: give the boundaries of packed sequences as cu_seqlens, or take "
                "DataCollatorWithFlattening(return_flash_attn_kwargs=True)"
            )

        kept: list[Tensor] = []

        def keep(states: Tensor) -> None:
            if keep_all:
                kept.append(states if padded is None else scatter(states, padded[1], new_tokens))

        if cache is not None and use_cache and cu_seqlens is None and new_tokens == 1 and cache.can_step:
            hidden_states = self._step(hidden_states, cache, keep)
        else:
            if cu_seqlens is not None:
                cu_seqlens = cu_seqlens.cpu()  # each layer asks for them as integers: here a GPU is waited for once
            hidden_states = self._run(hidden_states, cache, keep, new_tokens, cu_seqlens, output_state=use_cache)
        if rollback is not None:
            rollback.after(cached + new_tokens, self, embedded, real)
        hidden_states = self.norm(hidden_states)
        keep(hidden_states)
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden_states if padded is None else scatter(hidden_states, padded[1], new_tokens),
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(kept) if keep_all else None,
        )
        return output if return_dict else output.to_tuple()

    def _run(
        self,
        hidden_states: Tensor,
        cache: EchoCache | None,
        keep: Callable[[Tensor], None],
        new_tokens: int,
        cu_seqlens: Tensor | None,
        *,
        output_state: bool,
    ) -> Tensor:
        """Any number of tokens through all blocks, whose new states the cache then stores."""
        if cache is not None and any(
            isinstance(block, EchoBlock) and block.loses_gradients_of_states for block in self.layers
        ):
            raise ValueError(
                "reentrant gradient checkpointing passes no gradient through past_key_values: enable it with "
                'gradient_checkpointing_kwargs={"use_reentrant": False}, or train without a cache'
            )
        states = []
        for index, block in enumerate(self.layers):
            keep(hidden_states)
            state = None if cache is None else cache.layers[index].state
            hidden_states, state = block(hidden_states, state, cu_seqlens=cu_seqlens, output_state=output_state)
            states.append(state)
        if cache is not None and output_state:
            # Only now: a layer that raises leaves the cache as it was.
            for layer, state in zip(cache.layers, states, strict=True):
                layer.store(state, new_tokens)
        return hidden_states

    def _read_in_two(
        self,
        embedded: Tensor,
        real: Tensor | None,
        cache: EchoCache,
        rollback: Rollback,
        first: int,
        keep_all: bool,
    ) -> BaseModelOutputWithPast:
        """Read so many first tokens of a long call without a record, then the others, which can be taken back."""

        def read(part: slice) -> BaseModelOutputWithPast:
            return self.forward(
                inputs_embeds=embedded[:, part],
                attention_mask=None if real is None else real[:, part],
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=keep_all,
                return_dict=True,
            )

        with cache.restored_on_error():
            with cache.unrecorded():
                early = read(slice(0, first))
            rollback.forget()
            late = read(slice(first, None))
        hidden_states = None
        if keep_all:
            hidden_states = tuple(map(joined, early.hidden_states, late.hidden_states))
        return BaseModelOutputWithPast(
            last_hidden_state=joined(early.last_hidden_state, late.last_hidden_state),
            past_key_values=cache,
            hidden_states=hidden_states,
        )

    @torch.compiler.disable
    def _prepare(self, states: list[MixerState]) -> None:
        """All layers before any has read the token: what can fail fails here. It decides on the host."""
        for mixer, state in zip(self.mixers, states, strict=True):
            mixer.prepare(state)

    def _step(self, hidden_states: Tensor, cache: EchoCache, keep: Callable[[Tensor], None]) -> Tensor:
        """One token a row through all blocks, the cache's states changed in place."""
        states = [layer.changeable_state() for layer in cache.layers]
        self.mixers[0].check_inputs(hidden_states, states[0], None)
        self._prepare(states)
        with cache.reading_a_token():
            for block, state in zip(self.layers, states, strict=True):
                keep(hidden_states)
                hidden_states, _ = block(hidden_states, state, in_place=True)
        return hidden_states


class EchoForCausalLM(EchoPreTrainedModel, CachedGeneration, GenerationMixin):
    """Echo with a language-model head.

    Which mixer stands in which layer is the configuration's choice: the pure Mamba-2 model, the Mamba-2 + attention
    hybrid and Echo are this one class.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (Hugging Face's own form)

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(config)
        self.model = EchoModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: EchoCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_dict: bool | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> EchoCausalLMOutput | tuple:
        """Logits, and the loss where labels are given.

        Args:
            labels: [B, T] int64; labels[t] is the token AT t (the model shifts), -100 is not scored.
            logits_to_keep: compute only the last so many positions' logits (0 = all), or those at these indices.
            skip_logits: compute the loss chunk by chunk (`linear_cross_entropy`) and return no logits, which for a
                large vocabulary are most of a training step's memory. Liger Kernel's name for the same.
            kwargs: `num_items_in_batch`, `ignore_index` and `shift_labels` of Hugging Face's loss, with logits or
                without.

        The other arguments are `EchoModel.forward`'s.

        Returns:
            `loss` (mean cross-entropy in nats) or None, `logits` [B, T, V], `past_key_values`; with `skip_logits`,
            `logits` is None and `correct` and `scored` are counted.

        Raises:
            ValueError: `skip_logits` without labels or with `logits_to_keep`, or the head is no plain linear layer.
        """
        if skip_logits and (labels is None or not isinstance(logits_to_keep, int) or logits_to_keep != 0):
            raise ValueError("skip_logits is for a loss: give labels, and no logits_to_keep")
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output = self.model(
            position_ids=position_ids,
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            cu_seqlens=cu_seqlens,
            cu_seq_lens_q=cu_seq_lens_q,
            seq_idx=seq_idx,
            return_dict=True,
        )
        loss = logits = correct = scored = None
        if skip_logits:
            assert labels is not None
            loss, correct, scored = loss_without_logits(self.lm_head, output.last_hidden_state, labels, **kwargs)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(output.last_hidden_state[:, kept])
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        result = EchoCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            correct=correct,
            scored=scored,
        )
        return result if return_dict else result.to_tuple()

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tensor,
        past_key_values: EchoCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        segment_length: int = SEGMENT_LENGTH,
    ) -> CausalLMOutputWithPast:
        """Read a context of any length, segment by segment: activations take memory for one segment.

        `generate(prefill_chunk_size=...)` does the same before it writes on. The model is in eval mode meanwhile.

        Args:
            input_ids: [B, T] int64, T >= 1, on any device.
            past_key_values: what to go on from; updated in place.
            attention_mask: [B, T], 0 for padding, which has to stand on the left.
            segment_length: tokens of a row in one forward call, at least 1. It does not change the function.

        Returns:
            `logits` [B, 1, V] of the last token, and `past_key_values`.

        Raises:
            ValueError: no token, padding on the right, or inputs that do not fit together.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] < 1:
            raise ValueError(f"input_ids must be [batch, time] of at least one token, got {list(input_ids.shape)}")
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask must be {list(input_ids.shape)}, as input_ids, got {list(attention_mask.shape)}"
                )
            if not bool(attention_mask[:, -1].all()):
                raise ValueError("the last column of attention_mask is padding in some row: pad on the left")

        def more(begin: int, end: int) -> dict[str, Any]:
            return {
                "logits_to_keep": 1,
                "attention_mask": None if attention_mask is None else attention_mask[:, begin:end],
            }

        segments = read_in_segments(self, input_ids, segment_length, past_key_values=past_key_values, more=more)
        with in_eval_mode(self):
            ((_, output),) = collections.deque(segments, maxlen=1)
        return output

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's compact states after `length` tokens, all layers together, as they are stored."""
        return sum(mixer.state_bytes(length) for mixer in self.model.mixers)

    @property
    def has_state(self) -> bool:
        """Whether every layer can go on from a state; without that, there is no cache and no generation."""
        return self.model.has_state

    @property
    def can_skip_logits(self) -> bool:
        """Whether the head is what `skip_logits` takes: plain, linear and without a bias."""
        return is_plain_head(self.lm_head)


# The Trainer shifts the labels for its label smoothing where it finds the class's name here, and else does not.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.update({EchoConfig.model_type: EchoForCausalLM.__name__})

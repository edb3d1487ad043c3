"""What Echo tells Hugging Face's `generate`: which cache to begin with, and what of the inputs it has read."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from echo_ska.models.cache_echo import EchoCache
from echo_ska.models.configuration_echo import EchoConfig
from echo_ska.models.rollback import RECENT_TOKENS


class CachedGeneration(GenerationMixin):
    """`generate` from an `EchoCache`, with drafts that can be taken back."""

    config: EchoConfig

    @property
    def has_state(self) -> bool:
        """Whether every layer can go on from a state."""
        raise NotImplementedError

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Hand `generate` an empty cache of ours, which reading a prompt in chunks starts from.

        Where drafts are to be judged or written, it records what it reads, so that they can be taken back.

        Raises:
            ValueError: new tokens go on from a cache without an attention mask as long as the dialogue, by which
                Hugging Face tells them from all tokens.
        """
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)
        if not generation_config.use_cache or not self.has_state:
            return
        cache = model_kwargs.get("past_key_values")
        if cache is None:
            cache = model_kwargs["past_key_values"] = EchoCache(self.config)
        mask = model_kwargs.get("attention_mask")
        # A mask of ones is dropped before, but for its length.
        length = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]
        cached = cache.get_seq_length()
        if length is not None and 0 < length <= cached:
            raise ValueError(
                f"past_key_values has read {cached} tokens, but attention_mask (or input_ids) stands for no more than "
                f"{length}: give all tokens, or the new ones and an attention_mask of [batch, {cached} + new]"
            )
        drafting = generation_mode == GenerationMode.ASSISTED_GENERATION
        if drafting and cached and mask is not None and bool(mask[:, cached:].all()):
            # Of new tokens alone Hugging Face would keep the mask's first columns, which stand for what was read.
            model_kwargs["attention_mask"] = None
        draft = generation_config.prompt_lookup_num_tokens
        if generation_config.is_assistant:
            draft = generation_config.max_new_tokens or RECENT_TOKENS
        if draft and isinstance(cache, EchoCache):
            cache.activate_past_recording(max(RECENT_TOKENS, int(draft)))

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """As in any model; a cache can take back as many tokens as the drafts have that are to come, and a few more.

        How many an assistant writes is its own setting, which Hugging Face raises as drafts hold.
        """
        generator = super()._get_candidate_generator(*args, **kwargs)
        cache = kwargs.get("model_kwargs", {}).get("past_key_values")
        if isinstance(cache, EchoCache):
            drafted = int(getattr(generator, "num_assistant_tokens", 0))
            cache.activate_past_recording(max(RECENT_TOKENS, drafted))
        return generator

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: EchoCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in any model; but where drafts are judged, what a given cache has read is not read a second time.

        Hugging Face's assisted decoding begins with all tokens, whatever `past_key_values` it was given.

        Raises:
            ValueError: new tokens alone hold padding where drafts are judged, which that has lost sight of.
        """
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        positions = kwargs.get("position_ids")  # of the whole dialogue, also where input_ids are the new tokens alone
        if is_first_iteration and next_sequence_length is None and positions is not None:
            whole = positions.shape[-1] == input_ids.shape[1] and int(positions[..., 0].max()) == 0
            if whole and 0 < cached < input_ids.shape[1]:
                next_sequence_length = input_ids.shape[1] - cached
            cut = attention_mask is not None and attention_mask.shape[-1] == input_ids.shape[1] < positions.shape[-1]
            if cached and cut:
                raise ValueError(
                    "padding among new tokens cannot be told where drafts are judged: give all tokens of the dialogue "
                    "with its attention_mask, or new tokens without padding"
                )
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

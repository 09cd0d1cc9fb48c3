"""One selection step, from a pool of rows to its coreset. Read this first.

    pool (n rows on each rank, N over all)
      -> small sources' rows are kept whole
      -> features of the large sources' rows (n, D), as factors
      -> Adam-normalized, h coordinates chosen per source, gathered (N, h)
      -> quotas per source, medoids by facility location
      -> Coreset(indices (K,), weights (K,)), the same on every rank
      -> this rank's share of the rows, in as many micro-batches as came

State (the Adam history, the noise scale and a step counter) changes only in `commit`, after the optimizer's step. A
step that is prepared and then lost in a crash leaves no trace.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from colm.choosing import AtRandom, ByFeatures, Chooser, Step
from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.features.adam import AdamConstants, adam_constants
from colm.features.locate import locate_value_site
from colm.features.selection_pass import tokens_at_a_time
from colm.features.site import ValueSite
from colm.features.spsa import site_for_copies
from colm.joined import can_join
from colm.noise import NoiseMeter
from colm.reuse.forward import ForwardReuse
from colm.step.balance import split_joined, split_padded
from colm.step.exchange import Held, gather_held, share_rows, weigh_rows
from colm.step.pool import Pool, RowSpans
from colm.step.pool_info import share_facts
from colm.step.sharding import Split, check_sharding, sharding_of
from colm.step.sources import balance_sources, find_small_seen, name_keys, warn_of_sizes
from colm.step.stages import NOISE, TAKE, stage
from colm.step.state import SelectionState
from colm.types import Batch, Coreset, NoiseScale, StepRecord

logger = logging.getLogger(__name__)

OVERFLOW = (
    "Overflow: the small sources alone have %d rows in the pool, above the budget of %d, so a random sample of them in "
    "proportion is kept and no row of a large source. Raise keep, or list fewer small_sources."
)


class _Selected(NamedTuple):
    """What `select` leaves to `take`, so that the pool's tokens are read once."""

    coreset: Coreset
    pool: Pool
    held: Held


class CoresetSelector:
    """Chooses a coreset from each pool and keeps the history that its features need.

    Args:
        model: a Hugging Face causal language model as it is trained: bare, with PEFT adapters, or in
            DistributedDataParallel.
        config: the settings.
        source_sizes: number of examples with a labeled token in each source of the whole data; may be 0. Needed by
            ``small_sources="auto"``.
        optimizer: its betas and eps normalize the features. It may be set later as an attribute. Without an
            optimizer, Adam's defaults are used.
        pad_token_id: for rows that are padded again; default the model's, else 0.
        chooser: chooses the rows of every step; default as the settings say.
        placed: False if an engine moves or splits the model before the first step, which then looks for what selection
            needs of it.

    Raises:
        UnsupportedModelError: the model has no value projection that can be found.
        ConfigError: see `SelectionConfig` and `find_small_sources`.

    Example, a training step of your own loop::

        coreset = selector.select(batches, sources)
        for batch in selector.take(batches, coreset):
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
            example_mean(logits, batch["labels"], num_examples=len(coreset.indices)).backward()
        optimizer.step(); optimizer.zero_grad()
        selector.commit()

    In DistributedDataParallel, which averages over ranks, multiply the loss by the number of ranks.

    Source: CoLM, algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SelectionConfig | None = None,
        source_sizes: Mapping[str, int] | None = None,
        *,
        optimizer: Any = None,
        pad_token_id: int | None = None,
        chooser: Chooser | None = None,
        placed: bool = True,
    ) -> None:
        self.config = config or SelectionConfig()
        self.chooser = chooser
        self.state = SelectionState()
        self._meter = NoiseMeter(self.config)
        self._reuse: ForwardReuse | None = None
        self._placed = placed
        self.model = model
        self.optimizer = optimizer
        self.source_sizes: dict[str, int] | None = None
        listed = self.config.small_sources
        self.small = frozenset() if isinstance(listed, str) else frozenset(listed)
        self._balance: dict[str, float] = {}
        if source_sizes is not None:
            self.follow_sizes(source_sizes)
        elif self.config.small_sources == "auto":
            raise ConfigError(
                "small_sources='auto' needs source_sizes, the number of examples of each source in the whole data; "
                "pass it, or set small_sources to 'none' or to a list of names."
            )
        elif self.config.balance:
            raise ConfigError(
                f"balance={self.config.balance} needs source_sizes, the number of examples of each source in the "
                "whole data; pass it, or set balance to 0."
            )
        self.pad_token_id = _pad_token_id(model) if pad_token_id is None else pad_token_id
        self._said: set[str] = set()
        self._selected: _Selected | None = None

    @property
    def model(self) -> nn.Module:
        """The model that is trained. Setting another model locates its value projection."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        if getattr(self, "_model", None) is model:
            return
        self.state.forget_features()  # of another model's weight
        self._meter.reset()
        self._model = model
        split = sharding_of(model)
        self._settle(split if self._placed else split._replace(waiting=True))

    def _follow_sharding(self) -> None:
        """Look at the model again if it was split since; `fully_shard` and DeepSpeed change a model in place."""
        self._placed = True
        split = sharding_of(self.model)
        if split != self._split:
            self._settle(split)

    def _settle(self, split: Split) -> None:
        """Find in the model, as it is split now, what selection needs of it."""
        model = self._model
        check_sharding(model)
        if self._reuse is not None:
            self._reuse.end(warn=False)  # the other model's layers get their checkpoint function back
        self._reuse = None
        self._joinable: bool | None = None
        if self.config.reuse_forward:
            self._reuse = ForwardReuse(model, offload=self.config.reuse_offload)
        self._split = split
        self.site: ValueSite | None = None
        wanted = self.config.measured
        if wanted is not None and not split.waiting:
            self.site = locate_value_site(model, wanted.value_module)
            if wanted.spsa is not None:
                self.site = site_for_copies(model, self.site)
            logger.info(
                "Features: %s; last value projection: %s, %d weights, followed by %d layers.",
                wanted.kind,
                self.site.name,
                self.site.dim,
                self.site.layers_after,
            )

    def select(
        self,
        batches: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        sources: Sequence[Any],
        *,
        dataset_index: Sequence[int] | None = None,
        spans: Sequence[RowSpans | None] | None = None,
    ) -> Coreset:
        """Choose which rows of the pool to train on. Changes no state that a checkpoint holds.

        Args:
            batches: this rank's part of the pool, a dict of tensors (n, T) or a list of them.
            sources: the source of each row, in the order of the rows of all batches: names or other labels, see
                `colm.step.sources.source_name`.
            dataset_index: each row's number in the data set. Ties and draws follow it, so the picks do not depend
                on how rows are dealt to ranks and micro-batches. -1 marks a row that repeats another row to fill a
                batch; it should have no label. Default: the position in the pool.
            spans: of each batch, what `RowSpans.of` read on the host, such as in a data loader's worker. Without it the
                pool's tensors are read, for which a GPU must finish its queued work.

        Returns:
            The coreset, the same on every rank.

        Raises:
            DataError: a batch without labels, a source that is unknown or missing, or counts that disagree.
        """
        start = time.perf_counter()
        self._follow_sharding()
        pool = Pool(batches, self.pad_token_id, spans)
        facts = share_facts(pool, sources, dataset_index, self.source_sizes)
        step = Step(self.state.step, pool, facts, self.config, self.small, self._balance)
        if self._reuse is not None and self.chooser is None:
            self._reuse.begin(pool)
        chosen = self._chooser(step).choose(step)
        record = chosen.record(step, time.perf_counter() - start)
        if self._meter.due(step.number):
            with stage(NOISE):
                noise = self._meter.measure(self.model, self.site, self.optimizer, pool, facts, chosen.coreset)
            record = record._replace(noise=noise)
        self.state.prepare(chosen.history, chosen.carried, record)
        self._selected = _Selected(chosen.coreset, pool, Held(facts.rows_by_rank, facts.tokens))
        return chosen.coreset

    def take(self, batches: Mapping[str, Any] | Sequence[Mapping[str, Any]], coreset: Coreset) -> list[Batch]:
        """Return this rank's share of the kept rows, in as many micro-batches as `batches` has.

        Rows of similar length are batched together, the longest first: this saves padding, and a micro-batch that does
        not fit fails at once. The padding side stays. Micro-batches of short rows have more rows than others, but no
        more padded tokens than the longest rows have in micro-batches of equally many rows. If weights are not uniform,
        each micro-batch has a key ``row_weights``, (n,) float32, for `example_mean`.

        With ``padding_free=True``, and a model that allows it, each micro-batch is one row of joined rows (1, T), see
        `Pool.join`. Pass all its keys but ``labels`` and ``row_weights`` to the model, and its ``cu_seq_lens_q`` to
        `example_mean`; `LeanHead` finds it in the batch.
        """
        with stage(TAKE):
            pool, held = self._selected_pool(batches, coreset)
            if self.config.weighs:
                pool = weigh_rows(pool, coreset, held.rows)
            share = share_rows(pool, coreset.indices.tolist(), held)
            rows, slots = share.pool.by_length(share.positions), len(pool.batches)
            if self._joins() and share.pool.is_solid(rows):
                return [share.pool.join(run) for run in split_joined(rows, slots, share.pool.lengths)]
            runs = split_padded(rows, slots, share.pool.lengths, share.pool.labelled)
            kept = [share.pool.collate(run) for run in runs]
            if self._reuse is not None:
                at_a_time = tokens_at_a_time(self.config.selection_pass, pool)
                self._reuse.keep(share.pool, runs, kept, held=len(pool), max_tokens=at_a_time)
        return kept

    def _joins(self) -> bool:
        """Return whether kept rows are joined; checks the model once, and logs what it found."""
        if self.config.padding_free and self._joinable is None:
            self._joinable = can_join(self.model)
        return bool(self._joinable)

    def _selected_pool(
        self, batches: Mapping[str, Any] | Sequence[Mapping[str, Any]], coreset: Coreset
    ) -> tuple[Pool, Held]:
        """Return the pool and what each rank holds of it; as `select` left them if it returned this coreset."""
        selected = self._selected
        if selected is None or selected.coreset is not coreset:  # the same on all ranks
            pool = Pool(batches, self.pad_token_id)
            return pool, gather_held(pool)
        if selected.pool.holds_tokens_of(batches):
            return selected.pool.with_batches(batches), selected.held
        return Pool(batches, self.pad_token_id), selected.held

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The gradient noise scale after the last measurement, see `SelectionConfig.noise_every`; None before any."""
        return self._meter.scale

    def follow_sizes(self, source_sizes: Mapping[str, int]) -> None:
        """Set the sources' sizes, which decide which sources are small. Those of a stream change as it is read.

        Raises as the constructor does.
        """
        sizes = name_keys("source_sizes", source_sizes)
        self.small = find_small_seen(sizes, self.config.small_sources)
        if self.source_sizes is None:
            warn_of_sizes(sizes, self.config.small_sources)
        self.source_sizes = sizes
        self._balance = balance_sources(sizes, self.config.balance) if self.config.balance else {}

    def reset(self) -> None:
        """Forget all steps, for a new training."""
        self.state.reset()
        self._meter.reset()
        self._selected = None
        if self._reuse is not None:
            self._reuse.end()

    def commit(self, *, stepped: bool = True) -> StepRecord:
        """Make the last `select` count, after the optimizer's step, and return its record.

        Args:
            stepped: False if the optimizer skipped its step (an overflow under float16). The history then stays
                as it was.

        Raises:
            ConfigError: `select` was not called since the last commit.
        """
        self._selected = None
        if self._reuse is not None:
            self._reuse.end()
        record = self.state.commit(stepped=stepped)
        self._meter.commit()
        return record

    def state_dict(self) -> dict[str, Any]:
        """Return the committed state: step counter, Adam history (D,), residual (h,), noise; tensors on the CPU."""
        return self.state.to_dict() | {"noise": self._meter.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigError: the history belongs to a weight of another size.
        """
        self._follow_sharding()
        self.state.load(state, dim=0 if self.site is None else self.site.dim)
        self._meter.load_state_dict(state.get("noise", {}))

    def _chooser(self, step: Step) -> Chooser:
        """Return how this step's rows are chosen."""
        if self.chooser is not None:
            return self.chooser
        if len(step.small) > step.budget:
            self._say_once(OVERFLOW, len(step.small), step.budget)
        wanted = self.config.measured
        whole = len(step.facts.learnable) <= step.facts.slots  # of a last pool all rows are trained
        selects = self.config.budget.selects_at(step.number) and not whole
        if wanted is None or not selects or not step.big or len(step.small) >= step.budget:
            return AtRandom()
        assert self.site is not None
        constants = self._adam_constants(self.site) if wanted.adam else None
        recording = None if self._reuse is None else self._reuse.recording
        return ByFeatures(self.model, self.site, wanted, constants, self.state, recording)

    def _adam_constants(self, site: ValueSite) -> AdamConstants | None:
        """Return the optimizer's constants, or None where it is not Adam-like and features stay as they are."""
        if self.optimizer is None:
            self._say_once("No optimizer was given: features are normalized with betas 0.9 and 0.999, eps 1e-8.")
            return AdamConstants(0.9, 0.999, 1e-8)
        constants = adam_constants(self.optimizer, site.weight)
        if constants is None:
            self._say_once("The optimizer has no two betas and eps, so features are not normalized.")
        return constants

    def _say_once(self, message: str, *values: int) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message, *values)


def _pad_token_id(model: Any) -> int:
    """Return the model's padding token, or 0, which is a valid id everywhere and masked anyway."""
    config = getattr(model, "config", None)
    pad = getattr(config, "pad_token_id", None)
    vocabulary = getattr(config, "vocab_size", None)
    valid = isinstance(pad, int) and pad >= 0 and (vocabulary is None or pad < vocabulary)
    return pad if valid and pad is not None else 0

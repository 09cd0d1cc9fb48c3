"""Balanced order in the trainers: the sampler of each pass, and the choice of the rows that were dealt to a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from colm.balanced import BalancedPasses, DealtPass
from colm.choosing import Chosen, Step
from colm.config import SelectionConfig
from colm.errors import ConfigError, DataError
from colm.mixing import Passes
from colm.row_features import RowFeatures, make_features
from colm.step.labels import find_learnable
from colm.trainers.checks import check_batches
from colm.trainers.columns import INDEX_KEY, SOURCE_KEY, CodedRows
from colm.trainers.dealt_streams import DealtRows, DealtStream, Sizes, deal_stream, keep_dealt, pool_size
from colm.trainers.passes import PassesMixin
from colm.trainers.streams import is_stream


class BalancedOrder(Sampler[int]):
    """The rows of each pass, pool after pool; those without a label are left out.

    Args:
        dealer: deals the rows of each pass.
        numbers: (rows,) int64, each row's number in the data as the user gave it; the trainer may have dropped some.
    """

    def __init__(self, dealer: BalancedPasses, numbers: np.ndarray) -> None:
        self.dealer = dealer
        self.numbers = numbers
        self.epoch = 0

    @property
    def initial_seed(self) -> int:
        """Seed of the order of the first pass."""
        return self.dealer.passes.seed

    @initial_seed.setter
    def initial_seed(self, seed: int) -> None:
        self.dealer.passes.seed = seed

    @property
    def dealt(self) -> DealtPass:
        """The rows of this pass."""
        return self.dealer.deal(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.dealer.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.dealt.rows.tolist())


class Dealt:
    """Chooses the rows that were dealt to the step when the pass began.

    Args:
        order: of the data loader whose pools come.
    """

    def __init__(self, order: BalancedOrder) -> None:
        self._order = order
        self._pass: DealtPass | None = None
        self._stands_for = np.empty(0)  # of each row by its number
        self._pool = np.empty(0)  # its pool, -1 if it is in none

    def choose(self, step: Step) -> Chosen:
        """Return the rows that were dealt to the step, and others of its pool if a micro-batch would be empty.

        Raises:
            DataError: the pool is not one of the order, so the data loader was replaced or the ranks disagree.
        """
        self._read()
        facts = step.facts
        number = {p: facts.dataset_index[p] for p in facts.learnable}
        pools = {int(self._pool[each]) if each < len(self._pool) else -1 for each in number.values()}
        if len(pools) > 1 or -1 in pools:
            raise DataError(
                f"The rows of step {step.number} are not those of one step of the balanced order. Leave the training "
                "data loader as it is. If the processes run on different machines, give them the same features: a file "
                "in order_by."
            )
        return keep_dealt(step, {p: float(self._stands_for[each]) for p, each in number.items()})

    def _read(self) -> None:
        """Look up the pass by the numbers of its rows."""
        dealt, numbers = self._order.dealt, self._order.numbers
        if dealt is self._pass:
            return
        self._pass = dealt
        self._stands_for, self._pool = np.zeros(numbers.max() + 1), np.full(numbers.max() + 1, -1)
        self._stands_for[numbers[dealt.rows]] = dealt.stands_for
        self._pool[numbers[dealt.rows]] = np.arange(len(dealt.rows)) // self._order.dealer.pool.rows


class OrderMixin(PassesMixin):
    """Puts each pass of a Trainer in the order that its selection names."""

    selection: SelectionConfig
    selector: Any
    replayed: Any
    _source_names: list[str]
    _encoded: Any
    _balanced: BalancedOrder | None = None
    _features: RowFeatures | None = None
    _dealt_rows: DealtRows | None = None  # of a stream
    train_dataset: Any
    _running: Any
    _window: int
    source_sizes: dict[str, int]

    def _prepare_order(self) -> None:
        """Make the features that the order needs, once the Trainer has prepared its data.

        Raises:
            ConfigError: see `deal_stream`.
            DataError: see `make_features`.
        """
        if self.selection.order == "random":
            return
        if is_stream(self.train_dataset):
            sizes, estimated = dict(self.source_sizes), self._running is not None
            self.train_dataset = deal_stream(
                self.train_dataset,
                self.args,
                self.selection,
                self._source_names,
                Sizes(sizes, estimated),
                self._window,
            )
            if self.selection.features == "none" and self.replayed is None:
                self._dealt_rows = DealtRows()
            return
        by = self.selection.order_by
        codes, numbers, _ = coded_rows(self.train_dataset)
        if by in ("tokens", "sources"):
            self._features = make_features(by, codes, len(self._source_names), self.train_dataset)
        else:  # a file has a vector for each row that the user gave, of which the trainer may have dropped some
            of_all = make_features(by, np.zeros(len(self._encoded.dataset), dtype=np.int64), 1)
            self._features = of_all._replace(values=of_all.values[numbers])

    def rows_of_pass(self) -> int:
        """Return the number of rows in one pass."""
        return len(self.train_dataset) if self._balanced is None else len(self._balanced)

    def pass_state(self) -> dict[str, Any]:
        """Return the checkpoint state for the position in the data, with what tells its order from others."""
        return {**super().pass_state(), "order": self._digest(self.place.epoch)}

    def _digest(self, epoch: int) -> str | None:
        if isinstance(self.train_dataset, DealtStream):
            return self.train_dataset.digest
        return None if self._balanced is None else self._balanced.dealer.deal(epoch).digest

    # ---- Overridden Trainer methods ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the balanced order, and let the selector keep the rows that it deals to each step."""
        if self._features is None:
            return super()._get_train_sampler(train_dataset)
        self._balanced = self._deal_rows(self._features)
        if self.selection.features == "none" and self.replayed is None:
            self.selector.chooser = Dealt(self._balanced)
        return self._balanced

    def _deal_rows(self, features: RowFeatures) -> BalancedOrder:
        args = self.args
        codes, numbers, learnable = coded_rows(self.train_dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        passes = Passes([self._source_names[code] for code in codes], learnable, True, None, seed)
        check_batches(args, passes.length)
        served_at_once = args.train_batch_size * args.world_size  # accelerate serves no round that lacks a rank's batch
        dropped = passes.length % served_at_once if args.dataloader_drop_last else 0
        dealer = BalancedPasses(
            passes,
            features,
            self.selection,
            self.selector.small,
            pool=pool_size(args),
            length=passes.length - dropped,
        )
        return BalancedOrder(dealer, numbers)

    def _come_back(self, loader: Any, checkpoint: str, *, within: bool) -> None:
        """Also check that the rest of the checkpoint's pass is in the order that it began with.

        Raises:
            ConfigError: it is not.
        """
        super()._come_back(loader, checkpoint, within=within)
        saved = self._resumed_from or {}
        if within and saved.get("order") != self._digest(saved.get("epoch", 0)):
            raise ConfigError(
                f"The run stopped within a pass whose rows are in another order than now (order="
                f"{self.selection.order!r}, order_by={self.selection.order_by!r}), so rows would come twice or never. "
                "Resume with the settings, data and batch size of the run, on the same kind of machine; or set "
                "ignore_data_skip=True to begin the pass again."
            )


def coded_rows(dataset: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's source code and number, (rows,) int64, and whether it has a label, (rows,) bool."""
    if isinstance(dataset, CodedRows):
        return np.asarray(dataset.codes, dtype=np.int64), np.arange(len(dataset)), dataset.learnable
    plain = dataset.with_format("numpy", columns=[SOURCE_KEY, INDEX_KEY])[:]
    return plain[SOURCE_KEY], plain[INDEX_KEY], find_learnable(dataset)

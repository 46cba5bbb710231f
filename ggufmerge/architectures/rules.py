"""What llama.cpp decides about a layer by its place: which layers look back on a window only, which have experts, which
predict further tokens. Which architecture has which of these rules is in `layer_rules.py`.

A slice that moves a layer to another place must leave that as it was, or the result computes something else than its
weights were trained for, mostly without a word. So each decision is a rule here: `of` gives its value for every layer
of a model, and `kept` the metadata that give layers in a new order the values they are to have, if any can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ggufmerge.architectures.layers import Layers

Values = list[Hashable]


@dataclass(frozen=True)
class Rule(ABC):
    """One decision about layers by their places."""

    @abstractmethod
    def of(self, layers: Layers) -> Values:
        """The value for each layer of a model; equal values mean that llama.cpp treats two layers alike."""

    @abstractmethod
    def said(self, value: Hashable) -> str:
        """A value in words that fit behind "a layer with ..."."""

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        """Metadata with which each layer has the value that is wanted; None when there are none."""
        return None

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys of the architecture that decide; none when nothing in a file does."""
        return ()

    @property
    def only_here(self) -> tuple[str, ...]:
        """Those of these keys that decide nothing else: two values with which layers are of one kind mean the same."""
        return ()

    @property
    def is_minor(self) -> bool:
        """Whether a layer works at another place, only not quite as before, so that a warning is enough."""
        return False

    @abstractmethod
    def why(self, layers: Layers) -> str:
        """The rule in a sentence, with the numbers that hold for a model."""


class Numbered(Rule):
    """A rule that goes by one key of the architecture; by none where `number` is ""."""

    number: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.number,) if self.number else ()


def _every(period: int) -> str:
    return {1: "every layer", 2: "every 2nd layer", 3: "every 3rd layer"}.get(period, f"every {period}th layer")


@dataclass(frozen=True)
class Further(Rule):
    """The last layers predict further tokens (MTP): `nextn_predict_layers` of any architecture."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("nextn_predict_layers",)

    def of(self, layers: Layers) -> Values:
        return [i >= layers.main for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return "the task to predict further tokens (MTP)" if value else "an ordinary place"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        count = sum(map(bool, wanted))
        ends = all(wanted[len(wanted) - count :])
        return {layers.key("nextn_predict_layers"): count} if ends and count < len(wanted) else None

    def why(self, layers: Layers) -> str:
        return f"layers that predict further tokens (MTP) are the last {layers.further or 'ones'}"


@dataclass(frozen=True)
class Window(Rule):
    """Sliding attention but for one layer in each period (`load_swa_pattern`). A list of the layers wins over it.

    needs: "" when the window is always there, "size" when `attention.sliding_window` must say how wide it is, "not 0"
    when that key may only not be 0.
    main: the number of layers at which the rule holds; 0 for any.
    """

    period: int
    full_first: bool = False
    needs: str = ""
    main: int = 0
    pattern = "attention.sliding_window_pattern"

    def holds(self, layers: Layers) -> bool:
        """Whether llama.cpp has sliding attention in the model."""
        size = layers.integer("attention.sliding_window")
        if self.main and layers.main != self.main:
            return False
        return bool(size) if self.needs == "size" else size != 0 if self.needs else True

    def _period(self, layers: Layers) -> int:
        given = layers.integer(self.pattern)
        return self.period if given is None else given

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.pattern, "attention.sliding_window")

    @property
    def only_here(self) -> tuple[str, ...]:
        return (self.pattern,)

    def of(self, layers: Layers) -> Values:
        if not self.holds(layers):
            return [False] * layers.count
        if (given := layers.values(self.pattern)) is not None:
            return [i < len(given) and bool(given[i]) for i in range(layers.count)]
        period, full = self._period(layers), 0 if self.full_first else self._period(layers) - 1
        return [i < layers.main and (not period or i % period != full) for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return "sliding attention" if value else "full attention"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        return {layers.key(self.pattern): list(map(bool, wanted))} if self.holds(layers) else None

    def why(self, layers: Layers) -> str:
        if self.main:
            return f"{layers.architecture} has sliding attention in models of {self.main} layers only"
        if not self.holds(layers):
            return f"without {layers.key('attention.sliding_window')} all layers have full attention"
        return f"{layers.architecture} has full attention in {_every(self._period(layers))}"


@dataclass(frozen=True)
class Recurrent(Rule):
    """Linear or recurrent attention but for each n-th layer; a list of the layers wins over the number."""

    default: int
    interval = "full_attention_interval"
    pattern = "attention.recurrent_layers"

    def _interval(self, layers: Layers) -> int:
        given = layers.integer(self.interval)
        return self.default if given is None else given

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.pattern, self.interval)

    @property
    def only_here(self) -> tuple[str, ...]:
        return self.reads

    def of(self, layers: Layers) -> Values:
        if (given := layers.values(self.pattern)) is not None:
            return [i < len(given) and bool(given[i]) for i in range(layers.count)]
        n = self._interval(layers) or 1
        return [i < layers.main and (i + 1) % n != 0 for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return "linear attention" if value else "full attention"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        return {layers.key(self.pattern): list(map(bool, wanted))}

    def why(self, layers: Layers) -> str:
        return f"{layers.architecture} has full attention in {_every(self._interval(layers))}"


@dataclass(frozen=True)
class Lead(Numbered):
    """The first layers are of one kind, those behind them of another; a key says how many."""

    number: str
    first: str
    others: str

    def _count(self, layers: Layers) -> int:
        return layers.integer(self.number) or 0

    def of(self, layers: Layers) -> Values:
        return [i < self._count(layers) for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return self.first if value else self.others

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        count = sum(map(bool, wanted))
        return {layers.key(self.number): count} if all(wanted[:count]) else None

    def why(self, layers: Layers) -> str:
        return f"{layers.architecture} has {self.first} in its first layers ({layers.key(self.number)})"


@dataclass(frozen=True)
class ExpertStep(Numbered):
    """Experts in each n-th layer i, where (i + offset) % n is `rest`; a key gives n.

    lead: layers before this number have none, as the key of that name says.
    """

    number: str
    offset: int
    rest: int = 0
    lead: str = ""

    def _values(self, layers: Layers, step: int) -> list[bool]:
        lead = (layers.integer(self.lead) or 0) if self.lead else 0
        return [step > 0 and i >= lead and (i + self.offset) % step == self.rest for i in range(layers.count)]

    def of(self, layers: Layers) -> Values:
        return list(self._values(layers, layers.integer(self.number) or 0))

    def said(self, value: Hashable) -> str:
        return "experts" if value else "no experts"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        steps = range(1, layers.count + 2)
        return next(({layers.key(self.number): n} for n in steps if self._values(layers, n) == list(wanted)), None)

    def why(self, layers: Layers) -> str:
        return f"{layers.architecture} has experts in {_every(layers.integer(self.number) or 0)}"


@dataclass(frozen=True)
class Period(Numbered):
    """Each n-th layer is of another kind, and no key can say otherwise; or a key says n for all of them."""

    kind: str
    others: str
    offset: int
    period: int = 0
    number: str = ""

    def _period(self, layers: Layers) -> int:
        return self.period or layers.integer(self.number) or 0

    def of(self, layers: Layers) -> Values:
        period = self._period(layers)
        return [period > 0 and (i + self.offset) % period == 0 for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return self.kind if value else self.others

    def why(self, layers: Layers) -> str:
        return f"{layers.architecture} has {self.kind} in {_every(self._period(layers))}"


@dataclass(frozen=True)
class NoPositions(Period):
    """As `Period`, for models that leave out RoPE in each 4th layer only while they have a window."""

    def _period(self, layers: Layers) -> int:
        return self.period if layers.integer("attention.sliding_window") else 0


@dataclass(frozen=True)
class Part(Numbered):
    """Layers are counted in parts of n, and weights were scaled for the part they are in."""

    number: str

    def of(self, layers: Layers) -> Values:
        n = layers.integer(self.number) or 0
        return [i // n if n else 0 for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return f"weights scaled for part {value}"

    def why(self, layers: Layers) -> str:
        return f"{layers.key(self.number)} halves values behind {_every(layers.integer(self.number) or 0)}"


@dataclass(frozen=True)
class First(Rule):
    """The first layer is like no other: it has tensors that the others lack, or lacks some."""

    what: str

    def of(self, layers: Layers) -> Values:
        return [i == 0 for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return f"what only the first layer has ({self.what})" if value else "what the first layer has not"

    def why(self, layers: Layers) -> str:
        return f"the first layer of {layers.architecture} is like no other ({self.what})"


@dataclass(frozen=True)
class Fixed(Rule):
    """Every layer belongs to its place, and their number to the model."""

    what: str
    unless: str = ""  # a key that must have a number above 0 for the rule to hold

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.unless,) if self.unless else ()

    def of(self, layers: Layers) -> Values:
        if self.unless and not layers.integer(self.unless):
            return [None] * layers.count
        return [(i, layers.count) for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return f"place {value[0]} of {value[1]}" if isinstance(value, tuple) else "any place"

    def why(self, layers: Layers) -> str:
        return f"{layers.architecture} cannot have other layers than it has: {self.what}"


@dataclass(frozen=True)
class SharedCache(Numbered):
    """The last layers use keys and values of layers before them: `attention.shared_kv_layers`."""

    number = "attention.shared_kv_layers"

    def of(self, layers: Layers) -> Values:
        shared = layers.integer(self.number) or 0
        own = layers.count - shared
        return [i - own if shared and i >= own - 2 else None for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return "keys and values of its own" if value is None else "keys and values that layers share"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        if not any(value is not None for value in wanted):
            return {layers.key(self.number): 0}
        return None

    def why(self, layers: Layers) -> str:
        return f"the last layers of {layers.architecture} use the keys and values of the two before them"


@dataclass(frozen=True)
class Slope(Rule):
    """Linear attention forgets faster in layers further down (lightning attention), by the layer's place."""

    def of(self, layers: Layers) -> Values:
        return [round(i / max(layers.count - 1, 1), 6) for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return f"linear attention that decays as at {value:.0%} of the depth"

    @property
    def is_minor(self) -> bool:
        return True

    def why(self, layers: Layers) -> str:
        return f"in {layers.architecture} the decay of linear attention follows from the place of the layer"


@dataclass(frozen=True)
class FromCount(Rule):
    """Something follows from the number of layers: {number: what}, and `otherwise` for any other number.

    unless: a key that decides instead when it is there.
    """

    special: tuple[tuple[int, str], ...]
    otherwise: str
    unless: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.unless,) if self.unless else ()

    def of(self, layers: Layers) -> Values:
        if self.unless and layers.key(self.unless) in layers.metadata:
            return [None] * layers.count
        return [dict(self.special).get(layers.main, self.otherwise)] * layers.count

    def said(self, value: Hashable) -> str:
        return f"{value}" if value is not None else "what the metadata say"

    def why(self, layers: Layers) -> str:
        numbers = " and ".join(str(number) for number, _ in self.special)
        return f"llama.cpp knows this by the number of layers, {numbers}, and a file cannot say otherwise"


@dataclass(frozen=True)
class ResidualScale(Numbered):
    """minicpm: what a layer adds is scaled by 1.4 / sqrt(number of layers) unless `residual_scale` says otherwise."""

    number = "residual_scale"

    def of(self, layers: Layers) -> Values:
        given = layers.metadata.get(layers.key(self.number))
        value = float(given) if isinstance(given, int | float) else 1.4 / max(layers.main, 1) ** 0.5
        return [round(value, 6)] * layers.count

    def said(self, value: Hashable) -> str:
        return f"a residual scale of {value}"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        if len(set(wanted)) > 1 or not isinstance(wanted[0], float):
            return None
        return {layers.key(self.number): wanted[0]}

    def why(self, layers: Layers) -> str:
        return f"{layers.architecture} computes {layers.key(self.number)} from the number of layers"


@dataclass(frozen=True)
class FixedResidualScale(ResidualScale):
    """As `ResidualScale`, for a model that has no key for it: what a layer adds changes a little with their number."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def of(self, layers: Layers) -> Values:
        return [round(1.4 / max(layers.main, 1) ** 0.5, 6)] * layers.count

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        return None

    @property
    def is_minor(self) -> bool:
        return True

    def why(self, layers: Layers) -> str:
        return f"llama.cpp computes it from the number of layers of {layers.architecture}, and no key can say otherwise"


@dataclass(frozen=True)
class Listed(Rule):
    """Layers that a list names by their numbers; at most one of them works in llama.cpp."""

    names: str
    what: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.names,)

    def of(self, layers: Layers) -> Values:
        listed = set(layers.values(self.names) or ())
        return [i in listed for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return f"a {self.what}" if value else f"no {self.what}"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        places = [i for i, value in enumerate(wanted) if value]
        return {layers.key(self.names): places} if len(places) == 1 else None

    def why(self, layers: Layers) -> str:
        return f"exactly one layer has a {self.what}, as {layers.key(self.names)} says"


@dataclass(frozen=True)
class OwnIndexer(Rule):
    """Layers that share what another looked up (sparse attention) take it from one before them, so layer 0 has its own:
    `attention.indexer.types`, 1 for a layer with an indexer of its own.
    """

    types = "attention.indexer.types"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.types,)

    def of(self, layers: Layers) -> Values:
        types = layers.values(self.types)
        return [i > 0 or not types or bool(types[0]) for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return "what it needs for sparse attention" if value else "no layer before it whose indexer it could share"

    def why(self, layers: Layers) -> str:
        return f"layer 0 needs an indexer of its own ({layers.key(self.types)})"


@dataclass(frozen=True)
class Pictures(Numbered):
    """The first layers take what the vision encoder adds to them: `n_deepstack_layers`."""

    number = "n_deepstack_layers"

    def of(self, layers: Layers) -> Values:
        count = layers.integer(self.number) or 0
        return [i if i < count else None for i in range(layers.count)]

    def said(self, value: Hashable) -> str:
        return f"input {value} of the vision encoder" if value is not None else "no input of the vision encoder"

    @property
    def is_minor(self) -> bool:
        return True

    def why(self, layers: Layers) -> str:
        return f"the vision encoder feeds the first layers ({layers.key(self.number)})"


@dataclass(frozen=True)
class HeadSize(Numbered):
    """llama.cpp computes the size of heads with the number that layer 0 has, so that one must have some.

    A recurrent layer is known by `head_count_kv`, so what `head_count` says of it does no harm.
    """

    number = "attention.head_count"

    def of(self, layers: Layers) -> Values:
        heads = layers.values(self.number)
        return [bool(heads[0]) if heads else True] * layers.count

    def said(self, value: Hashable) -> str:
        return "heads of a known size" if value else "heads of an unknown size"

    def kept(self, layers: Layers, wanted: Sequence[Hashable]) -> dict[str, Any] | None:
        heads = layers.values(self.number)
        if not all(wanted) or not heads or not any(heads):
            return None
        changes = {layers.key(self.number): [max(heads), *heads[1:]]}
        if layers.values("attention.head_count_kv") is None:  # then it is what head_count was
            changes[layers.key("attention.head_count_kv")] = heads
        return changes

    def why(self, layers: Layers) -> str:
        return f"llama.cpp computes the size of heads with {layers.key(self.number)} of layer 0"


@dataclass(frozen=True)
class Stated(Rule):
    """Layers of two kinds that a value for each of them tells apart, which moves with the layer."""

    key: str
    kind: str
    others: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.key,)

    def of(self, layers: Layers) -> Values:
        """True and False for the kinds, None where the metadata do not say."""
        given = layers.values(self.key)
        return [bool(value) for value in given] if given else [None] * layers.count

    def said(self, value: Hashable) -> str:
        return self.kind if value else self.others

    def why(self, layers: Layers) -> str:
        return f"{layers.key(self.key)} says so for each layer"


@dataclass(frozen=True)
class WithoutCache(Stated):
    """Layers without keys and values are recurrent; with a feed-forward part alone they are neither (Nemotron-H)."""

    feed_forward: bool = False

    def of(self, layers: Layers) -> Values:
        given = layers.values(self.key) or layers.values("attention.head_count")
        wide = (layers.values("feed_forward_length") or []) if self.feed_forward else []
        if not given:
            return [None] * layers.count
        neither = [i < len(wide) and bool(wide[i]) and not value for i, value in enumerate(given)]
        return [None if none else not value for value, none in zip(given, neither, strict=True)]


@dataclass(frozen=True)
class Needed(Rule):
    """llama.cpp keeps a memory for the layers of each kind, and ends with an assertion where none is of that kind.

    kinds: a rule that is True for one kind and False for the other.  both: whether it needs the other as well.
    """

    kinds: Rule
    both: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return self.kinds.reads

    def of(self, layers: Layers) -> Values:
        """What no layer has though llama.cpp needs one, in words; "" where nothing is missing."""
        holds = not isinstance(self.kinds, Window) or self.kinds.holds(layers)
        there = set(self.kinds.of(layers)[: layers.main]) - {None} if holds else set()
        needed = [True, False] if self.both else [True]
        return [next((self.kinds.said(kind) for kind in needed if there and kind not in there), "")] * layers.count

    def said(self, value: Hashable) -> str:
        return f"no layer with {value} beside it" if value else "layers of each kind beside it"

    def why(self, layers: Layers) -> str:
        kinds = [self.kinds.said(True), *([self.kinds.said(False)] if self.both else [])]
        return (
            f"llama.cpp runs {layers.architecture} only with {' and '.join(f'a layer with {kind}' for kind in kinds)}"
        )

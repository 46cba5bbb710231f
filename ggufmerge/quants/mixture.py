"""Which type each tensor of a file gets: llama-quantize's rules, the types of another file, and why.

A file type such as Q4_K_M is not one block format but a mixture: sensitive tensors get more bits, small ones stay as
they are, and rows that are no whole number of blocks fall back to another format. `decide_types` takes these decisions
as llama-quantize of llama.cpp v0.5.0 does (`llama_tensor_get_type` in src/llama-quant.cpp) and says why;
`plan_types` gives the types alone. `types_like` follows another file instead.

Only shapes, types and a few metadata keys are read, so a file that does not exist yet can be planned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from numbers import Integral
from typing import Any, Protocol

from ggufmerge import keys
from ggufmerge.errors import FormatError, GgufmergeError, PlanError
from ggufmerge.patterns import Budget, Pattern, PatternError
from ggufmerge.text import first_few
from ggufmerge.types import FileType, TensorType, block_number, visiting_order

F, T = FileType, TensorType  # the tables below name them often


class TensorHeader(Protocol):
    """What is known of a tensor before its values: shape in numpy order (a row is `shape[-1]` values) and type."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> TensorType: ...


class ModelHeader(Protocol):
    """Metadata and tensor headers of a GGUF file, open or planned."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorHeader]: ...


class Rule(StrEnum):
    """What decided the type of a tensor."""

    KEPT = "kept"  # never quantized: keeps the type it has
    DEFAULT = "default"  # the file type's own tensor type
    MIXTURE = "mixture"  # a rule of the file type for this kind of tensor
    OVERRIDE = "override"  # the user's word
    LIKE = "like"  # as in the file to follow
    FALLBACK = "fallback"  # another type than wanted, because the shape or the file to follow does not allow it


@dataclass(frozen=True)
class Decision:
    """The type of one tensor and how it came about.

    `type` is what the tensor gets, `wanted` what the rules asked for before the shape was looked at, `reason` a phrase
    for people, `needs_imatrix` whether the type gives garbage without an importance matrix.
    """

    type: TensorType
    wanted: TensorType
    rule: Rule
    reason: str
    needs_imatrix: bool = False


def plan_types(
    model: ModelHeader,
    ftype: FileType | str,
    imatrix: Collection[str] | None = None,
    *,
    pure: bool = False,
    tensor_types: Sequence[tuple[str, TensorType | str]] = (),
    output_tensor_type: TensorType | str | None = None,
    token_embedding_type: TensorType | str | None = None,
    leave_output_tensor: bool = False,
    keep_split: bool = False,
) -> dict[str, TensorType]:
    """The type of every tensor of `model` in a file of type `ftype`, exactly as llama-quantize chooses.

    imatrix: an `Imatrix`, or the names of the tensors it covers; None or empty means there is none.
    pure: no mixture, every tensor that can be quantized gets the default type of `ftype`.
    tensor_types: (regular expression, type) pairs; the first that is found in a tensor's name wins, in any case.
    output_tensor_type: for output.weight, and for the token embeddings of a model that has no output.weight.
    token_embedding_type: for the token embeddings.
    leave_output_tensor: output.weight keeps its type.
    keep_split: visit the tensors in file order, as llama-quantize does with --keep-split.

    Raises GgufmergeError for unknown types, bad regular expressions, options that apply to no tensor, types that do not
    fit a shape and have no fallback, and tensors that need an importance matrix and have none.
    """
    decisions = decide_types(
        model,
        ftype,
        imatrix,
        pure=pure,
        tensor_types=tensor_types,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
        keep_split=keep_split,
    )
    changed = [name for name, d in decisions.items() if not imatrix or d.type != model.tensors[name].type]
    require_imatrix(decisions, imatrix, changed)
    return {name: d.type for name, d in decisions.items()}


def decide_types(
    model: ModelHeader,
    ftype: FileType | str,
    imatrix: Collection[str] | None = None,
    *,
    pure: bool = False,
    tensor_types: Sequence[tuple[str, TensorType | str]] = (),
    output_tensor_type: TensorType | str | None = None,
    token_embedding_type: TensorType | str | None = None,
    leave_output_tensor: bool = False,
    keep_split: bool = False,
) -> dict[str, Decision]:
    """As `plan_types`, with the reason of each choice, in the order of `model.tensors`.

    It does not ask for a missing importance matrix, because only the caller knows which tensors will be quantized anew:
    pass those to `require_imatrix`.
    """
    target = FileType.parse(ftype)
    if target is F.NVFP4:
        raise GgufmergeError("NVFP4 files can be read but not written: llama-quantize has no NVFP4 file type either")
    budget = Budget()
    chooser = _Chooser(
        _ModelFacts.of(model),
        target,
        has_imatrix=bool(imatrix),
        pure=pure,
        overrides=[(pattern, _compile(pattern, budget), _parse_type(t)) for pattern, t in tensor_types],
        output_type=None if output_tensor_type is None else _parse_type(output_tensor_type),
        embedding_type=None if token_embedding_type is None else _parse_type(token_embedding_type),
        leave_output=leave_output_tensor,
    )
    order = list(model.tensors) if keep_split else sorted(model.tensors, key=visiting_order)
    decided = {name: chooser.decide(name, model.tensors[name]) for name in order}
    chooser.complain_of_unused_options()
    return {name: decided[name] for name in model.tensors}


def types_like(model: ModelHeader, other: ModelHeader) -> dict[str, Decision]:
    """The types that the tensors of the same names have in `other`.

    A tensor that `other` lacks, or whose rows are no whole number of the blocks it has there, gets what the file type
    of `other` (its `general.file_type`, else the one its tensors suggest) would give it; the decision says so.
    """
    ftype = guess_file_type({name: t.type for name, t in other.tensors.items()}, other)
    substitutes = decide_types(model, F.F16 if ftype is F.NVFP4 else ftype)
    return {name: _like(name, t, other, ftype, substitutes[name]) for name, t in model.tensors.items()}


def require_imatrix(
    decisions: Mapping[str, Decision], imatrix: Collection[str] | None, names: Iterable[str] | None = None
) -> None:
    """Raises PlanError when tensors among `names` (default: all) need an importance matrix that `imatrix` lacks.

    The types are those llama-quantize refuses to write without one: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, and
    Q2_K in a Q2_K_S file (`tensor_requires_imatrix`).
    """
    covered: Collection[str] = imatrix or ()
    lacking = [n for n in (decisions if names is None else names) if decisions[n].needs_imatrix and n not in covered]
    if not lacking:
        return
    types = sorted({str(decisions[n].type) for n in lacking})
    shown = first_few(lacking, 3)
    remedy = "give one with --imatrix FILE"
    if imatrix:
        remedy = "use an importance matrix that was collected for this model"
    raise PlanError(
        f"{', '.join(types)} cannot be written without an importance matrix, which is missing for {shown}: "
        f"{remedy}, or choose a wider type"
    )


def needs_imatrix(name: str, type: TensorType, ftype: FileType | None = None) -> bool:  # noqa: A002
    """Whether llama-quantize refuses to quantize `name` to `type`, in a file of type `ftype`, without an imatrix."""
    if name in _TOKEN_EMBEDDINGS or name == keys.HEAD:
        return False
    return type in _IMATRIX_TYPES or (type is T.Q2_K and ftype is F.Q2_K_S)


def guess_file_type(types: Mapping[str, TensorType], base: ModelHeader | None = None) -> FileType:
    """The file type (`general.file_type`) that describes tensors of these types best.

    With `base`, a file whose tensors have exactly these types, its declared file type. Otherwise `FileType.of`.
    """
    same = base is not None and {name: t.type for name, t in base.tensors.items()} == dict(types)
    declared = base.metadata.get(keys.FILE_TYPE) if base is not None and same else None
    return FileType.describing(types, declared) or FileType.F32


def parse_tensor_type(text: str) -> tuple[str, TensorType]:
    """The pair that an option such as ``--tensor-type "ffn_down=Q6_K"`` means: a regular expression and a type.

    GgufmergeError says which half is missing or wrong.
    """
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern or not name:
        raise GgufmergeError(f'tensor type "{text}": write it as NAME=TYPE, for example ffn_down=Q6_K')
    _compile(pattern)
    return pattern, _parse_type(name)


def fallback_type(wanted: TensorType, n: int) -> TensorType:
    """The type that rows of `n` values get when `wanted` is asked for: itself, or llama-quantize's fallback.

    FormatError when a row is no whole number of blocks and llama-quantize knows no fallback (NVFP4, Q1_0).
    """
    if n % wanted.block_size == 0:
        return wanted
    if wanted.block_size > 32 and wanted not in _FALLBACK:
        raise FormatError(
            f"{wanted} needs rows of a multiple of {wanted.block_size} values, these have {n}, and there is no fallback"
        )
    substitute = _FALLBACK.get(wanted, wanted)
    return substitute if n % substitute.block_size == 0 else T.F16


_TOKEN_EMBEDDINGS = (keys.EMBEDDING, keys.PER_LAYER_EMBEDDING)

_IMATRIX_TYPES = frozenset({T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS})

# `tensor_type_fallback`: the 32-value format nearest in size to a format of longer blocks.
_FALLBACK = {
    **dict.fromkeys((T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL),
    **dict.fromkeys((T.Q2_0, T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0),
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}

_SMALL_RWKV = (
    "first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2", "lerp_fused",
)  # fmt: skip
# `tensor_allows_quantization`: parts of the names of weights that are small, sensitive or not multiplied as matrices.
_NEVER_QUANTIZED = {
    "norm": ("_norm.weight",),
    "expert router": ("ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"),
    "small projection": ("altup", "laurel", "per_layer_model_proj", "indexer.k_proj.weight", "indexer.q_proj.weight"),
    "short convolution": ("ssm_conv1d", "shortconv.conv.weight"),
    "relative position bias": ("attn_rel_b.weight",),
    "small RWKV weight": tuple(f"time_mix_{part}.weight" for part in _SMALL_RWKV),
    "position or patch embedding": (".position_embd", "sam.pos_embd", ".rel_pos", ".patch_embd", ".patch_merger"),
    "vision neck": ("sam.neck.", "sam.net_"),
    "audio codebook": ("a.rvq.codebook", "mm.a.code_embd"),
}
_NEVER_QUANTIZED_GLM5_NEXT = (
    "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
    "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight",
    "attn_k_b.weight", "attn_v_b.weight",
)  # fmt: skip

_LOW_IQ = frozenset({F.IQ1_S, F.IQ1_M, F.IQ2_XXS, F.IQ2_XS, F.IQ2_S, F.IQ2_M})
_IQ2_S_OR_M = (F.IQ2_S, F.IQ2_M)

_EMBEDDINGS = {
    **dict.fromkeys((F.IQ1_S, F.IQ1_M, F.IQ2_XXS, F.IQ2_XS), T.Q2_K),
    **dict.fromkeys((F.IQ2_S, F.IQ2_M, F.IQ3_XXS), T.IQ3_S),
    **dict.fromkeys((F.TQ1_0, F.TQ2_0, F.Q2_0), T.Q4_K),
}
# Grouped-query attention with 4 or more query heads to a value head makes attn_v small, so more bits are cheap.
_VALUES_OF_MANY_QUERIES = {
    **dict.fromkeys((F.Q2_K, F.Q2_K_S, F.IQ3_XXS, F.IQ3_XS, F.IQ3_S), T.Q4_K),
    **dict.fromkeys((F.IQ4_NL, F.IQ4_XS), T.Q5_K),
}
_VALUES = {F.Q2_K: T.Q3_K, F.IQ3_M: T.Q4_K, F.Q3_K_L: T.Q5_K}
_QUERIES_AND_KEYS = {F.IQ3_XS: T.IQ3_XXS, F.IQ3_XXS: T.IQ2_S}

_DOWN = {F.Q2_K: T.Q3_K, F.Q3_K_M: T.Q4_K, F.Q3_K_L: T.Q5_K}
_DOWN_FIRST_EIGHTH = {F.Q2_K_S: T.Q4_K, F.IQ3_M: T.Q4_K, F.Q4_K_S: T.Q5_K}
_DOWN_FIRST_EIGHTH_WITHOUT_IMATRIX = {F.IQ3_XXS: T.Q4_K, F.IQ4_NL: T.Q5_K, F.IQ4_XS: T.Q5_K}
_DOWN_FIRST_EIGHTH_WITH_IMATRIX = {F.Q4_0: T.Q4_1, F.Q5_0: T.Q5_1}
_DOWN_MORE_BITS = {F.Q4_K_M: T.Q6_K, F.Q5_K_M: T.Q6_K}

_ATTENTION_OUTPUT = {F.Q2_K: T.Q3_K, F.IQ3_XXS: T.IQ3_S, F.Q3_K_M: T.Q4_K, F.Q3_K_L: T.Q5_K, F.IQ3_M: T.Q4_K}
_ATTENTION_OUTPUT_Q5_K_OF_8_EXPERTS = frozenset(
    {F.Q2_K, F.IQ3_XS, F.IQ3_XXS, F.Q3_K_S, F.Q3_K_M, F.IQ4_NL, F.Q4_K_S, F.Q4_K_M, F.IQ3_S, F.IQ3_M, F.IQ4_XS}
)


# What llama.cpp calls a file most of whose tensors have this type.
class _Role(Enum):
    OUTPUT = auto()
    EMBEDDING = auto()
    VALUE = auto()
    KEY = auto()
    QUERY = auto()
    ATTENTION_OUTPUT = auto()
    UP = auto()
    GATE = auto()
    DOWN = auto()
    OTHER = auto()


# `tensor_get_category`, in the order of its tests; fused matrices that hold the values count as values.
_ROLES = (
    ("attn_qkv.weight", _Role.VALUE),
    ("attn_kv_b.weight", _Role.VALUE),
    ("attn_v.weight", _Role.VALUE),
    ("attn_k.weight", _Role.KEY),
    ("attn_q.weight", _Role.QUERY),
    ("attn_output.weight", _Role.ATTENTION_OUTPUT),
    ("ffn_up", _Role.UP),
    ("ffn_gate", _Role.GATE),
    ("ffn_down", _Role.DOWN),
)


def _role(name: str) -> _Role:
    if name == keys.HEAD:
        return _Role.OUTPUT
    if name in _TOKEN_EMBEDDINGS:
        return _Role.EMBEDDING
    return next((role for part, role in _ROLES if part in name), _Role.OTHER)


@dataclass(frozen=True)
class _ModelFacts:
    """What the rules know of a model beside the tensor at hand."""

    architecture: str
    n_layer: int  # MTP blocks included
    n_expert: int
    queries_per_value: int  # n_head / n_head_kv of layer 0; 0 when that layer has no attention
    n_values: int
    is_tied: bool  # the token embeddings serve as the output matrix
    is_70b: bool

    @staticmethod
    def of(model: ModelHeader) -> _ModelFacts:
        meta = model.metadata
        arch = meta.get(keys.ARCHITECTURE, "")
        arch = arch if isinstance(arch, str) else ""
        required = keys.block_count(arch) if arch else keys.ARCHITECTURE
        if required not in meta and arch != "clip":  # vision encoders of llama.cpp count no blocks
            is_other = model.tensors and not any("blk." in name for name in model.tensors)
            if arch and is_other and keys.TOKENS not in meta:
                todo = "use the tools of the program that runs it (ComfyUI-GGUF, stable-diffusion.cpp)"
                raise PlanError(f"{arch} is no language model, so types cannot be chosen layer by layer: {todo}")
            raise PlanError(f'the metadata lack "{required}", so types cannot be chosen layer by layer')

        def number(key: str, default: int = 0) -> int:
            """A value of the whole model, or of its first layer when there is one for each."""
            value = meta.get(keys.of(arch, key), default)
            is_list = isinstance(value, Iterable) and not isinstance(value, str)
            first = next(iter(value), default) if is_list else value
            if not isinstance(first, Integral) or isinstance(first, bool):
                raise PlanError(f'"{arch}.{key}" in the metadata is {value!r:.60}, not a whole number')
            return int(first)

        blocks = number("block_count")
        n_head = number("attention.head_count")
        n_head_kv = number("attention.head_count_kv", n_head)
        # llama.cpp counts layers that these two architectures compute without storing them.
        n_layer = {"nanbeige": blocks * number("num_loops", 1), "graniteswitch": blocks + 1}.get(arch, blocks)
        depth = blocks - number("nextn_predict_layers")
        return _ModelFacts(
            architecture=arch,
            n_layer=n_layer,
            n_expert=number("expert_count"),
            queries_per_value=n_head // n_head_kv if n_head_kv else 0,
            n_values=sum(_role(name) is _Role.VALUE for name in model.tensors),
            is_tied=keys.HEAD not in model.tensors,
            is_70b=(arch in ("qwen2", "deci", "olmo") and depth == 80)
            or (arch == "jais2" and depth == 68)
            or (arch == "llama" and depth == 80 and n_head != n_head_kv),
        )


_Choice = tuple[TensorType, str] | None


class _Chooser:
    """Decides tensor by tensor, in llama-quantize's order, because some rules count the tensors seen so far."""

    def __init__(
        self,
        facts: _ModelFacts,
        ftype: FileType,
        *,
        has_imatrix: bool,
        pure: bool,
        overrides: Sequence[tuple[str, Pattern, TensorType]],
        output_type: TensorType | None,
        embedding_type: TensorType | None,
        leave_output: bool,
    ) -> None:
        self.facts, self.ftype, self.has_imatrix, self.pure = facts, ftype, has_imatrix, pure
        self.overrides = overrides
        self.output_type, self.embedding_type, self.leave_output = output_type, embedding_type, leave_output
        self.seen: Counter[_Role] = Counter()
        self.used: set[str] = set()

    def decide(self, name: str, tensor: TensorHeader) -> Decision:
        kept = self._why_kept(name, tensor)
        if kept:
            return Decision(tensor.type, tensor.type, Rule.KEPT, kept)
        decision = self._decide_quantizable(name, tensor)
        return replace(decision, needs_imatrix=needs_imatrix(name, decision.type, self.ftype))

    def complain_of_unused_options(self) -> None:
        options = [
            ("--output-tensor-type", self.output_type is not None),
            ("--token-embedding-type", self.embedding_type is not None),
            ("--leave-output-tensor", self.leave_output),
            *((f'tensor type "{pattern}"', True) for pattern, _, _ in self.overrides),
        ]
        unused = [option for option, given in options if given and option not in self.used]
        if unused == ["--leave-output-tensor"] and self.facts.is_tied:
            raise PlanError(
                "--leave-output-tensor: this model has no output.weight, its token embeddings are the output; "
                "--token-embedding-type sets their type"
            )
        if unused:
            raise PlanError(f"{', '.join(unused)} applies to no tensor of this model in a {self.ftype} file")

    def _why_kept(self, name: str, tensor: TensorHeader) -> str | None:
        """Why llama-quantize never quantizes this tensor, or None (`tensor_allows_quantization`)."""
        if _n_dims(tensor.shape) < 2:
            return "fewer than two dimensions"
        if not name.endswith("weight"):
            return "not a weight"
        if name == keys.HEAD and self.leave_output:
            self.used.add("--leave-output-tensor")
            return "output.weight is left as it is"
        if name in ("position_embd.weight", "token_types.weight"):
            return "position or token type embedding"
        for what, parts in _NEVER_QUANTIZED.items():
            if any(part in name for part in parts):
                return what
        if self.facts.architecture == "glm5-next" and any(part in name for part in _NEVER_QUANTIZED_GLM5_NEXT):
            return "small glm5-next weight"
        return None

    def _decide_quantizable(self, name: str, tensor: TensorHeader) -> Decision:
        role, n = _role(name), tensor.shape[-1]
        override = self._override(name)
        # The per-layer embeddings of Gemma 3n are a table of their own, which an override may name.
        may_name = override is not None and name == keys.PER_LAYER_EMBEDDING
        if role is _Role.EMBEDDING and self.embedding_type and not may_name:
            self.used.add("--token-embedding-type")
            return _demanded(name, self.embedding_type, n, "token_embedding_type")
        if role is _Role.OUTPUT and self.output_type:
            self.used.add("--output-tensor-type")
            return _demanded(name, self.output_type, n, "output_tensor_type")

        default = self.ftype.default
        wanted, rule, reason = default, Rule.DEFAULT, f"default of {self.ftype}"
        if default.is_quantized:
            if override is not None:
                wanted, rule, reason = override[1], Rule.OVERRIDE, f'tensor type "{override[0]}"'
            elif not self.pure:
                choice = self._mixture(name, role, tensor)
                if choice is not None:
                    wanted, reason = choice
                    rule = Rule.OVERRIDE if reason == "output_tensor_type" else Rule.MIXTURE
        return _fitted(name, wanted, n, rule, reason)

    def _override(self, name: str) -> tuple[str, TensorType] | None:
        """The first override whose pattern is found in the name; llama-quantize has none for float files."""
        if not self.ftype.default.is_quantized:
            return None
        found = [(pattern, t) for pattern, regex, t in self.overrides if regex.search(name)]
        self.used.update(f'tensor type "{pattern}"' for pattern, _ in found)
        return found[0] if found else None

    # A method per role gives a type and its reason, or None for the default (`llama_tensor_get_type_impl`).

    def _mixture(self, name: str, role: _Role, tensor: TensorHeader) -> _Choice:
        facts, ftype = self.facts, self.ftype
        if facts.architecture == "glm5-next" and any(p in name for p in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
            return T.Q8_0, "glm5-next keeps 8 bits here"
        if role is _Role.OUTPUT or (role is _Role.EMBEDDING and facts.is_tied):
            return self._output(tensor)
        if ftype is F.MXFP4_MOE:
            is_ffn = role in (_Role.UP, _Role.GATE, _Role.DOWN)
            # MLA projections of bailingmoe3 are stacked like experts but are none.
            if _ne2(tensor.shape) > 1 and (is_ffn or facts.architecture != "bailingmoe3"):
                return None
            return T.Q8_0, "not a stack of experts"
        if role is _Role.EMBEDDING:
            return (_EMBEDDINGS[ftype], "token embeddings") if ftype in _EMBEDDINGS else None
        if ftype in _LOW_IQ:
            return self._low_iq(role)
        if role is _Role.VALUE:
            return self._value()
        if role is _Role.KEY and facts.n_expert == 8:
            return T.Q8_0, "attention keys of 8 experts"
        if role in (_Role.KEY, _Role.QUERY):
            return (_QUERIES_AND_KEYS[ftype], "attention queries and keys") if ftype in _QUERIES_AND_KEYS else None
        if role is _Role.DOWN:
            return self._down(name)
        if role is _Role.ATTENTION_OUTPUT:
            return self._attention_output()
        if role in (_Role.GATE, _Role.UP):
            return self._gate_or_up(name, role)
        return None

    def _output(self, tensor: TensorHeader) -> _Choice:
        what = "output" if not self.facts.is_tied else "token embeddings that are also the output"
        if self.output_type is not None:
            self.used.add("--output-tensor-type")
            return self.output_type, "output_tensor_type"
        if self.ftype is F.MXFP4_MOE or self.facts.architecture == "falcon":
            return T.Q8_0, what
        if tensor.shape[-1] % self.ftype.default.block_size:
            return T.Q8_0, f"{what}, in rows that {self.ftype.default} does not fit"
        if self.ftype in _LOW_IQ or self.ftype is F.IQ3_XXS:
            return T.Q5_K, what
        return None if self.ftype.default is T.Q8_0 else (T.Q6_K, what)

    def _low_iq(self, role: _Role) -> _Choice:
        facts, ftype = self.facts, self.ftype
        bumped = T.IQ3_S if ftype in _IQ2_S_OR_M else T.Q2_K
        i = self._next(role)
        if role is _Role.VALUE:
            is_small = facts.queries_per_value >= 4 or facts.n_expert >= 4
            return T.Q4_K if is_small else bumped, "attention values"
        if role is _Role.KEY and facts.n_expert == 8:
            return T.Q4_K, "attention keys of 8 experts"
        if role is _Role.DOWN and i < facts.n_layer // 8:
            return bumped, "ffn_down of the first eighth of the layers"
        if role is _Role.ATTENTION_OUTPUT:
            if facts.n_expert == 8:
                return T.Q5_K, "attention output of 8 experts"
            if ftype in _IQ2_S_OR_M:
                return T.IQ3_S, "attention output"
            if ftype in (F.IQ1_S, F.IQ1_M):
                return T.IQ2_XXS, "attention output"
        return None

    def _value(self) -> _Choice:
        facts, ftype = self.facts, self.ftype
        choice: _Choice = None
        i = self._next(_Role.VALUE)
        if facts.queries_per_value >= 4 and ftype in _VALUES_OF_MANY_QUERIES:
            choice = _VALUES_OF_MANY_QUERIES[ftype], "attention values, shared by 4 or more query heads"
        elif ftype in _VALUES:
            choice = _VALUES[ftype], "attention values"
        elif ftype is F.IQ3_XXS and not self.has_imatrix:
            choice = T.IQ3_S, "attention values without an importance matrix"
        elif ftype is F.Q3_K_M:
            choice = (T.Q5_K, "attention values of the first two layers") if i < 2 else (T.Q4_K, "attention values")
        elif ftype in (F.Q4_K_M, F.Q5_K_M) and _use_more_bits(i, facts.n_values):
            choice = T.Q6_K, f"attention values, {_MORE_BITS}"
        elif ftype is F.Q4_K_S and i < 4:
            choice = T.Q5_K, "attention values of the first four layers"
        if facts.is_70b and (choice[0] if choice else ftype.default) in (T.Q3_K, T.Q4_K):
            choice = T.Q5_K, "attention values of a 70B model"
        if facts.n_expert == 8:
            choice = T.Q8_0, "attention values of 8 experts"
        return choice

    def _down(self, name: str) -> _Choice:
        facts, ftype = self.facts, self.ftype
        i, n = self._layer(name, _Role.DOWN), facts.n_layer
        if facts.architecture == "falcon" and ftype in (F.Q3_K_M, F.Q3_K_L, F.Q4_K_M, F.Q4_K_S):
            return self._down_of_falcon(i)
        if ftype is F.Q3_K_M and i < n // 16:
            return T.Q5_K, "ffn_down of the first sixteenth of the layers"
        if i < n // 8:
            with_or_without = (
                _DOWN_FIRST_EIGHTH_WITH_IMATRIX if self.has_imatrix else _DOWN_FIRST_EIGHTH_WITHOUT_IMATRIX
            )
            first = _DOWN_FIRST_EIGHTH | with_or_without
            if ftype in first:
                return first[ftype], "ffn_down of the first eighth of the layers"
        if ftype is F.IQ3_XXS and not self.has_imatrix:
            return T.Q3_K, "ffn_down without an importance matrix"
        if _use_more_bits(i, n):
            if ftype in _DOWN_MORE_BITS:
                return _DOWN_MORE_BITS[ftype], f"ffn_down, {_MORE_BITS}"
            if ftype is F.IQ3_M and facts.n_expert == 8:
                return T.Q4_K, f"ffn_down of 8 experts, {_MORE_BITS}"
        return (_DOWN[ftype], "ffn_down") if ftype in _DOWN else None

    def _down_of_falcon(self, i: int) -> _Choice:
        n = self.facts.n_layer
        if self.ftype is F.Q3_K_L:
            return T.Q4_K, "ffn_down"
        first, more = {F.Q3_K_M: (T.Q5_K, T.Q4_K), F.Q4_K_M: (T.Q6_K, T.Q5_K)}.get(self.ftype, (None, None))
        if first is not None and i < n // 16:
            return first, "ffn_down of the first sixteenth of the layers"
        return (more, f"ffn_down, {_MORE_BITS}") if more is not None and _use_more_bits(i, n) else None

    def _attention_output(self) -> _Choice:
        ftype = self.ftype
        if self.facts.architecture == "falcon":
            return (T.Q4_K, "attention output") if ftype is F.Q3_K_L else None
        if self.facts.n_expert == 8:
            return (T.Q5_K, "attention output of 8 experts") if ftype in _ATTENTION_OUTPUT_Q5_K_OF_8_EXPERTS else None
        return (_ATTENTION_OUTPUT[ftype], "attention output") if ftype in _ATTENTION_OUTPUT else None

    def _gate_or_up(self, name: str, role: _Role) -> _Choice:
        i, n = self._layer(name, role), self.facts.n_layer
        if self.ftype is F.IQ3_XS and n // 8 <= i < 7 * n // 8:
            return T.IQ3_XXS, "ffn_gate and ffn_up of the middle layers"
        return None

    def _layer(self, name: str, role: _Role) -> int:
        """Which layer a feed-forward tensor counts as: the tensors of this role so far, or in a mixture of experts,
        where a layer can have several, the number in its name.
        """
        i = self._next(role)
        if self.facts.n_expert <= 1:
            return i
        layer = block_number(name)
        if not 0 <= layer < self.facts.n_layer:
            raise PlanError(
                f"{name} does not belong to one of the {self.facts.n_layer} layers that the metadata count "
                f"({keys.block_count(self.facts.architecture)})"
            )
        return layer

    def _next(self, role: _Role) -> int:
        """The index of this tensor among those of its role."""
        self.seen[role] += 1
        return self.seen[role] - 1


_MORE_BITS = "in the first and last eighth and every third layer"


def _use_more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _fitted(name: str, wanted: TensorType, n: int, rule: Rule, reason: str) -> Decision:
    """The decision for `wanted`, or for its fallback when rows of `n` values are no whole number of its blocks."""
    try:
        fitting = fallback_type(wanted, n)
    except FormatError as e:
        raise PlanError(f"{name}: {e}; choose another type for it with --tensor-type") from None
    if fitting is wanted:
        return Decision(wanted, wanted, rule, reason)
    why = (
        f"{reason}; rows of {n} values do not fill blocks of {wanted.block_size}, so a weight takes "
        f"{fitting.bits_per_weight:.4g} bits instead of {wanted.bits_per_weight:.4g}"
    )
    return Decision(fitting, wanted, Rule.FALLBACK, why)


def _demanded(name: str, wanted: TensorType, n: int, option: str) -> Decision:
    """The decision for a type that the user demands of one tensor, for which llama-quantize has no fallback."""
    if n % wanted.block_size:
        raise PlanError(
            f"{option}={wanted} does not fit {name}: {n} values in a row are not a multiple of {wanted.block_size}; "
            f"{fallback_type(wanted, n)} would fit"
        )
    return Decision(wanted, wanted, Rule.OVERRIDE, option)


def _like(name: str, tensor: TensorHeader, other: ModelHeader, ftype: FileType, substitute: Decision) -> Decision:
    if name not in other.tensors:
        why = f"the file to follow lacks it; {substitute.reason}"
        kept = substitute.rule is Rule.KEPT
        return replace(substitute, rule=Rule.KEPT if kept else Rule.FALLBACK, reason=why)
    wanted, n = other.tensors[name].type, tensor.shape[-1] if tensor.shape else 1
    if _is_number(tensor.type) != _is_number(wanted):
        return Decision(tensor.type, wanted, Rule.FALLBACK, f"{tensor.type} values cannot be stored as {wanted}")
    if n % wanted.block_size:
        why = f"{wanted} in the file to follow, but {n} values in a row are not a multiple of {wanted.block_size}"
        return replace(substitute, wanted=wanted, rule=Rule.FALLBACK, reason=f"{why}; {substitute.reason}")
    return Decision(wanted, wanted, Rule.LIKE, "as in the file to follow", needs_imatrix(name, wanted, ftype))


def _parse_type(name: TensorType | str) -> TensorType:
    """A type that a user may ask for; GgufmergeError for unknown ones and those that weights are not stored in."""
    kind = TensorType.parse(name)
    if not (kind.is_float or kind.is_quantized) or kind in (T.Q8_1, T.Q8_K):
        raise GgufmergeError(f"{kind} is not a type for weights; choose a float or a block format such as Q8_0")
    return kind


def _is_number(type: TensorType) -> bool:  # noqa: A002
    """Whether the values are real numbers, not indices."""
    return type not in (T.I8, T.I16, T.I32, T.I64)


def _compile(pattern: str, budget: Budget | None = None) -> Pattern:
    """Case is ignored, because llama-quantize turns the patterns into the lower case that tensor names have."""
    try:
        return Pattern(pattern, re.IGNORECASE, budget)
    except PatternError as error:
        raise GgufmergeError(f"tensor type {error}") from None


def _n_dims(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: outer ones of size 1 do not count."""
    return next((len(shape) - i for i, n in enumerate(shape) if n > 1), 1)


def _ne2(shape: tuple[int, ...]) -> int:
    return shape[-3] if len(shape) >= 3 else 1

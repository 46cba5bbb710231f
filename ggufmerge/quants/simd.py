"""Short fixed-length vectors inside kernels, for block formats that LLVM's loop vectorizer leaves scalar.

LLVM unrolls a loop over the 16 or 32 values of a block before it tries to vectorize it. A kernel that says what it
means in vectors (`store(out, y, convert(load(raw, x, 16) & 15, np.float32) * d)`) becomes a handful of instructions on
any processor: LLVM splits a vector into whatever registers there are. Elements are independent, nothing is
reassociated or contracted, so results have the bits of the scalar loop.

Vectors combine with vectors of their type and with scalars (cast to the element type) by + - * / // & | ^ << >> and
comparisons; comparisons give masks for `select`, masks combine by & |. Integers wrap around; // is for unsigned ones.
Without a compiler (NUMBA_DISABLE_JIT=1) vectors are numpy arrays and the same kernels run as they are.

`load` and `store` address the memory of a one-dimensional array and check bounds only with NUMBA_BOUNDSCHECK=1. Kernels
import functions by name: numba takes `simd.view(...)` for a method of arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

INTERPRETED = bool(config.DISABLE_JIT)  # type: ignore[attr-defined]


class Vector(types.Type):
    """Numba's type of `length` elements of `dtype` in registers."""

    def __init__(self, dtype: Any, length: int):
        self.dtype, self.length = dtype, length
        super().__init__(name=f"Vector({dtype}, {length})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _llvm(vector))


def _vectors(interpreted: Callable) -> Callable:
    """Decorate an intrinsic's typing function: in interpreted mode `interpreted`, on numpy arrays, takes its place."""
    return lambda typing: interpreted if INTERPRETED else intrinsic(typing)


def _check_slice(array, index, length):
    if not 0 <= index <= array.size - length:
        raise IndexError(f"{length} elements at {index} of {array.size}")


def _load_slice(array, index, length):
    _check_slice(array, index, length)
    return array[index : index + length].copy()


@_vectors(_load_slice)
def load(context, array, index, length):
    """Vector of array[index : index + length]; length is a literal."""
    if not isinstance(length, types.IntegerLiteral):
        return None
    vector = Vector(array.dtype, length.literal_value)

    def emit(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args), align=1)

    return vector(array, types.intp, length), emit


def _store_slice(array, index, vector):
    _check_slice(array, index, vector.size)
    array[index : index + vector.size] = vector


@_vectors(_store_slice)
def store(context, array, index, vector):
    """array[index : index + length] = vector."""

    def emit(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args), align=1)

    return types.void(array, types.intp, Vector(array.dtype, vector.length)), emit


@_vectors(lambda scalar, length: np.repeat(scalar, length))
def splat(context, scalar, length):
    """Vector of `length` (a literal) equal elements."""
    if not isinstance(length, types.IntegerLiteral):
        return None
    vector = Vector(scalar, length.literal_value)
    return vector(scalar, length), lambda context, builder, signature, args: _splat(builder, args[0], vector)


@_vectors(lambda dtype, length: np.arange(length, dtype=dtype))
def indices(context, dtype, length):
    """Vector of 0, 1, ... length - 1 of an integer type; length is a literal."""
    if not isinstance(length, types.IntegerLiteral):
        return None
    vector = Vector(dtype.instance_type, length.literal_value)
    constant = ir.Constant(_llvm(vector), list(range(vector.length)))
    return vector(dtype, length), lambda context, builder, signature, args: constant


@_vectors(lambda vector, times: np.repeat(vector, times))
def repeat(context, vector, times):
    """Vector that has each element `times` (a literal) times in a row."""
    if not isinstance(times, types.IntegerLiteral):
        return None
    order = np.repeat(np.arange(vector.length), times.literal_value).tolist()
    result = Vector(vector.dtype, len(order))
    return result(vector, times), lambda context, builder, signature, args: _shuffle(builder, args[0], order)


@_vectors(lambda vector, dtype: vector.astype(dtype))
def convert(context, vector, dtype):
    """Elements converted to a numpy scalar type. Floats convert to integers by truncation and must be in range."""
    source, target = vector.dtype, dtype.instance_type

    def emit(context, builder, signature, args):
        to = _llvm(signature.return_type)
        if source is types.float32:
            return (builder.fptosi if target.signed else builder.fptoui)(args[0], to)
        if target is types.float32:
            return (builder.sitofp if _signed(source) else builder.uitofp)(args[0], to)
        if _bits(target) <= _bits(source):
            return args[0] if _bits(target) == _bits(source) else builder.trunc(args[0], to)
        return (builder.sext if _signed(source) else builder.zext)(args[0], to)

    return Vector(target, vector.length)(vector, dtype), emit


@_vectors(lambda vector, dtype: vector.view(dtype))
def view(context, vector, dtype):
    """The same bytes, lowest first, as elements of another type."""
    element = dtype.instance_type
    target = Vector(element, vector.length * _bits(vector.dtype) // _bits(element))
    return target(vector, dtype), lambda context, builder, signature, args: builder.bitcast(args[0], _llvm(target))


@_vectors(lambda mask, a, b: np.where(mask, a, b))
def select(context, mask, a, b):
    """Elements of `a` where the mask is set, else of `b`; one of the two may be a scalar."""
    vector = a if isinstance(a, Vector) else b
    sides = [s if isinstance(s, Vector) else vector.dtype for s in (a, b)]

    def emit(context, builder, signature, args):
        a, b = (
            v if isinstance(s, Vector) else _splat(builder, v, vector)
            for s, v in zip(signature.args[1:], args[1:], strict=True)
        )
        return builder.select(args[0], a, b)

    return vector(mask, *sides), emit


def _elementwise(name: str) -> Callable:
    """Typing function of an LLVM intrinsic that takes and gives a float vector."""

    def typing(context, vector):
        def emit(context, builder, signature, args):
            kind = _llvm(vector)
            callee = f"llvm.{name}.v{vector.length}f32"
            function = builder.module.globals.get(callee) or ir.Function(
                builder.module, ir.FunctionType(kind, [kind]), callee
            )
            return builder.call(function, args)

        return vector(vector), emit

    return typing


def _interpreted_round(vector):
    below_half = np.nextafter(np.float32(0.5), np.float32(0))  # 0.5 would carry 0.49999997 over
    return np.trunc(vector + np.copysign(below_half, vector))


absolute: Any = _vectors(np.abs)(_elementwise("fabs"))
square_root: Any = _vectors(np.sqrt)(_elementwise("sqrt"))
truncate: Any = _vectors(np.trunc)(_elementwise("trunc"))
round_half_even: Any = _vectors(np.rint)(_elementwise("rint"))
round_half_away: Any = _vectors(_interpreted_round)(_elementwise("round"))  # C's roundf


@_vectors(lambda vector: vector.max())
def largest(context, vector):
    """The largest element of a vector without NaN whose length is a power of two."""

    def emit(context, builder, signature, args):
        value, width = args[0], vector.length
        while width > 1:
            width //= 2
            low, high = (_shuffle(builder, value, range(start, start + width)) for start in (0, width))
            value = builder.select(_compare(builder, vector.dtype, ">", low, high), low, high)
        return builder.extract_element(value, _index(0))

    return vector.dtype(vector), emit


@_vectors(lambda mask: mask.any())
def any_set(context, mask):
    """Whether some element of a mask is set."""

    def emit(context, builder, signature, args):
        bits = ir.IntType(mask.length)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(mask), emit


@_vectors(lambda mask: np.argmax(mask) if mask.any() else mask.size - 1)
def first(context, mask):
    """Index of the first set element of a mask, or the last index when none is set."""

    def emit(context, builder, signature, args):
        bits = ir.IntType(mask.length)
        # the highest bit stands in for a missing one
        highest = ir.Constant(bits, 1 << (mask.length - 1))
        found = builder.or_(builder.bitcast(args[0], bits), highest)
        count = builder.cttz(found, ir.Constant(ir.IntType(1), 1))
        wide = ir.IntType(64)
        return count if bits == wide else (builder.zext if mask.length < 64 else builder.trunc)(count, wide)

    return types.int64(mask), emit


@_vectors(lambda mask: np.packbits(mask, bitorder="little"))
def mask_bytes(context, mask):
    """Vector of uint8 that holds the mask's bits, eight to a byte, the first in the lowest place."""
    result = Vector(types.uint8, mask.length // 8)
    return result(mask), lambda context, builder, signature, args: builder.bitcast(args[0], _llvm(result))


@_vectors(lambda vector: np.unpackbits(vector, bitorder="little").astype(bool))
def bit_mask(context, vector):
    """Mask of the bits of a uint8 vector, the lowest of the first byte first."""
    result = Vector(types.boolean, vector.length * 8)
    return result(vector), lambda context, builder, signature, args: builder.bitcast(args[0], _llvm(result))


@_vectors(lambda table, index: table[index & 7])
def pick(context, table, index):
    """table[index & 7] for each element of an int32 vector of 16; `table` is a float vector of 8."""

    def emit(context, builder, signature, args):
        table, index = args
        if _processor_has("avx512f"):
            twice = _shuffle(builder, table, [*range(8), *range(8)])
            return _call(builder, "llvm.x86.avx512.permvar.sf.512", twice, index)
        if _processor_has("avx2"):
            halves = (_shuffle(builder, index, range(start, start + 8)) for start in (0, 8))
            a, b = (_call(builder, "llvm.x86.avx2.permps", table, half) for half in halves)
            order = ir.Constant(ir.VectorType(ir.IntType(32), 16), [_index(i) for i in range(16)])
            return builder.shuffle_vector(a, b, order)
        picked = ir.Constant(_llvm(signature.return_type), ir.Undefined)
        for i in range(16):
            place = builder.and_(builder.extract_element(index, _index(i)), _index(7))
            picked = builder.insert_element(picked, builder.extract_element(table, place), _index(i))
        return picked

    return Vector(table.dtype, 16)(table, index), emit


def _processor_has(feature: str) -> bool:
    """Whether code is compiled for an x86-64 processor with this feature."""
    demanded = config.CPU_FEATURES  # type: ignore[attr-defined]
    if demanded is not None:  # NUMBA_CPU_FEATURES overrides what the processor has
        return f"+{feature}" in demanded.split(",")
    return bool(binding.get_host_cpu_features().get(feature, False))


def _call(builder: Any, name: str, table: Any, index: Any) -> Any:
    """A call of one of LLVM's permutations by its name."""
    kind = ir.FunctionType(table.type, [table.type, index.type])
    return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [table, index])


def _operator(symbol: str, function: Callable) -> None:
    """Let numba apply a Python operator to two vectors, or to a vector and a scalar."""
    comparison = symbol in ("<", "<=", ">", ">=", "==", "!=")

    @infer_global(function)
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            vector = next((a for a in args if isinstance(a, Vector)), None)
            if vector is None or len(args) != 2:
                return None
            result = Vector(types.boolean, vector.length) if comparison else vector
            return signature(result, *(a if isinstance(a, Vector) else vector.dtype for a in args))

    def lower(context, builder, sig, args):
        vector = next(a for a in sig.args if isinstance(a, Vector))
        a, b = (
            value if isinstance(kind, Vector) else _splat(builder, value, vector)
            for kind, value in zip(sig.args, args, strict=True)
        )
        return (_compare if comparison else _arithmetic)(builder, vector.dtype, symbol, a, b)

    for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *kinds)(lower)


_OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
for _symbol, _function in _OPERATORS.items():
    _operator(_symbol, _function)


def _arithmetic(builder: Any, dtype: Any, symbol: str, a: Any, b: Any) -> Any:
    if dtype is types.float32:
        return {"+": builder.fadd, "-": builder.fsub, "*": builder.fmul, "/": builder.fdiv}[symbol](a, b)
    instructions = {
        "+": builder.add,
        "-": builder.sub,
        "*": builder.mul,
        "//": builder.udiv,
        "&": builder.and_,
        "|": builder.or_,
        "^": builder.xor,
        "<<": builder.shl,
        ">>": builder.ashr if _signed(dtype) else builder.lshr,
    }
    return instructions[symbol](a, b)


def _compare(builder: Any, dtype: Any, symbol: str, a: Any, b: Any) -> Any:
    if dtype is types.float32:
        return (builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered)(symbol, a, b)
    return (builder.icmp_signed if _signed(dtype) else builder.icmp_unsigned)(symbol, a, b)


def _bits(dtype: Any) -> int:
    return 1 if dtype is types.boolean else dtype.bitwidth


def _signed(dtype: Any) -> bool:
    return dtype is not types.boolean and dtype.signed


def _llvm(vector: Vector) -> ir.VectorType:
    element = ir.FloatType() if vector.dtype is types.float32 else ir.IntType(_bits(vector.dtype))
    return ir.VectorType(element, vector.length)


def _index(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), value)


def _shuffle(builder: Any, value: Any, order: Any) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), [_index(i) for i in order])
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _splat(builder: Any, scalar: Any, vector: Vector) -> Any:
    kind = _llvm(vector)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _index(0))
    return _shuffle(builder, one, [0] * vector.length)


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to the vector at args[1] of the array args[0]."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    vector = signature.return_type if isinstance(signature.return_type, Vector) else signature.args[2]
    if context.enable_boundscheck:  # NUMBA_BOUNDSCHECK=1: as for single elements, IndexError
        size = builder.extract_value(array.shape, 0)
        last = builder.add(args[1], args[1].type(vector.length - 1))
        for index in (args[1], last):
            cgutils.do_boundscheck(context, builder, index, size, 0)
    return builder.bitcast(builder.gep(array.data, [args[1]]), _llvm(vector).as_pointer())

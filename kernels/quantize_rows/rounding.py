"""Device functions that every quantizing kernel shares, so that all of them round alike."""

import os

import triton
import triton.language as tl

# Triton's interpreter loses the carry into the exponent where it converts to float8; devices round to nearest even.
ROUND_FIRST = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def row_scale(largest, QUANTIZE: tl.constexpr):
    """Return (scale, inverse) of rows whose largest magnitudes are ``largest``, both fp32."""
    LIMIT: tl.constexpr = 127.0 if QUANTIZE == "int8" else 448.0
    # 1e-30: the reciprocal of less overflows; such a row becomes zeros
    inverse = tl.where(largest > 1e-30, tl.div_rn(tl.zeros_like(largest) + LIMIT, tl.maximum(largest, 1e-30)), 0.0)
    return tl.div_rn(largest, tl.zeros_like(largest) + LIMIT), inverse


@triton.jit
def quantized(x, QUANTIZE: tl.constexpr):
    """Round fp32 values, already scaled into the limit, to int8 or fp8-e4m3, ties to even."""
    if QUANTIZE == "int8":
        # At 1.5 * 2**23 fp32 has steps of 1, and its low bits are the rounded value's: no conversion, which is slow.
        return (x + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    elif ROUND_FIRST:
        # The same trick with steps of an eighth of x's power of two (2**-9 below 2**-6): the conversion is exact then.
        exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
        magic = (tl.maximum(exponent, 121 << 23) + (20 << 23)).to(tl.float32, bitcast=True) * 1.5
        return ((x + magic) - magic).to(tl.float8e4nv)
    else:
        return x.to(tl.float8e4nv)

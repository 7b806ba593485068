"""Codes, scales and products of docs/quantization.md."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gem.quantize import Codes, quantize_activations, quantize_int4, quantize_int8
from gem.quantized import CodedMatrix


def rows(values):
    return np.array(values, np.float32)


def squared_error(w, coded: Codes):
    return ((w.astype(np.float64) - coded.dequantize()) ** 2).sum(1)


def test_int8_rows_that_have_codes_keep_them():
    codes = rows([[127, -3, 0, 64, -127], [1, 0, -1, 0, 1]]) * rows([[1], [127]])
    coded = quantize_int8(codes * rows([[0.25], [2.0**-9]]))
    np.testing.assert_array_equal(coded.codes, codes)
    np.testing.assert_array_equal(coded.scales, rows([0.25, 2.0**-9]))


@pytest.mark.parametrize("sign", (1, -1))
def test_int4_groups_that_have_codes_keep_them(sign):
    """−8 is a code and 8 is none: a group that reaches 8·s has a negative scale."""
    codes = rows([[-8, 7, 3, 0, -1, 2]])
    coded = quantize_int4(sign * 0.5 * codes, group=4)
    np.testing.assert_array_equal(coded.dequantize(), sign * 0.5 * codes)
    np.testing.assert_array_equal(coded.codes[:, :4], codes[:, :4])
    assert coded.scales.dtype == np.float16 and coded.scales.shape == (1, 2)
    assert coded.scales[0, 0] == sign * 0.5


def test_zeros_and_what_is_nearly_zero_are_zeros():
    w = rows([[0, 0, 0], [2.0**-101, -(2.0**-101), 0], [1, 0, 0]])
    for coded in (quantize_int8(w), quantize_int4(w, 32)):
        np.testing.assert_array_equal(coded.dequantize()[:2], 0)
        assert not coded.codes[:2].any() and not coded.scales[:2].any()
        assert coded.dequantize()[2, 0] == pytest.approx(1, abs=1e-3)


def test_f16_scales_stay_finite():
    coded = quantize_int4(rows([[1e6, -1e5, 1.0]]), 32)
    assert coded.scales[0, 0] == -65504  # of both signs the one whose largest code is 8
    np.testing.assert_array_equal(coded.codes, [[-8, 2, 0]])
    assert np.isfinite(quantize_int4(rows([[3e38, -3e38, 1.0]]), 32).scales).all()


numbers = st.floats(-100, 100, width=32)


@given(st.lists(numbers, min_size=1, max_size=21), st.sampled_from((4, 32)))
def test_no_scale_of_the_lists_is_better(values, group):
    """Of the int8 row and of each int4 group, by the sums of doubles: the search compares sums of f32."""
    w = rows([values])
    amax = np.abs(w).max()
    tolerance = 1e-5 * (w.astype(np.float64) ** 2).sum()
    if amax >= 2.0**-100:
        for i in range(5):
            s = np.float32(amax * (1 - i / 64) / 127)
            q = np.clip(np.rint(w / s), -127, 127)
            assert squared_error(w, quantize_int8(w))[0] <= ((w - q * s) ** 2).sum() + tolerance
    coded = quantize_int4(w, group)
    assert coded.codes.shape == w.shape and coded.scales.shape == (1, -(-w.shape[1] // group))
    for g in range(coded.scales.shape[1]):
        part = w[:, g * group : (g + 1) * group].astype(np.float64)
        found = Codes(coded.codes[:, g * group : (g + 1) * group], coded.scales[:, g : g + 1], group)
        for i in range(9):
            for sign in (1, -1):
                s = float(np.float16(sign * np.abs(part).max() / (10 - i / 2)))
                if s:
                    q = np.clip(np.rint(part / s), -8, 7)
                    assert squared_error(part, found)[0] <= ((part - q * s) ** 2).sum() + tolerance


def test_rows_do_not_depend_on_each_other():
    w = np.random.default_rng(0).normal(size=(5, 70)).astype(np.float32)
    for quantize in (quantize_int8, lambda x: quantize_int4(x, 32)):
        whole = quantize(w)
        for i in range(len(w)):
            one = quantize(w[i : i + 1])
            np.testing.assert_array_equal(one.codes[0], whole.codes[i])
            np.testing.assert_array_equal(one.scales[0], whole.scales[i])


def test_activations_round_half_to_even():
    codes, scale = quantize_activations(torch.tensor([[127.0, 0.5, 1.5, -2.5, -127.0], [0.0] * 5, [2.0**-101] * 5]))
    assert codes[0].tolist() == [127, 0, 2, -2, -127]
    assert scale.flatten().tolist() == [1, 0, 0] and not codes[1:].any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("group", (None, 32))
def test_products_are_those_of_what_codes_stand_for(dtype, group):
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(9, 70)).astype(np.float32), torch.from_numpy(rng.normal(size=(3, 2, 70))).to(dtype)
    coded = quantize_int8(w) if group is None else quantize_int4(w, group)
    codes, scale = quantize_activations(x)
    exact = (codes.double() * scale.double()) @ torch.from_numpy(coded.dequantize()).double().T
    assert (scale * codes - x).abs().max() <= 0.5001 * scale.max()
    torch.testing.assert_close(CodedMatrix(coded, dtype)(x).double(), exact, rtol=1e-5, atol=1e-5)

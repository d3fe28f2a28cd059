"""Load order, after the cases of SGLang's loader tests."""

from hypothesis import given
from hypothesis import strategies as st

from offload_core.settings.groups import load_order, numbered_base

GB = 10**9
NAMES = ("dit", "dit_2", "text_encoder", "text_encoder_2", "text_encoder_3", "vae", "image_encoder")


def test_weight_heavy_components_come_first():
    sizes = {"vae": GB, "text_encoder": 9 * GB, "dit": 24 * GB}
    assert load_order(sizes) == ["dit", "text_encoder", "vae"]


def test_payload_decides_not_the_kind():
    assert load_order({"dit": 2 * GB, "text_encoder": 9 * GB}) == ["text_encoder", "dit"]


def test_numbered_variants_come_before_their_base():
    assert load_order({"dit": 28 * GB, "dit_2": 28 * GB, "vae": GB}) == ["dit_2", "dit", "vae"]
    assert load_order({"text_encoder": 9 * GB, "text_encoder_2": GB, "dit": 5 * GB}) == [
        "text_encoder_2",
        "text_encoder",
        "dit",
    ]


def test_equal_payloads_have_one_order():
    assert load_order({"vae": GB, "dit": GB}) == load_order({"dit": GB, "vae": GB})


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 40 * GB)))
def test_every_component_once_and_bases_by_their_largest(sizes):
    order = load_order(sizes)
    assert sorted(order) == sorted(sizes)
    assert order == load_order(dict(reversed(sizes.items())))
    if sizes:
        first = numbered_base(order[0])[0]
        assert max(size for name, size in sizes.items() if numbered_base(name)[0] == first) == max(sizes.values())

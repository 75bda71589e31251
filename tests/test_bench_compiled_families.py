from fused_loss.bench.calls import SAMPLES, launches_go_to
from fused_loss.bench.compiled_families import FULLEST, LENGTHS, families


def test_every_family_has_a_name_of_its_own_and_says_what_it_is():
    found = families()
    assert len({family.name for family in found}) == len({family.call for family in found})
    for name, call in found:
        assert name.endswith(f", {call.classes} classes, {call.z_dtype}")
        assert call == call.normal()
        assert ("few rows" in name) == (call.samples == "few" and call.layout == "rows")
        assert ("no gradient" in name) == (not call.grads)
    assert min(LENGTHS) == 2
    assert max(LENGTHS) == 262144


def test_the_fullest_has_every_option():
    launched = []
    with launches_go_to(lambda _, arguments: launched.append(arguments)):
        FULLEST.run()
    reducing = next(arguments for arguments in launched if "SPLIT" in arguments)
    options = ("SOFT", "HAS_WEIGHT", "HAS_MASK", "HAS_POSITION_WEIGHT", "HAS_ELEMENT_WEIGHT")
    for name in (*options, "IGNORE_NAN", "SMOOTH", "GRAD_R", "GRAD_Z"):
        assert reducing[name], name
    assert SAMPLES["few"] < 132 < SAMPLES["many"]

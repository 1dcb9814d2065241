import warnings

import numpy as np
import pytest

from resnet_jax.config.load import default_config
from resnet_jax.errors import UserError
from resnet_jax.training.schedules import SCHEDULES, learning_rates, plateau_factor

EPOCHS, STEPS = 12, 5


def rates(name, *, length=EPOCHS, per="step", warmup_epochs=0.0, rate=0.1, **options):
    config = default_config()
    config.optimizer.learning_rate = rate
    config.schedule.name, config.schedule.per = name, per
    config.schedule.warmup_epochs, config.schedule.options = warmup_epochs, options
    return learning_rates(config, length, STEPS)


def torch_rates(create, count, *, repeat=1):
    """Returns the learning rates of `count` calls of a torch scheduler, each `repeat` times."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = create(torch.optim.lr_scheduler, optimizer)
        found = []
        for _ in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(found) < count:
                scheduler.step()
    return np.repeat(found, repeat)


TORCH_CASES = {
    "step": ({"every_epochs": 5, "factor": 1 / 3}, lambda s, o: s.StepLR(o, 5, 1 / 3)),
    "milestones": (
        {"epochs": (3, 7, 8), "factor": 0.2},
        lambda s, o: s.MultiStepLR(o, [3, 7, 8], 0.2),
    ),
    "cosine": ({"num_epochs": 30}, lambda s, o: s.CosineAnnealingLR(o, 30)),
    "cosine to a floor": (
        {"num_epochs": 12, "final_factor": 0.25},
        lambda s, o: s.CosineAnnealingLR(o, 12, eta_min=0.025),
    ),
    "exponential": ({"factor": 0.8}, lambda s, o: s.ExponentialLR(o, 0.8)),
    "polynomial": ({"power": 2.0}, lambda s, o: s.PolynomialLR(o, 12, 2.0)),
}


def test_one_cycle_of_the_speed_records():
    """From 0.2 of the peak up to it in 23 % of 480 steps, then straight down to 0.07."""
    options = {"peak_fraction": 0.23, "initial_factor": 0.2, "final_factor": 0.07}
    options |= {"anneal": "linear"}
    found = rates("one_cycle", length=480 // STEPS, rate=1.5, **options) / 1.5
    corners = [0, 0.23 * 480 - 1, 479]
    expected = np.interp(np.arange(480), corners, [0.2, 1.0, 0.07])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("case", TORCH_CASES)
def test_per_epoch_agrees_with_torch(case):
    options, create = TORCH_CASES[case]
    expected = torch_rates(create, EPOCHS, repeat=STEPS)
    ours = rates(case.split()[0], per="epoch", **options)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-9)


def test_cosine_per_step_agrees_with_torch_stepped_every_batch():
    expected = torch_rates(lambda s, o: s.CosineAnnealingLR(o, EPOCHS * STEPS), EPOCHS * STEPS)
    np.testing.assert_allclose(rates("cosine"), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_agrees_with_torch(per, anneal):
    count, repeat = (EPOCHS * STEPS, 1) if per == "step" else (EPOCHS, STEPS)
    expected = torch_rates(
        lambda s, o: s.OneCycleLR(
            o,
            *(0.1, count),
            pct_start=0.25,
            div_factor=10,
            final_div_factor=50,
            anneal_strategy="cos" if anneal == "cosine" else "linear",
        ),
        count,
        repeat=repeat,
    )
    ours = rates(
        "one_cycle",
        per=per,
        peak_fraction=0.25,
        initial_factor=0.1,
        final_factor=0.002,
        anneal=anneal,
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_one_cycle_defaults_are_torchs():
    expected = torch_rates(lambda s, o: s.OneCycleLR(o, 0.1, EPOCHS * STEPS), EPOCHS * STEPS)
    np.testing.assert_allclose(rates("one_cycle"), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 0, "factor": 0.5},
        {"patience": 2, "cooldown": 3, "factor": 0.3},
        {"patience": 1, "threshold": 0.05, "min_factor": 0.02},
    ],
)
def test_plateau_agrees_with_torch(options):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    scores = list(1 - np.exp(-np.arange(60) / 10) + 0.05 * rng.normal(size=60))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {("min_lr" if k == "min_factor" else k): v for k, v in options.items()}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", eps=0, **theirs)
    reductions = set()
    for count, score in enumerate(scores, start=1):
        scheduler.step(score)
        factor = plateau_factor(scores[:count], **options)
        reductions.add(factor)
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    assert len(reductions) > 1, "the case must reduce at least once"


def test_plateau_before_any_score_is_one():
    assert plateau_factor([]) == 1.0


def test_plateau_schedule_is_constant_and_checks_the_options_of_its_factor():
    np.testing.assert_array_equal(rates("plateau", patience=3, factor=0.5), np.float32(0.1))
    with pytest.raises(UserError, match="did you mean patience"):
        rates("plateau", patienc=3)


def test_warmup_grows_linearly_to_the_schedule():
    warmed = rates("cosine", warmup_epochs=2.0)
    np.testing.assert_allclose(warmed[:10], 0.1 * np.arange(1, 11) / 11, rtol=1e-6)
    assert warmed[10] == np.float32(0.1)
    # What follows is the schedule of the epochs that are left.
    rest = rates("cosine", length=EPOCHS - 2)
    np.testing.assert_allclose(warmed[10:], rest, atol=1e-9)


def test_fraction_of_an_epoch_of_warmup():
    warmed = rates("constant", warmup_epochs=0.5)
    np.testing.assert_allclose(warmed[:4], 0.1 * np.array([1, 2, 3, 3.5]) / 3.5, rtol=1e-6)


def test_cosine_stopped_early_is_in_mid_fall():
    for options, length in (({}, 50), ({"num_epochs": 200}, 200)):
        config = default_config()
        config.optimizer.learning_rate = 0.1
        config.schedule.name, config.schedule.per = "cosine", "epoch"
        config.schedule.options = options
        expected = 0.1 * 0.5 * (1 + np.cos(np.pi * 49 / length))
        assert learning_rates(config, 50, STEPS)[-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("per", ["step", "epoch"])
def test_every_step_has_a_rate(name, per):
    options = {"step": {"every_epochs": 0.2}, "milestones": {"epochs": (1, 2.5)}}
    options["exponential"] = {"factor": 0.9}
    found = rates(name, per=per, warmup_epochs=1.5, **options.get(name, {}))
    assert found.shape == (EPOCHS * STEPS,) and found.dtype == np.float32
    assert np.isfinite(found).all() and (found >= 0).all()
    if per == "epoch":
        after = found[2 * STEPS :].reshape(-1, STEPS)
        assert (after == after[:, :1]).all()
    assert rates(name, length=0, per=per, **options.get(name, {})).shape == (0,)


def test_fractional_step_counts_every_tick():
    ours = rates("step", every_epochs=0.2, factor=0.5, rate=1.0)
    np.testing.assert_array_equal(ours, (0.5 ** np.arange(EPOCHS * STEPS)).astype(np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rates("cosin"), "unknown schedule 'cosin'; did you mean cosine"),
        (lambda: rates("step"), "needs its option every_epochs; set --config.schedule"),
        (lambda: rates("step", every_epochs=0), "option every_epochs of schedule 'step' must be"),
        (lambda: rates("milestones", epochs=5), "takes a list, not 5"),
        (lambda: rates("cosine", t_max=5), "unknown option of schedule 'cosine' 't_max'"),
        (lambda: rates("constant", factor=1), "'constant' has no options; remove 'factor'"),
        (lambda: rates("one_cycle", anneal="cosin"), "did you mean cosine"),
        (
            lambda: rates("one_cycle", anneal=["a"]),
            "option anneal of schedule 'one_cycle' takes one of",
        ),
        (lambda: rates("plateau", patience=1.5), "takes a whole number, not 1.5"),
        (lambda: rates("milestones", epochs=(1, 2), factor=1e300), "rate beyond all numbers"),
        (lambda: rates("cosine", warmup_epochs=12.0), "schedule.warmup_epochs is 12 of num_epochs"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)

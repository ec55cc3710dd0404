"""Errors of other tools that give a plausible number: a test against every one.

``COVERED`` names, for each silent error (S) and crash (C) of a survey of published
tools, the tests that would fail if ours made it. What belongs to parts that are not
built yet is in ``LATER``, so that nobody takes its absence for an oversight.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import torch

import exhume
from conformance.test_members import global_state
from exhume import Batch, Mechanism, Task, ThreatModel, World, registry
from exhume.attacks.engine.objective import EuclideanNorm
from exhume.audit.settings import AuditSettings, expand
from exhume.config import build
from exhume.keys import generator
from exhume.observations import Gradient
from exhume.priors.batch_norm_statistics import BatchNormStatisticsDensity
from exhume.priors.total_variation import TotalVariationDensity
from exhume.problem.relaxation import Units
from exhume.trials.trial import run_trial
from toys import COLOUR, GRAY, VECTOR, convolutional, make_world, smooth, smooth_mlp

HERE = Path(__file__).parent

#: error → (what goes wrong elsewhere, tests that would fail if it did here)
COVERED: dict[str, tuple[str, tuple[str, ...]]] = {
    "S1": (
        "a running mean over users is none",
        (
            "test_task::test_gradient_is_the_mean_over_examples",
            "test_observations::test_the_gradient_is_linear_in_the_batch_mean",
        ),
    ),
    "S2": (
        "labels of the random start are returned, not the optimised ones",
        (
            "test_engine::test_joint_labels_are_the_optimised_ones",
            "test_gauss_newton"
            "::test_joint_labels_are_returned_as_optimised_and_score_as_reported",
        ),
    ),
    "S3": (
        "a wrong sign or scale puts the minimum elsewhere than at the truth",
        (
            "test_engine::test_truth_is_the_minimum_of_every_preset",
            "conformance/test_attacks::test_the_truth_is_at_least_as_good_as_a_stranger",
            "test_labels::test_counts_are_exact_with_random_weights",
            "test_consistency::test_a_step_is_told_from_a_gradient_by_its_sign",
        ),
    ),
    "S4": (
        "labels that are withheld arrive by another door",
        (
            "test_wall::test_a_problem_carries_neither_inputs_nor_unknown_labels",
            "conformance/test_wall"
            "::test_swapping_the_secret_behind_an_equal_observation_changes_no_bit",
        ),
    ),
    "S5": (
        "a defense changes the truth that scores are taken against",
        (
            "test_wall::test_a_mechanism_leaves_the_truth_alone",
            "test_mechanism::test_sampling_leaves_batch_and_model_alone",
        ),
    ),
    "S6": (
        "the answer is not the point whose objective is reported",
        (
            "test_engine::test_reported_objective_is_the_one_of_the_returned_point",
            "conformance/test_attacks::test_the_reported_objective_is_that_of_the_answer",
        ),
    ),
    "S7": (
        "one exact image makes a mean infinite; reductions without a name",
        (
            "test_metrics"
            "::test_one_exact_image_leaves_the_others_and_every_summary_finite",
            "test_metrics::test_psnr_equals_scikit_image",
            "test_metrics::test_summary_names_its_reductions",
            "test_metrics::test_scores_do_not_depend_on_the_order_of_the_estimates",
            "test_report::test_one_exact_picture_does_not_spoil_the_medians",
        ),
    ),
    "S8": (
        "total variation penalises the border; a weight is ignored",
        (
            "test_priors::test_constant_images_cost_nothing",
            "test_engine"
            "::test_total_variation_of_a_constant_is_zero_and_linear_in_its_weight",
            "test_silent_errors::test_s8_every_regulariser_is_zero_and_linear",
        ),
    ),
    "S9": (
        "a partition that overlaps, or changes from run to run",
        (
            "test_data::test_the_split_is_a_partition_less_copies",
            "test_data::test_an_impossible_batch_size_is_refused",
            "test_silent_errors::test_s9_an_index_beyond_the_end_raises",
        ),
    ),
    "S10": (
        "a report shows a number under the name of another",
        ("test_report::test_every_field_stands_at_its_own_place",),
    ),
    "S11": (
        "clipping the batch is sold as clipping each example",
        (
            "test_defenses::test_s11_clipping_takes_one_norm_over_the_whole_update",
            "test_defenses::test_s11_clipping_the_batch_is_not_clipping_each_example",
        ),
    ),
    "S12": (
        "tensors are matched by position and cut to the shorter list",
        (
            "test_consistency"
            "::test_every_difference_in_names_and_shapes_is_listed_at_once",
            "test_consistency::test_positional_tensors_are_not_matched_by_order",
            "test_consistency::test_reordered_tensors_are_matched_by_name",
            "test_consistency::test_other_weights_are_told_by_their_hash",
            "conformance/test_attacks::test_a_misfit_of_tensors_is_named",
        ),
    ),
    "S13": (
        "a failed trial is a line in a log",
        (
            "test_executors"
            "::test_a_defect_becomes_a_row_with_its_type_message_and_place",
            "test_cli::test_a_failed_trial_shows_in_the_exit_code",
        ),
    ),
    "S14": (
        "a second derivative by differences is taken over the wrong axis",
        (
            "test_task::test_derivatives_of_the_gradient",
            "conformance/test_observations::test_jvp_equals_central_differences",
            "test_gauss_newton::test_gradient_and_products_equal_finite_differences",
        ),
    ),
    "S15": (
        "the answer is chosen by its likeness to the truth",
        ("conformance/test_wall::test_garbage_in_place_of_the_truth_changes_no_bit",),
    ),
    "S16": (
        "an attack reads what it does not declare",
        (
            "conformance/test_attacks::test_undeclared_facts_change_nothing",
            "test_attacks::test_an_undeclared_fact_is_unknown_inside_an_attack",
        ),
    ),
    "S17": (
        "a score lands in the field of another metric",
        ("test_metrics::test_metrics_that_do_not_fit_are_not_applicable",),
    ),
    "S18": (
        "global seeds, folders made by constructors",
        (
            "conformance/test_attacks::test_nothing_outside_is_touched",
            "conformance/test_defenses::test_s18_global_randomness_is_untouched",
            "conformance/test_members::test_s18_making_it_touches_nothing",
            "test_silent_errors::test_s18_a_trial_touches_nothing",
        ),
    ),
    "S19": (
        "client and attacker use losses that differ by a factor",
        (
            "test_silent_errors::test_s19_the_truth_is_exact_under_the_task_s_own_loss",
            "test_consistency::test_a_factor_is_explained",
        ),
    ),
    "S20": (
        "a vanished gradient or a lazy optimiser reads as privacy",
        (
            "test_flags::test_gradient_near_zero",
            "test_flags::test_under_optimised",
            "test_consistency::test_very_small_and_very_large_updates_are_warned_of",
        ),
    ),
    "S21": (
        "a release without the noise that was promised",
        (
            "conformance/test_defenses::test_empirical_moments_equal_declared_law",
            "conformance/test_defenses"
            "::test_s21_declared_noise_is_added_on_every_covered_coordinate",
            "test_silent_errors::test_s21_the_report_shows_the_cosine_to_the_update",
        ),
    ),
    "S22": (
        "noise on BatchNorm buffers and counters",
        ("conformance/test_defenses::test_s22_buffers_and_counters_pass_in_clear",),
    ),
    "S24": (
        "a law that holds at one scale of the gradient only",
        ("conformance/test_defenses::test_s24_law_holds_at_every_scale",),
    ),
    "S25": (
        "one formula in several places with other constants, and no odd symmetry",
        (
            "test_architecture::test_every_formula_is_named_in_a_test",
            "conformance/test_defenses::test_s25_odd_symmetry_in_law",
            "test_fisher::test_trace_is_unbiased_and_predicts_its_error",
        ),
    ),
    "S26": (
        "pruning looks safe because only optimisers were tried",
        (
            "test_analytic_linear::test_half_pruned_gradient_still_gives_the_input",
            "test_flags::test_masking",
            "test_silent_errors::test_s26_a_closed_form_beats_optimisers_on_pruning",
        ),
    ),
    "S27": (
        "a bound that ignores noise which depends on the data",
        (
            "test_fisher::test_a_channel_that_speaks_through_its_noise",
            "test_bounds::test_variance_that_depends_on_the_data_counts_as_information",
        ),
    ),
    "S28": (
        "one diverged run of L-BFGS is the result",
        (
            "test_engine::test_divergence_is_told_and_the_best_point_comes_back",
            "test_engine::test_restarts_are_chosen_by_the_smallest_objective",
            "test_flags::test_a_diverged_objective_is_under_optimised",
            "test_flags::test_single_seed_and_time_limit",
        ),
    ),
    "S29": (
        "a method that nobody ever called",
        (
            "test_attacks::test_every_public_method_can_be_called",
            "test_silent_errors::test_s29_every_public_method_is_named_in_a_test",
        ),
    ),
    "S30": (
        "one field for two quantities",
        (
            "conformance/test_attacks::test_the_reported_objective_is_that_of_the_answer",
            "test_report::test_json_holds_what_the_trials_gave",
        ),
    ),
    "C1, C4": (
        "documented defaults crash",
        ("conformance/test_attacks::test_defaults_work_offline_within_a_budget",),
    ),
    "C2, C3": (
        "a regulariser or a choice of restarts that never ran",
        (
            "test_engine::test_inverting_gradients_beats_the_centre_of_the_range",
            "test_engine::test_gradinversion_beats_the_centre_of_the_range",
        ),
    ),
    "C5": (
        "three channels are taken for granted",
        (
            "conformance/test_attacks::test_the_answer_is_well_formed",
            "test_engine::test_every_kind_of_data_label_and_precision",
        ),
    ),
    "C6": (
        "a label strategy that crashes",
        ("test_labels::test_counts_are_exact_with_random_weights",),
    ),
    "C8": (
        "a report that needs the network",
        ("test_report::test_nothing_is_fetched_from_anywhere",),
    ),
}
#: what is not built yet, and what will have to be tested with it
LATER = {
    "S23": "accounting: no noise gives epsilon = infinity",
    "C7": "several users",
    "C9": "tensors on an accelerator: needs one",
    "C10, C11": "text",
}
#: the part of a covered error that waits
LATER_IN_PART = {
    "S1": "aggregates: weights 1/N for N = 1, 2, 3, 10",
    "S3": "updates of several steps: labels and minimum as for the gradient",
    "S5": "data-stage noise of variance v: the identity attack scores v",
    "S11": "example-stage clipping against a loop over micro-batches",
    "S20": "a recipe checked against a paper's undefended number",
    "S21": "epsilon beside the cosine",
    "S22": "epsilon = 0 is refused",
    "S24": "defenses that project",
}


@cache
def functions(module: str) -> set[str]:
    tree = ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("error", COVERED)
def test_every_silent_error_has_its_tests(error):
    what, tests = COVERED[error]
    assert what
    for test in tests:
        module, name = test.split("::")
        assert name in functions(module), f"{test} is gone"


def test_no_error_is_forgotten():
    listed = {part for key in (*COVERED, *LATER) for part in key.split(", ")}
    assert {f"S{i}" for i in range(1, 31)} | {f"C{i}" for i in range(1, 12)} == listed
    assert set(LATER_IN_PART) <= set(COVERED)


# --- what no other file tests --------------------------------------------------------


def regularisers(weight: float):
    one = torch.ones(())
    task = Task(convolutional(COLOUR, norm=True), mode="eval")
    still = smooth(COLOUR, 2, key=1)
    targets = task.batch_statistics(still)
    zero = torch.zeros(2, *COLOUR.shape)
    yield TotalVariationDensity(weight=weight, smoothing=0.0), zero + 0.7
    yield EuclideanNorm(weight, Units(0 * one, one)), zero
    yield BatchNormStatisticsDensity(task, targets, weight), still


def test_s8_every_regulariser_is_zero_and_linear():
    other = smooth(COLOUR, 2, key=9)
    for (single, nothing), (double, _) in zip(
        regularisers(0.5), regularisers(1.0), strict=True
    ):
        assert float(single.energy(nothing)) == pytest.approx(0.0, abs=1e-9)
        value = float(single.energy(other))
        assert value > 1e-5
        assert float(double.energy(other)) == pytest.approx(2 * value, rel=1e-6)


def test_s9_an_index_beyond_the_end_raises():
    batch = exhume.dataset("digits").load()
    with pytest.raises(IndexError):
        batch.select([len(batch)])


def test_s18_a_trial_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = AuditSettings(
        data="digits",
        model={"name": "mlp", "hidden": [8], "activation": "tanh"},
        attacks=[
            {"name": "gauss-newton", "iterations": 2},
            {"name": "dlg", "iterations": 1},
        ],
        defenses=[{"name": "gaussian-noise", "std": 0.01}],
        bounds=[{"name": "bayesian-cramer-rao", "draws": 2}],
    )
    before = global_state()
    results = [run_trial(spec) for spec in expand(settings)]
    assert {result.status for result in results} == {"done"}
    assert global_state() == before
    assert not list(tmp_path.iterdir())


#: the published priors push the minimum away from the truth; these leave them out
PURE = {
    "dlg": {},
    "gauss-newton": {"prior": False},
    "gradinversion": {"total_variation": 0.0, "euclidean_norm": 0.0, "batch_norm": 0.0},
    "idlg": {},
    "inverting-gradients": {"total_variation": 0.0},
}


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_s19_the_truth_is_exact_under_the_task_s_own_loss(name, loss):
    local = generator(0, "regression")
    inputs = smooth(VECTOR, 2, key=3).double()
    targets = torch.randn(2, 5, generator=local).double()
    if loss == "cross-entropy":
        targets = torch.tensor([1, 4])
    task = Task(smooth_mlp(VECTOR).double(), loss)
    world = World(task, Batch(inputs, targets, VECTOR), Mechanism(Gradient()))
    problem = ThreatModel("labels-known").reveal(world, world.observe())
    order = torch.argsort(targets if targets.dim() == 1 else targets[:, 0])
    attack = build("attack", {"name": name, **PURE[name]})
    at_truth = attack.objective(problem, inputs[order], targets[order])
    elsewhere = attack.objective(problem, inputs[order] + 0.1, targets[order])
    assert abs(at_truth) < 1e-9 * elsewhere


def test_s21_the_report_shows_the_cosine_to_the_update(tmp_path):
    from exhume.audit.report.export import write_report

    settings = AuditSettings(
        data="digits",
        model={"name": "mlp", "hidden": [4]},
        attacks=["prior-mean"],
        defenses=[{"name": "gaussian-noise", "std": 0.05}],
    )
    results = [run_trial(expand(settings)[0])]
    cosine = results[0].facts["cosine_to_exact"]
    assert 0 < cosine < 0.999
    page = write_report(settings, results, tmp_path).read_text(encoding="utf-8")
    assert "cosine to exact" in page
    assert f"{cosine:.3g}" in page


def test_s26_a_closed_form_beats_optimisers_on_pruning():
    world = make_world(GRAY, model=smooth_mlp(GRAY, width=64))
    half = exhume.defense("pruning", ratio=0.5, kind="random")
    pruned = Mechanism(Gradient(), (half,))
    world = World(world.task, world.batch, pruned, world.public)
    # Who does not know the mask matches zeros with an optimiser, but divides rows.
    problem = ThreatModel("defense-unknown").reveal(world, world.observe())
    errors = {}
    for name, options in (("analytic-linear", {}), ("dlg", {"iterations": 20})):
        guess = exhume.attack(name, **options)(problem)
        errors[name] = float((guess.inputs - world.batch.inputs).square().mean())
    assert errors["analytic-linear"] < 1e-8
    assert errors["dlg"] > 1e-3


def test_s26_every_audited_defense_faces_an_adaptive_attack():
    settings = AuditSettings.shipped()
    stacks = {str(spec.defenses) for spec in expand(settings)}
    faced = {
        str(spec.defenses)
        for spec in expand(settings)
        if spec.attack is not None and spec.attack["name"] == "gauss-newton"
    }
    assert faced == stacks


@cache
def words_of_the_tests() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.py"))
    )


@pytest.mark.parametrize("kind", registry.KINDS)
def test_s29_every_public_method_is_named_in_a_test(kind):
    for name in registry.names(kind):
        cls = registry.find(kind, name)
        own = [n for n, v in vars(cls).items() if callable(v) and n[0] != "_"]
        for method in own:
            assert f".{method}(" in words_of_the_tests(), f"{cls.__name__}.{method}"

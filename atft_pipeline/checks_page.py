"""Every check as a page for the operator: ``docs/checks.md``, meaning from the checks themselves.

What a failure means and what to do belongs to the check's name: the same fact fails for the same
reasons, whichever asset states it.
"""

from collections.abc import Iterable, Mapping

import dagster as dg

COMMAND = "python -m atft_pipeline checks-table > docs/checks.md"

HEAD = f"""# Checks: what each means, likely causes, what to do

Written by `{COMMAND}` (`make docs`); a test fails
where a check is missing. *Integrity* checks stop what depends on them; *skill* verdicts do not.
The failed check's page in the UI shows the figure, the threshold and the rows or features at fault.
How to act on alerts, schedules and stuck runs: [operations.md](operations.md).
"""

ADVICE: Mapping[str, tuple[str, str]] = {
    "contract_holds": (
        "The vendor renamed a column or changed a type; duplicate or missing keys.",
        "Open the check's details: the first cases are listed. Map the column "
        "(docs/sources.md) or mend the file; the last good table stays in use.",
    ),
    "keys_unique": (
        "The same day was delivered twice, or two listings share a code.",
        "Remove the duplicate at the source, then materialize the asset again.",
    ),
    "rows_within_stocks_times_dates": (
        "A join matched more than one row: duplicates upstream.",
        "Look at the upstream table's keys; this is a bug if they are unique.",
    ),
    "quarantined_share_within_limit": (
        "A corrupt delivery: zero prices, high below low, dates off the calendar.",
        "SELECT reason, count(*) FROM quarantine GROUP BY 1; mend the source. Raise "
        "max_quarantined_share only after looking at the rows.",
    ),
    "quarantine_reasons_within_limits": (
        "One kind of defect grew, though all together are few.",
        "SELECT * FROM quarantine WHERE reason = the one named.",
    ),
    "suspect_moves_within_limit": (
        "Splits are missing from the file, or prices of two stocks share a code.",
        "SELECT * FROM suspect_moves; give adjustment_factor for real splits (docs/sources.md).",
    ),
    "universe_is_wide": (
        "Filters too strict for this market, or bars are missing on recent days.",
        "Compare stocks per date in prices and trading_universe; relax min_turnover_20d or "
        "min_raw_close in the asset's config.",
    ),
    "no_lookahead": (
        "A change of code reads beyond the row's date (a shift of the wrong sign, a statistic over "
        "all dates), or a source rewrote history.",
        "The check names columns, date and seed; run again with that seed. Never switch it off: "
        "every later figure would be worthless.",
    ),
    "normalized_within_bounds": (
        "A feature's scale broke (unit change, constant column) or too few training dates.",
        "The details name the features. Look at them in features; fix the expression or the "
        "source.",
    ),
    "drift_within_limits": (
        "The market changed, a source changed its unit, or a table stopped arriving.",
        "SELECT * FROM feature_drift ORDER BY of_limit DESC (docs/drift.md). A table that stopped "
        "shows as missing_growth: sync it. A real change: retrain with later training dates, or "
        "on_drift: warn for a while.",
    ),
    "panel_is_alive": (
        "A feature never varies in some part, is mostly zero, or dates are thin.",
        "The details name feature and part; look at the source table behind it.",
    ),
    "splits_are_purged": (
        "Split settings leave no room between the parts.",
        "Leave purge and embargo as they are, or give more dates.",
    ),
    "stocks_have_neighbours": (
        "Histories shorter than the correlation window, or constant prices.",
        "Give more history, or lower lookback and min_observations of stock_graph.",
    ),
    "encoder_gradients_nonzero": (
        "Gradients vanish: a dead layer, a loss that ignores the scores, fan_san, too few readings "
        "in an epoch.",
        "The check names the groups. Compare docs/faults.md; set adaptive_norm to layer_norm; "
        "ENABLE_ENCODER_GRAD_HOOKS=1 shows where it stops.",
    ),
    "every_parameter_receives_gradient": (
        "A module is not connected, or a dead input leaves its tensors at zero.",
        "The check names the tensors; with no_dead_inputs failing too, mend the input first.",
    ),
    "no_dead_inputs": (
        "A feature is constant after normalization: its source stopped or was filled.",
        "Look at the feature in features; materialize from raw tables on.",
    ),
    "gradients_within_range": (
        "Learning rate or loss weights off by orders of magnitude; inputs too large.",
        "Look at the gradient plot of trained_model; lower learning_rate or use preset stable.",
    ),
    "updates_within_limit": (
        "Learning rate too high.", "Lower learning_rate; preset stable starts at 1e-6.",
    ),
    "inputs_within_range": (
        "Statistics fitted on other data than trained on, or an unclipped feature.",
        "Materialize normalized_features and panel again and look at the feature named.",
    ),
    "targets_well_scaled": (
        "Returns in percent, or a split missing from the prices.",
        "SELECT avg(target_5d), stddev(target_5d) FROM targets; check suspect_moves.",
    ),
    "cross_sections_wide_enough": (
        "Few tradable stocks per date: nothing to rank.",
        "Relax the universe's filters; see universe_is_wide.",
    ),
    "validation_uses_graph": (
        "The graph covers other dates than validation.",
        "Materialize stock_graph again after the panel.",
    ),
    "encoder_tells_stocks_apart": (
        "The encoder collapsed, so that the head reads the same of it for every stock: learning "
        "rate too high, dead inputs. With an input skip the score alone would not show it.",
        "As for degeneracy_resets_within_limit; the reading is encoder_spread in the health "
        "record.",
    ),
    "degeneracy_resets_within_limit": (
        "Predictions collapse to a constant: learning rate too high, variance penalty too weak, "
        "no signal. 1 to 3 resets an epoch are normal.",
        "Lower learning_rate, raise VARIANCE_PENALTY_WEIGHT, or use preset stable; look for failed "
        "resets in the health record.",
    ),
    "predictions_not_degenerate": (
        "The saved weights give every stock nearly the same score.",
        "As for degeneracy_resets_within_limit; the run is not put in use.",
    ),
    "no_nonfinite_steps": (
        "NaN or infinity in inputs or targets, or float16 overflow.",
        "Leave the NaN scan on; use precision bf16-mixed or 32.",
    ),
    "skipped_batches_zero": (
        "Steps left out: not finite, or the emergency brake (brake_norm).",
        "See no_nonfinite_steps; with preset stable a few at the start are its design.",
    ),
    "clip_ratio_falls": (
        "Gradients stay larger than clip_norm: loss too steep or clip too tight.",
        "Raise clip_norm or lower learning_rate; look at the gradient plot.",
    ),
    "loss_decreases": (
        "Nothing learned: learning rate too low, too few steps, or broken targets.",
        "More epochs; compare targets_well_scaled.",
    ),
    "validation_beats_chance": (
        "No signal found, or too few validation dates to see it.",
        "Look at the rank IC per epoch; more data, or features that matter. The model is sound, "
        "not good.",
    ),
    "run_is_complete": (
        "The process was killed, or files of two runs were mixed.",
        "Resume it (field resume), or train again.",
    ),
    "evidence_matches_checkpoint": (
        "Scores of other weights or another panel: something was rebuilt between.",
        "dagster asset materialize --select 'predictions,baselines,evaluation'.",
    ),
    "evaluation_path_equals_training_path": (
        "Prediction differs from training's forward path: dropout on, other graph or panel.",
        "A bug, or mixed versions of code: predict with the code that trained.",
    ),
    "metrics_not_identical_to_previous_run": (
        "A stale file was read instead of recomputed.",
        "Materialize predictions again; look at their run_id.",
    ),
    "shuffled_control_finds_nothing": (
        "The metric itself finds skill in noise: misaligned dates or a leak in the evaluation.",
        "Do not trust any figure of this run; look for a change in the evaluation code.",
    ),
    "sharpe_above_threshold": (
        "The lower end of the interval is below the threshold: weak, or too few dates to tell.",
        "Read figure and interval in the report. More test dates narrow it; costs and turnover "
        "move it. Never choose runs by it: each counts as a trial.",
    ),
    "sharpe_significant": (
        "What was found is what the best of so many trials shows by luck.",
        "Fewer trials, more dates; the ledger counts all of them.",
    ),
    "rank_ic_positive": (
        "No rank skill that the test dates can show.",
        "As for sharpe_above_threshold.",
    ),
    "rank_ic_above_baselines": (
        "A simple rule ranks as well: often ridge or short-term reversal.",
        "Read the report's table of controls; the model must add to what a rule gives for free.",
    ),
    "blocking_checks_green": (
        "No trained run is sound.",
        "Look at the failed checks of trained_model and evaluation; retrain.",
    ),
    "not_worse_than_before": (
        "ERROR: the newest model ranks worse than the one in use, on the same dates; it stays out "
        "of use. WARN: too few common test dates, or no kept scores: it was taken uncompared.",
        "ERROR: nothing breaks, look for what changed in data or settings, train again. WARN: "
        "materialize evaluation for the run named, or go back: python -m atft_pipeline rollback.",
    ),
    "past_scores_unchanged": (
        "A file of past_scores was edited, deleted, or put there by hand.",
        "Restore the file that the check names from the backup; never make it anew, today's model "
        "and data would know what followed.",
    ),
    "due_returns_known": (
        "Prices of recent days are missing, or codes changed since the scores were made.",
        "SELECT date, scored, known FROM realized_scores WHERE due; compare the codes with prices.",
    ),
    "realized_rank_ic_as_evaluated": (
        "The market changed, the evaluation flattered, or the daily features differ from those of "
        "training. One warning in twenty is luck.",
        "Look at drift_within_limits and at the picture of realized_scores; retrain, or go back to "
        "an earlier model: python -m atft_pipeline rollback.",
    ),
    "model_is_sound": (
        "The accepted run's integrity checks failed or were never made.",
        "Materialize evaluation for it, or go back: python -m atft_pipeline rollback.",
    ),
    "scores_are_current": (
        "The panel ends earlier than the prices: a daily run failed.",
        "Look at the failed daily_update; materialize '*panel', then latest_scores.",
    ),
    "scores_not_degenerate": (
        "Inputs of the newest date are missing, or the model collapsed.",
        "Compare the newest date's features with the day before; see drift_within_limits.",
    ),
    "folds_match_checkpoints": (
        "A period's scores are of other weights, or the panel was rebuilt between periods.",
        "Materialize the named partitions of rolling_model again.",
    ),
    "periods_do_not_overlap": (
        "Partitions of two different plans were pooled.",
        "Materialize all partitions of rolling_model of the current plan.",
    ),
    "scores_are_out_of_sample": (
        "A period's model saw labels that reach into the period.",
        "A bug in the folds: do not use the figures.",
    ),
    "every_period_is_scored": (
        "Some partitions of rolling_model were never run or failed.",
        "Backfill the partitions that the warning names.",
    ),
    "is_acyclic": (
        "The acyclicity schedule ended too early, or a bug of the decision stage.",
        "Do not use the graph; report the stored record (structure version in the metadata).",
    ),
    "edge_count_in_range": (
        "Nothing links the groups (usual on a market without lead-lag), or one common driver "
        "links them all.",
        "Nothing to do for none: the correlation graph is used. For too many see no_hidden_factor.",
    ),
    "adjacency_is_used": (
        "A change of the model opened another way between the series.",
        "A bug in atft_model/structure: do not use the graph.",
    ),
    "not_at_chance": (
        "No more links than shifted series give: nothing was learned.",
        "Nothing to do: the correlation graph is used. More training dates may show links.",
    ),
    "scale_invariant": (
        "The decision read the series' scales.",
        "A bug in atft_model/structure: do not use the graph.",
    ),
    "stable_under_bootstrap": (
        "Links rest on few days.",
        "Use fewer groups or more training dates.",
    ),
    "threshold_not_at_grid_end": (
        "Links and non-links are not told apart.",
        "As for not_at_chance.",
    ),
    "no_hidden_factor": (
        "A series that is not among the groups drives most of them: the market, left in with "
        "common_factor: flag; or a second one beside it.",
        "Set common_factor: take_out; where it is set, read links as partly that factor's.",
    ),
    "graph_is_as_configured": (
        "A check on learned_structure failed, so correlations stand in.",
        "Read that check; set graph: correlation to agree with what is used.",
    ),
}  # fmt: skip


def checks_page(specs: Iterable[dg.AssetCheckSpec]) -> str:
    """The whole page in Markdown: a table per asset, in alphabetical order.

    Raises:
        KeyError: a check without advice.
    """
    by_asset: dict[str, list[dg.AssetCheckSpec]] = {}
    for spec in specs:
        by_asset.setdefault(spec.asset_key.to_user_string(), []).append(spec)
    sections = [HEAD]
    for asset, of_asset in sorted(by_asset.items()):
        rows = [_row(spec) for spec in of_asset]
        header = "| check | kind | means | likely causes | what to do |\n|---|---|---|---|---|"
        sections.append("\n".join([f"## {asset}\n\n{header}", *rows, ""]))
    return "\n".join(sections)


def _row(spec: dg.AssetCheckSpec) -> str:
    causes, action = ADVICE[spec.name]
    cells = (f"`{spec.name}`", spec.metadata["kind"], spec.description or "", causes, action)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

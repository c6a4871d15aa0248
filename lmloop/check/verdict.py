"""What speaks against training on the data, and what somebody should know before: lines with a remedy each."""

from __future__ import annotations

from lmloop.check.counts import PartCounts
from lmloop.check.findings import NONE_REPEATED, PARTS, Findings, SourceFindings
from lmloop.preset.schema import Preset
from lmloop.training import figures

MAX_LEAKED, MAX_LEAKED_NEARLY = 0.05, 0.2
"""Share of held-out documents that may stand in training word for word, and nearly so. Above it, validation says how well
the model memorises. Real text is full of near repeats: a tenth of the files of Python's library are tables much alike."""

MAX_REPEATED = 0.5
"""Share of a source's training documents that may repeat earlier ones."""

MAX_TOO_LONG = 0.5
"""Share of a source's conversations that may be cut or left out since they are too long for a row."""

NOTED_REPEATED = 0.05
"""Share from which repeated documents are worth a line."""

NOTED_UNREADABLE = 1e-4
"""Share of characters from which those that were lost in conversion are worth a line."""

MAX_PASSES = 40
"""Readings of the same text beyond which nothing is learned from another (Muennighoff et al., arXiv 2305.16264)."""


def judge(findings: Findings, preset: Preset) -> None:
    """Fill in `problems` and `warnings`. What was read of the data decides; where that is a part, the report says so."""
    findings.problems += [source.refusal for source in findings.sources if source.refusal]
    findings.warnings += findings.notices
    for source in findings.sources:
        _judge_parts(findings, source)
        _judge_repeats(findings, source)
        _judge_text(findings, source)
    _judge_amount(findings, preset)
    _judge_budget(findings)
    if findings.checkpoint_bytes > findings.free_bytes:
        findings.problems.append(
            f"{findings.run}: the checkpoints will take about {figures.size(findings.checkpoint_bytes)} and the disk has "
            f"{figures.size(findings.free_bytes)} left: make room or choose another output_dir"
        )


def _judge_parts(findings: Findings, source: SourceFindings) -> None:
    for name, part in source.parts.items():
        if part.failure:
            findings.problems.append(f"source '{source.name}' cannot be read to its end: {part.failure}")
        if name == "train" and part.too_short and not part.documents and part.complete:
            findings.warnings.append(
                f"source '{source.name}': all of its {_documents(part.too_short)} are shorter than data.min_text_length: "
                "lower it, or leave the source out"
            )
    train = source.parts.get("train")
    if train is not None and (train.too_long or train.cut_at_a_turn):
        _judge_lengths(findings, source.name, train)
    if train is not None and train.documents and train.documents_without_training:
        share = train.documents_without_training / train.documents
        findings.warnings.append(
            f"source '{source.name}': in {_share(train.documents_without_training, share)} nothing is trained: look at the "
            "preview, and correct the source's roles or fields"
        )
    if source.quarantined and not source.refusal:
        worst = source.bad[0]
        findings.warnings.append(
            f"source '{source.name}': {source.quarantined:,} bad {'row' if source.quarantined == 1 else 'rows'} left out, "
            f"most often: {worst.reason} (first {worst.where})"
        )


def _judge_lengths(findings: Findings, name: str, train: PartCounts) -> None:
    """Conversations that do not fit into a row."""
    count = train.documents + train.too_long
    left_out, cut = (_share(number, number / count) for number in (train.too_long, train.cut_at_a_turn))
    line = (
        f"source '{name}': longer than model.seq_length {findings.seq_length:,}: {left_out} left out, since not even the "
        f"first answer fits, {cut} cut at a turn"
    )
    too_many = train.too_long + train.cut_at_a_turn > MAX_TOO_LONG * count
    (findings.problems if too_many else findings.warnings).append(f"{line}: raise it, or split them")


def _judge_repeats(findings: Findings, source: SourceFindings) -> None:
    for name, part in source.parts.items():
        repeats = source.repeats.get(name, NONE_REPEATED)
        count = repeats.exact + repeats.near
        if not count:
            continue
        share = count / max(part.documents, 1)
        first = repeats.first_exact or repeats.first_near
        assert first is not None, repeats
        other = findings.sources[first.earlier_origin // len(PARTS)].name
        where = f"'{other}' " if other != source.name else ""
        how = f"{repeats.exact:,} exactly, {repeats.near:,} nearly"
        pair = f"first {first.document} = {where}{first.earlier}"
        if name == "train":
            line = f"source '{source.name}': {_share(count, share)} repeat an earlier one ({how}; {pair})"
            if share > MAX_REPEATED:
                findings.problems.append(f"{line}: remove the duplicates")
            elif share > NOTED_REPEATED:
                findings.warnings.append(f"{line}: they count more than once")
        else:
            line = f"source '{source.name}': {_share(count, share)} of {name} also stand in training ({how}; {pair})"
            remedy = "remove the duplicates, or name other text in data.validation"
            too_many = repeats.exact > MAX_LEAKED * part.documents or share > MAX_LEAKED_NEARLY
            (findings.problems if too_many else findings.warnings).append(f"{line}: {remedy}")


def _judge_text(findings: Findings, source: SourceFindings) -> None:
    characters = sum(part.characters for part in source.parts.values())
    for count, what, remedy in (
        (
            sum(part.signs.replacement_characters for part in source.parts.values()),
            "characters are U+FFFD, which stands for what a conversion could not read",
            "convert the original again, from its true encoding",
        ),
        (
            sum(part.signs.twice_decoded for part in source.parts.values()),
            "places look like UTF-8 that was read as Latin-1 (`Ã©` for `é`)",
            "convert the original again, as UTF-8",
        ),
    ):
        if count > NOTED_UNREADABLE * characters:
            findings.warnings.append(f"source '{source.name}': {count:,} {what}: {remedy}")


def _judge_amount(findings: Findings, preset: Preset) -> None:
    train = findings.parts("train")
    if not train or findings.interrupted:
        return  # nothing could be opened, and a problem says why; or nothing can be said of the whole
    tokens = sum(part.trained_tokens for part in train)
    per_step = findings.budget.tokens_per_step if findings.budget else 0
    if not tokens:
        findings.problems.append("nothing to train: no document gives a trained token: correct data.sources")
    elif not all(part.complete for part in train):
        pass  # there is more than was read
    elif tokens < findings.seq_length:
        findings.problems.append(
            f"the data has {tokens:,} trained tokens, less than one row of model.seq_length {findings.seq_length:,}: "
            "add text or shorten the rows"
        )
    elif tokens < per_step:
        findings.problems.append(
            f"the data has {tokens:,} trained tokens and an update takes {per_step:,}: each would repeat all of it: add "
            "text, or lower train.per_gpu_batch_size or train.accumulation_steps"
        )
    asked = preset.data.validation is not None or preset.data.split.validation > 0
    if asked and tokens and not any(part.documents for part in findings.parts("validation")):
        findings.problems.append(
            "validation is empty, so nothing could be evaluated: add documents, name text in data.validation, or set "
            "data.split.validation to 0"
        )


def _judge_budget(findings: Findings) -> None:
    budget = findings.budget
    if budget is None:
        return
    for name, passes in budget.passes_by_source.items():
        if passes is not None and passes > MAX_PASSES:
            findings.warnings.append(
                f"source '{name}': the budget reads it {figures.count(passes)} times; beyond {MAX_PASSES} the same text "
                "teaches nothing more: add text, give it a smaller weight, or lower the budget"
            )


def _documents(count: int) -> str:
    return f"{count:,} document" + ("" if count == 1 else "s")


def _share(count: int, share: float) -> str:
    return f"{_documents(count)} ({figures.percent(share)})"

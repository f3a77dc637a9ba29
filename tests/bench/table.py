"""One table of ratios out of the raw runs of `bench.py`."""

import json
from pathlib import Path

from common import median, ratio
from vision import seconds

BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
COLUMNS = (
    "qbridge f32",
    "qbridge int8",
    "PyTorch f32",
    "PyTorch bf16",
    "ONNX Runtime f32",
    "ONNX Runtime int8",
)
BASE = "PyTorch f32"
SUBJECTS = {"qbridge-demo": "demo", "blip2-opt-1.3b": "full size"}
# What was aimed at: a contestant's time by another one's, at most.
CAPTION_AIM = ("qbridge int8", "PyTorch f32", 0.5)
AIMS = (
    ("qbridge f32", "PyTorch f32", 0.75),
    ("qbridge f32", "ONNX Runtime f32", 1.0),
    ("qbridge int8", "PyTorch f32", 0.45),
    ("qbridge int8", "ONNX Runtime int8", 1.0),
)


def time_of(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def row(name: str, rounds: list[dict[str, float]], show=time_of, base_of: list[dict[str, float]] | None = None) -> str:
    """Medians of the rounds, and the median ratio to PyTorch's time, in the same rounds, behind it."""
    cells = []
    for who in COLUMNS:
        values = [round[who] for round in rounds if who in round]
        if not values:
            cells.append("")
            continue
        merged = [{"self": round.get(who), "base": base.get(BASE)} for round, base in zip(rounds, base_of or rounds)]
        by = ratio([{k: v for k, v in pair.items() if v is not None} for pair in merged], "self", "base")
        cells.append(f"**{by:.2f}** ({show(median(values))})" if by is not None else show(median(values)))
    return f"| {name} | {' | '.join(cells)} |"


def named(result: dict) -> str:
    return SUBJECTS.get(result["subject"], result["subject"])


def batches(result: dict) -> list[int]:
    lines = (line for round in result["rounds"] for ran in round.values() for line in ran["runs"])
    return sorted({line["batch"] for line in lines})


def encode_rows(result: dict) -> list[str]:
    rows = [row(f"encode, {named(result)}, batch {batch}", seconds(result, batch)) for batch in batches(result)]
    whole = [{who: s for who, s in round.items() if "ONNX" not in who} for round in seconds(result, 1, "seconds")]
    rows.append(row(f"the same from the file's bytes, {named(result)}, batch 1", whole))
    peaks = [{who: ran["peak_mib"] for who, ran in round.items()} for round in result["rounds"]]
    return [*rows, row(f"peak memory, encode, {named(result)}", peaks, lambda mib: f"{mib:.0f} MiB")]


def caption_rows(result: dict) -> list[str]:
    n = result["pictures"]
    # Ratios are of time, as everywhere; what is shown beside them are captions a second.
    times = [{who: ran["seconds"] for who, ran in round.items()} for round in result["rounds"]]
    peaks = [{who: ran["peak_mib"] for who, ran in round.items()} for round in result["rounds"]]
    name = f"captions, {named(result)}, {result['batch']} at once"
    return [
        row(name, times, lambda seconds: f"{n / seconds:.2f} a second"),
        row(f"peak memory, captions, {named(result)}", peaks, lambda mib: f"{mib:.0f} MiB"),
    ]


def same_captions(result: dict) -> str:
    last = result["rounds"][-1]
    if BASE not in last:
        return ""
    expected = last[BASE]["captions"]
    same = {who: sum(a == b for a, b in zip(ran["captions"], expected)) for who, ran in last.items() if who != BASE}
    return ", ".join(f"{who} {n} of {len(expected)}" for who, n in same.items())


def first_token_rows(result: dict) -> list[str]:
    def of(what):
        return [{who: ran[what] for who, ran in round.items() if what in ran} for round in result["rounds"]]

    fresh = of("never seen")
    kinds = (("start", "start to first token"), ("never seen", "first token, picture never seen"))
    rows = [row(f"{name}, {named(result)}", of(what)) for what, name in kinds]
    # transformers keeps nothing, so a second question costs it what the first one did, and more.
    kept = (("seen before", "first token, picture seen before"), ("second turn", "first token, second turn"))
    return rows + [row(f"{name}, {named(result)}", of(what), base_of=fresh) for what, name in kept]


def language_model_rows(results: list[dict]) -> list[str]:
    rows = []
    for result in results:
        for what in ("decode", "prefill"):
            rates = [{who: ran[what] for who, ran in round.items()} for round in result["rounds"]]
            ours = [round["qbridge"] for round in rates if "qbridge" in round]
            theirs = [round["llama-bench"] for round in rates if "llama-bench" in round]
            if not ours:
                continue
            by = ratio(rates, "qbridge", "llama-bench")
            rows.append(
                f"| {what}, {named(result)} | {median(ours):.1f} | {f'{median(theirs):.1f}' if theirs else ''} | "
                f"{f'**{by:.2f}**' if by else ''} |"
            )
    return rows


def operation_rows(result: dict) -> list[str]:
    lines = [
        f"| {named(result)}: operation | f32 ms | share | GFLOP/s | int8 ms | share | G/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for f32, int8 in zip(result["kinds"]["f32"], result["kinds"]["int8"], strict=True):
        by_name = [{row["name"]: row for row in part["operations"]} for part in (f32, int8)]
        whole = [part["seconds"]["median"] * 1e3 for part in (f32, int8)]
        lines.append(f"| **{f32['name']}** | **{whole[0]:.4g}** | | | **{whole[1]:.4g}** | | |")
        # What only one of them has stands behind what both have; the rest last.
        names = dict.fromkeys([*by_name[0], *by_name[1]])
        for name in sorted(names, key=lambda name: name == "rest"):
            cells = []
            for rows in by_name:
                row = rows.get(name)
                gflops = f"{row['gflops']:.0f}" if row and "gflops" in row else ""
                cells.append(f"{row['seconds']['median'] * 1e3:.3g} | {row['share']:.0%} | {gflops}" if row else " | | ")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def aims(results: list[dict]) -> list[str]:
    lines = []

    def judge(rounds: list[dict[str, float]], aim: tuple[str, str, float], what: str) -> None:
        ours, theirs, most = aim
        if (by := ratio(rounds, ours, theirs)) is not None:
            verdict = "yes" if by <= most else "**no**"
            lines.append(f"| {ours} by {theirs}, {what} | {most:.2f} | {by:.2f} | {verdict} |")

    for result in results:
        if result["part"] == "encode":
            for aim in AIMS:
                for batch in batches(result):
                    judge(seconds(result, batch), aim, f"{named(result)}, batch {batch}")
        elif result["part"] == "captions":
            times = [{who: ran["seconds"] for who, ran in round.items()} for round in result["rounds"]]
            judge(times, CAPTION_AIM, f"captions, {named(result)}")
    return lines


def machine_of(results: list[dict]) -> str:
    found, packages = results[-1]["machine"], results[-1]["versions"]
    sets = ", ".join(found.get("instruction_sets", []))
    peers = ", ".join(f"{name} {version}" for name, version in packages.items())
    results = [result for result in results if "rounds" in result] or [results[-1] | {"rounds": []}]
    builds = {ran["build"] for result in results for round in result["rounds"] for ran in round.values() if "build" in ran}
    peers += "".join(f", llama.cpp build {build}" for build in sorted(builds))
    dates = sorted({result["date"] for result in results})
    rounds = sorted({len(result["rounds"]) for result in results})
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_total'] / 1e9:.0f} GB, {found['platform']} ({sets}); "
        f"qbridge {found['version']}, {peers}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
        f"medians of {' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} interleaved rounds."
    )


def render(directory: Path) -> str:
    """Markdown of all raw runs that are there."""
    results = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    if not results:
        return "Nothing has been measured yet.\n"
    results.sort(key=lambda result: list(SUBJECTS).index(result["subject"]) if result["subject"] in SUBJECTS else 99)
    by_part = lambda part: [result for result in results if result["part"] == part]  # noqa: E731
    lines = [machine_of(results), ""]
    rows = [line for result in by_part("encode") for line in encode_rows(result)]
    rows += [line for result in by_part("captions") for line in caption_rows(result)]
    rows += [line for result in by_part("first token") for line in first_token_rows(result)]
    if rows:
        lines += [
            "Bold: the median ratio to PyTorch f32 of the same rounds, of time or memory, so less is better. In brackets the "
            "median itself; what is encoded at once counts as one picture each.",
            "",
            f"| what | {' | '.join(COLUMNS)} |",
            f"|---|{'---|' * len(COLUMNS)}",
            *rows,
            "",
        ]
    engine = language_model_rows(by_part("language model"))
    if engine:
        lines += ["| tokens a second | qbridge | llama-bench | ratio |", "|---|---|---|---|", *engine, ""]
    if verdicts := aims(results):
        lines += ["| time of | aim | reached | |", "|---|---|---|---|", *verdicts, ""]
    cosines = [
        f"{named(result)}: " + ", ".join(f"{who} {value:.5f}" for who, value in result["cosines"].items() if who != BASE)
        for result in by_part("encode")
    ]
    if cosines:
        lines += [f"Cosine of the soft prompt to PyTorch f32's. {'. '.join(cosines)}.", ""]
    for result in by_part("captions"):
        # Of random weights there is nothing to compare but lengths.
        if not result["tokens"] and (same := same_captions(result)):
            lines += [f"Captions that are PyTorch f32's, {named(result)}: {same}.", ""]
    for result in by_part("operations"):
        lines += [*operation_rows(result), ""]
    failed = sorted({who for result in results for who in result["failed"]})
    if failed:
        lines += [f"Did not run: {', '.join(failed)}.", ""]
    return "\n".join(lines)


def insert(report: Path, text: str) -> None:
    """Puts `text` between the marks of `report`."""
    before, rest = report.read_text().split(BEGIN)
    _, after = rest.split(END)
    report.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")

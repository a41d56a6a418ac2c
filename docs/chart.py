"""Draws docs/evidence.png from the first table of docs/archive/learning.md."""

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
ROW = re.compile(
    r"^\| (?P<arm>[^|]+) \| [\d.]+; (?P<mean>[-+][\d.]+)"
    r" \((?P<low>[-+][\d.]+) to (?P<high>[-+][\d.]+)\)",
    re.MULTILINE,
)


def main() -> None:
    page = (DOCS / "archive" / "learning.md").read_text(encoding="utf-8")
    table = page[: page.index("## Older tables")]
    rows = [
        (row["arm"], float(row["mean"]), float(row["low"]), float(row["high"]))
        for row in ROW.finditer(table)
    ]
    rows.sort(key=lambda row: row[1], reverse=True)

    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.subplots()
    for place, (arm, mean, low, high) in enumerate(rows):
        colour = "#c0392b" if arm.startswith("full-sequence") else "#2c5f8a"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(mean, place, "o", color=colour)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(rows)), [arm for arm, *_ in rows])
    axes.set_xlabel("Fréchet distance to real clips, less that of plain flowception (5 % to 95 %)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "evidence.png", dpi=110)


if __name__ == "__main__":
    main()

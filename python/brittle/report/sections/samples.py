"""Single samples: the highest losses, and pairs that are nearly the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brittle.report.blocks import Answer, Part, Section, Shot, Table, Tile, Tiles, tiles_or_table
from brittle.report.pictures import Pixels, photograph
from brittle.report.text import count, number, percent

Json = Mapping[str, Any]
_SHOWN_PAIRS = 24


def highest_losses(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """The samples that the model is most wrong about."""
    items = numbers["items"]
    tiles = [
        Tile(
            f"{item['label']} read as {item['prediction']}"
            if item["label"] != item["prediction"]
            else item["label"],
            (f"log-loss {number(item.get('log_loss'))}", item["name"]),
            [
                _shot(
                    "",
                    pictures.get(item.get("picture") or ""),
                    Answer(item["prediction"], item["prediction"] == item["label"], item.get("confidence")),
                )
            ],
        )
        for item in items
    ]
    rows = [
        (
            item["name"],
            str(item["id"]),
            item["label"],
            item["prediction"],
            percent(item.get("confidence")),
            number(item.get("log_loss")),
        )
        for item in items
    ]
    columns = ("sample", "id", "true class", "prediction", "confidence", "log-loss")
    table = Table(columns, rows, words=frozenset({2, 3}))
    lead = (
        f"Where the model is most wrong on {numbers['set']}: hard samples, samples of a rare kind, "
        "and often labels that are wrong."
    )
    return Section("samples", "Samples of highest loss", lead, [tiles_or_table(Tiles(tiles, table))])


def duplicates(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Pairs of samples from two sets that are nearly the same."""
    pairs = numbers["pairs"]
    tiles = [
        Tile(
            f"cosine {number(pair.get('cosine'))}",
            (f"p = {number(pair.get('p'))}",),
            [
                _shot(f"{pair[side]} {pair[f'{side}_id']}", pictures.get(key or ""), None)
                for side, key in zip(("test", "train"), _two(pair.get("pictures")), strict=True)
            ],
        )
        for pair in pairs[:_SHOWN_PAIRS]
    ]
    rows = [
        (
            f"{pair['test']} {pair['test_id']}",
            f"{pair['train']} {pair['train_id']}",
            number(pair.get("cosine")),
            number(pair.get("p")),
        )
        for pair in pairs
    ]
    table = Table(("sample", "nearly the same as", "cosine", "p-value"), rows, words=frozenset({1}))
    searches = [
        (
            f"{each['test']} against {each['train']}",
            count(each["samples"]),
            count(each["suspects"]),
            number(each.get("threshold")),
        )
        for each in numbers["searches"]
    ]
    found = Table(("sets", "samples", "suspects", "threshold of the cosine"), searches, "Searches")
    parts: list[Part] = [found]
    if tiles:
        more = f"The {_SHOWN_PAIRS} nearest of {len(pairs)} pairs." if len(pairs) > _SHOWN_PAIRS else ""
        parts.append(tiles_or_table(Tiles(tiles, table, "Pairs", more, wide=True)))
    lead = "A sample that is in two sets makes the second look easier than it is."
    return Section("duplicates", "Near-duplicates across data sets", lead, parts)


def _shot(name: str, pixels: Pixels | None, answer: Answer | None) -> Shot:
    if pixels is None:
        return Shot(name, None, answer=answer)
    return Shot(name, photograph(pixels), max(pixels.shape[:2]) < 64, answer)


def _two(keys: Any) -> tuple[Any, Any]:
    first, second = keys or (None, None)
    return first, second

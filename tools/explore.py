"""The data of the page *Explore all nodes* (`book/explore.md`, `book/_static/explore.js`).

    explore/index.js                     what there is: data sets, their labels and sites
    explore/<data set>/<site>.js         mu and W of a site, float16 in base64, the images that each of its nodes likes
                                         most and least, and the strongest weights to and from the sites beside it
    explore/<data set>/images/<label>.webp   the test images of a label, in a square of rows

A field is an outer product, so mu and W hold the SNP of a whole site (Method, section 5), and the page computes the
rest as `cctlib.snp.fields` does. Each file is a script that hands its data to the page: a page that was opened from
disk may load scripts, and no other data.
"""

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from cctlib import stages
from cctlib.andc import masks
from cctlib.data import order
from cctlib.data.images import Images
from cctlib.snp import fields
from cctlib.snp.measure import SiteMeasurement
from cctlib.study import Study, beside

INDEX = "index.js"
STRONGEST = 6  # weights shown on either side of a node
LARGEST_SIDE, QUALITY = 48, 80  # pixels of an image on the page, and how well WebP keeps it


def explore_stage(study: Study, runs: Path, reads: Mapping[str, Path | str], settings: Mapping[str, str]) -> Path:
    """The folder with the data of a study, and of what ships for other data sets.

    reads, settings: what determines the executed notebooks of the same book.
    """
    images = study.images()
    return stages.stage(
        runs / "notebooks",
        "explore",
        lambda work: write(study, images, work),
        room="everything",
        reads={
            **reads,
            "source": stages.sha256_file(Path(__file__)),
            "images": "none" if images is None else images.fingerprint,
        },
        settings=settings,
        device=study.device,
    )


def write(study: Study, images: Images | None, folder: Path) -> None:
    """Write the files into `folder`: first the study, with its images where they are here, then what else ships."""
    studies = sorted(beside(study).values(), key=lambda other: other is not study)
    index = {slug(other.dataset): _described(other) for other in studies}
    for other in studies:
        home = folder / slug(other.dataset)
        home.mkdir(parents=True, exist_ok=True)
        labels = other.measurement.labels["test"].astype(np.int64)
        places, weights = order.rank_in_label(labels)[0], _weights(other)
        for site, measured in other.measurement.sites.items():
            found = _site(measured, labels, places) | weights.get(site, {})
            _write_script(home / f"{site.replace('/', '-')}.js", f"{slug(other.dataset)}/{site}", found)
    if images is not None:
        index[slug(study.dataset)]["images"] = _write_images(images, folder / slug(study.dataset) / "images")
    _write_script(folder / INDEX, "index", {"theta": fields.THETA, "sets": index})


def slug(dataset: str) -> str:
    """The name of a data set in an address: of a folder, without the way to it."""
    kind, _, path = dataset.partition(":")
    return f"{kind}-{Path(path).name}" if path else kind


def _described(study: Study) -> dict[str, Any]:
    """What the page needs to know of a data set before any site is loaded."""
    result, about = study.measurement, study.provenance
    names, groups = result.names, result.groups
    said = [about["dataset"], about["model"], f"weights {about['weights'][:10]}", f"commit {about['commit']}"]
    return {
        "title": about["dataset"],
        "names": names,
        "groups": [result.group_names[group] for group in groups] if groups and result.group_names else None,
        "heads": study.model.cct.heads,
        "sites": {site: measured.W.shape[1] for site, measured in result.sites.items()},
        "made": " · ".join([*said, f"profile {about['profile']}", *filter(None, [about.get("note")])]),
        "images": None,
    }


def _site(measured: SiteMeasurement, labels: Int[np.ndarray, "image"], places: Int[np.ndarray, "image"]) -> dict:
    """mu and W by node, and label and place within its label of each node's extreme images: [node, end, rank, 2]."""
    ends = measured.extremes
    liked = None if ends is None else np.stack([labels[ends], places[ends]], axis=-1).astype("<u2")
    return {
        "nodes": measured.W.shape[1],
        "mu": _base64(measured.mu["test"].T.astype("<f2")),
        "W": _base64(measured.W.T.astype("<f2")),
        "liked": None if liked is None else {"each": liked.shape[2], "images": _base64(liked)},
    }


def _weights(study: Study) -> dict[str, dict[str, dict]]:
    """By site, the strongest weights of its nodes `from` the site before and `to` the one behind, for the layers that
    join two sites directly: values (of qkv), proj, linear1, linear2.
    """
    weights, encoders, width = study.network().state_dict(), study.measurement.encoders, study.model.cct.width
    joined = [
        (layer.source, layer.target, layer.kind, weights[layer.weight])
        for layer in masks.layers(encoders)
        if layer.target is not None
    ]
    for m in range(2, encoders + 1):
        values = weights[f"classifier.blocks.{m - 1}.self_attn.qkv.weight"][2 * width :]
        joined.append((f"enc{m - 1}/ff", f"enc{m}/mha", "the values of qkv", values))
    found: dict[str, dict[str, dict]] = {}
    for source, target, layer, weight in joined:
        found.setdefault(target, {})["from"] = {"site": source, "layer": layer} | _strongest(weight)
        found.setdefault(source, {})["to"] = {"site": target, "layer": layer} | _strongest(weight.T)
    return found


def _strongest(weight: Float[Tensor, "node other"]) -> dict[str, Any]:
    """Of each node, the weights of largest magnitude, the strongest first: whose they are, and their values."""
    whose = weight.abs().topk(min(STRONGEST, weight.shape[1]), dim=1).indices
    values = weight.gather(1, whose)
    return {
        "each": whose.shape[1],
        "whose": _base64(whose.cpu().numpy().astype("<u2")),
        "values": _base64(values.cpu().numpy().astype("<f2")),
    }


def _write_images(images: Images, folder: Path) -> dict[str, int]:
    """One picture a label, its images row by row in their order. Returns their side and the number in a row."""
    folder.mkdir(parents=True, exist_ok=True)
    side = min(images.pixels.shape[-1], LARGEST_SIDE)
    columns = math.ceil(math.sqrt(int(images.labels.bincount().max())))
    for label in range(images.num_labels):
        rows = (images.labels == label).nonzero().flatten()
        sheet = Image.new("RGB", (columns * side, max(1, math.ceil(len(rows) / columns)) * side))
        for place, pixels in enumerate(images.pixels[rows].permute(0, 2, 3, 1).numpy()):
            small = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (place % columns * side, place // columns * side))
        sheet.save(folder / f"{label}.webp", quality=QUALITY, method=6)
    return {"side": side, "columns": columns}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _write_script(path: Path, name: str, content: Mapping[str, Any]) -> None:
    path.write_text(
        f"explore.put({json.dumps(name)},{json.dumps(content, separators=(',', ':'))});\n", encoding="utf-8"
    )
